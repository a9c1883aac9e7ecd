"""Classifies a stream without an end until Ctrl-C comes, and prints the threads that are left then."""

import signal
import threading

from tiny import build, tiny_tokenizer

from modeling_romebert import score

if __name__ == "__main__":
    # a shell's background jobs inherit that it is ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    texts = ("the film was good" for _ in iter(int, 1))
    results = score(build(exit_policy={"name": "entropy", "threshold": 0.6}), tiny_tokenizer(), texts)
    next(results)
    try:
        print("ready", flush=True)
        for _ in results:
            pass
    except KeyboardInterrupt:
        results.close()
        print([thread.name for thread in threading.enumerate()], flush=True)
        raise
