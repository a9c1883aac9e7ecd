"""Classifies a stream of 15,000 texts and prints by how many MB the last 10,000 made the process grow; then
one without an end until Ctrl-C comes, and prints the threads that are left.
"""

import itertools
import resource
import signal
import sys
import threading

from tiny import build, tiny_texts, tiny_tokenizer
from transformers import pipeline

from modeling_romebert import score

POLICY = {"name": "entropy", "threshold": 0.6}


def print_growth() -> None:
    texts = tiny_texts(4000, longest=60)
    model = build(exit_policy=POLICY)
    classify = pipeline("early-exit-classification", model=model, tokenizer=tiny_tokenizer(), window=256)
    peaks = []
    for number, _ in enumerate(classify(itertools.islice(itertools.cycle(texts), 15000)), start=1):
        if number in (5000, 15000):  # by then most numbers of rows have occurred
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    mega = 2**20 if sys.platform == "darwin" else 2**10
    print((peaks[1] - peaks[0]) / mega, flush=True)


def wait_for_ctrl_c() -> None:
    # a shell's background jobs inherit that it is ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    texts = ("the film was good" for _ in iter(int, 1))
    results = score(build(exit_policy=POLICY), tiny_tokenizer(), texts)
    next(results)
    try:
        print("ready", flush=True)
        for _ in results:
            pass
    except KeyboardInterrupt:
        results.close()
        print([thread.name for thread in threading.enumerate()], flush=True)
        raise


if __name__ == "__main__":
    print_growth()
    wait_for_ctrl_c()
