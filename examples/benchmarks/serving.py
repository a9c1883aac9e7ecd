"""A server under load: texts that join and leave at every layer, beside whole batches, with exits and at full
depth.

    python examples/benchmarks/serving.py  # after `make quickstart`; needs the extra `serve`
    python examples/benchmarks/serving.py --seconds 5 --loads 0.9 --output_file serving.json

1. Sides, all of them LitServe with the same gate, queues and engine:
       continuous          examples/serve.py
       whole batches       what waits when a batch ends makes the next one, and is answered as a whole
       whole, full depth   the same, and every text runs every layer
2. Saturation: so many callers that a side is never idle -> answers per second.
3. Load: Poisson arrivals at shares of each side's own saturation, and all sides at those of full depth. They
   do not wait for answers (load.py); times count from when a request was due.
4. Between the requests of the last load come clients that hang up and requests that are none. What was lost,
   answered twice or answered wrongly is counted; nothing should be.

Each measurement takes about `--seconds`. Client and server share the machine's cores.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # examples/
import support.installed  # noqa: F401

# isort: split
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from quickstart import QuickstartArguments
from support.labelling import open_classifier
from support.reviews import load_splits
from transformers import HfArgumentParser

from benchmarks.load import Caller
from modeling_romebert import score
from modeling_romebert.evaluation.provenance import provenance, write_json

SIDES = {
    "continuous": [],
    "whole batches": ["--whole_batches"],
    "whole, full depth": ["--whole_batches", "--full_depth"],
}
CALLERS = 48  # of the closed loop
WARM_UP = 200  # requests before anything is measured
START_SECONDS = 300


@dataclass
class ServingArguments:
    """What is loaded, how hard, and how long."""

    model: str = field(
        default=QuickstartArguments.output_dir + "/model", metadata={"help": "Folder of a saved model."}
    )
    dataset: str | None = field(
        default=None, metadata={"help": "CSV or JSONL with `text` and `label`; else movie reviews."}
    )
    loads: list[float] = field(
        default_factory=lambda: [0.3, 0.6, 0.9], metadata={"help": "Shares of saturation."}
    )
    seconds: float = field(default=20.0, metadata={"help": "Of each measurement, about."})
    most_requests: int = field(default=20_000, metadata={"help": "Of each measurement at most."})
    threads: int | None = field(
        default=None, metadata={"help": "CPU threads of the model; all but one when left out."}
    )
    output_file: str | None = field(default=None, metadata={"help": "JSON to write."})


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(ServingArguments).parse_args_into_dataclasses(argv)
    splits, _ = load_splits(arguments.dataset)
    texts = list(splits["test"]["text"])
    labels = labels_of(arguments.model, texts)
    results: dict[str, Any] = {"texts": len(texts), "seconds": arguments.seconds, **provenance(), "sides": {}}
    saturation: dict[str, float] = {}
    for name in reversed(SIDES):  # full depth first: its saturation is a load for the others
        with running(name, arguments) as address:
            caller = Caller(address, texts, labels)
            caller.closed_loop(CALLERS, WARM_UP)
            saturation[name] = saturated(caller, arguments)
            side = {"saturation": saturation[name], "loads": []}
            for share, rate, of in rates(name, saturation, arguments.loads):
                found = loaded(caller, rate, arguments, nuisance=share == max(arguments.loads))
                side["loads"].append({"share": share, "of": of, "rate": rate, **found})
            side["metrics"] = settled(address)
        results["sides"][name] = side
        if arguments.output_file:
            write_json(arguments.output_file, results)
    print(table(results))


def labels_of(model: str, texts: list[str]) -> dict[str, set[str]]:
    """The labels that a side may give each text: with exits, and at full depth."""
    found: dict[str, set[str]] = {text: set() for text in texts}
    loaded_model, tokenizer = open_classifier(model)
    for policy in (None, False):
        results = score(loaded_model, tokenizer, texts, exit_policy=policy)
        for text, result in zip(texts, results, strict=True):
            found[text].add(result["label"])
    return found


def rates(name: str, saturation: dict[str, float], loads: list[float]) -> Iterator[tuple[float, float, str]]:
    """Shares and requests per second to measure a side at: of its own saturation, and of full depth's."""
    for of in dict.fromkeys((name, "whole, full depth")):
        for share in loads:
            yield share, share * saturation[of], of


def saturated(caller: Caller, arguments: ServingArguments) -> float:
    """Answers per second of a side that is never idle."""
    trial = caller.closed_loop(CALLERS, WARM_UP)
    rate = len(trial.seconds) / trial.duration
    count = min(arguments.most_requests, max(WARM_UP, int(rate * arguments.seconds)))
    found = caller.closed_loop(CALLERS, count)
    check(found.summary())
    return len(found.seconds) / found.duration


def loaded(caller: Caller, rate: float, arguments: ServingArguments, nuisance: bool) -> dict[str, Any]:
    """What a side does under a load."""
    count = min(arguments.most_requests, max(100, int(rate * arguments.seconds)))
    found = caller.open_loop(rate, count, nuisance=nuisance).summary()
    check(found)
    return {**found, "nuisance": nuisance}


def check(found: dict[str, Any]) -> None:
    """Say so where a side lost or mixed up answers."""
    if (
        found["failed"]
        or found["wrong"]
        or found["answered"] + sum(found["refused"].values()) != found["sent"]
    ):
        print(f"lost or wrong answers: {json.dumps(found)}")


def settled(address: str) -> dict[str, Any]:
    """A server's own metrics, once nobody waits any more."""
    for _ in range(100):
        found = read_json(address.replace("/classify", "/metrics.json"))
        if not found["queue"]["under_way"]:
            break
        time.sleep(0.1)
    return found


def read_json(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return json.load(answer)


@contextmanager
def running(name: str, arguments: ServingArguments) -> Iterator[str]:
    """A side as a process, for the time of a `with` -> the address of its `/classify`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(Path(__file__).parent / "serving_side.py"), "--model", arguments.model]
    command += ["--port", str(port), "--max_requests", "100000", *SIDES[name]]
    command += ["--threads", str(arguments.threads)] if arguments.threads else []
    process = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}/classify"
        process.terminate()
        process.wait(60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(address: str, process: subprocess.Popen) -> None:
    """Until a server says that it is ready.

    Raises:
        SystemExit: it ended, or takes too long.
    """
    for _ in range(START_SECONDS * 5):
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
        if process.poll() is not None:
            break
    raise SystemExit(f"the server at {address} did not start.")


def table(results: dict[str, Any]) -> str:
    """As Markdown: saturation, and milliseconds at each load."""
    names = ("side", "load", "requests/s", "answered/s", "p50 ms", "p95 ms", "p99 ms", "lost, wrong")
    lines = [f"| {' | '.join(names)} |", "|---|---|---|---|---|---|---|---|"]
    for name in SIDES:
        if name not in results["sides"]:
            continue
        side = results["sides"][name]
        lines.append(f"| {name} | saturated | | {side['saturation']:.0f} | | | | |")
        for one in side["loads"]:
            of = "" if one["of"] == name else " of full depth's"
            times = " | ".join(f"{one[f'p{percent}_ms']:.0f}" for percent in (50, 95, 99))
            lines.append(
                f"| {name} | {one['share']:.0%}{of} | {one['rate']:.0f} | {one['per_second']:.0f} | {times}"
                f" | {one['failed']}, {one['wrong']} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
