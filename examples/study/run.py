"""Run the study: every run of the grid that has no result yet, several at once.

    python examples/study/run.py                                        # the whole grid
    python examples/study/run.py --tasks rte --recipes joint kl-0.3 --seeds 1 --workers 2
    python examples/study/run.py --train_file train.csv --validation_file dev.csv   # on files of one's own

A run is a process of its own (one_run.py). Its result is one JSON, TASK/BACKBONE/RECIPE/SEED.json in
`--results`, written in one step when it is finished; report.py makes the page of them. Stopped at any moment,
the same command goes on where it was. A run that fails leaves its reason in the folder `failed` beside the
results, and is tried again with `--retry_failed`.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # examples/
import support.installed  # noqa: F401

# isort: split
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml
from transformers import HfArgumentParser

from modeling_romebert.evaluation.provenance import read_json, write_json
from study.cells import (
    BUSY,
    CELL,
    GRID,
    RESULTS,
    Cell,
    cells_of,
    failed_folder,
    own_task,
    python,
    read_grid,
    with_places,
)

LOG = "log.txt"
TAIL = 5  # lines of the log that say why a run failed


@dataclass
class StudyArguments:
    """Which runs, on what, and how many at once."""

    tasks: list[str] | None = field(default=None, metadata={"help": "Of the grid; all when left out."})
    backbones: list[str] | None = field(
        default=None, metadata={"help": "Of the grid; each task's own when left out."}
    )
    recipes: list[str] | None = field(
        default=None, metadata={"help": "Names of recipes or YAML files; those of the grid when left out."}
    )
    seeds: list[int] | None = field(default=None, metadata={"help": "Each task's own when left out."})
    workers: int = field(default=1, metadata={"help": "Runs side by side, on cores or on one GPU."})
    data: str | None = field(
        default=None,
        metadata={"help": "Folder with TASK/train.jsonl and TASK/validation.jsonl; else GLUE from the Hub."},
    )
    train_file: str | None = field(default=None, metadata={"help": "Own data, as in train_glue.py."})
    validation_file: str | None = field(default=None, metadata={"help": "The same, to be judged on."})
    models: list[str] = field(
        default_factory=list,
        metadata={"help": "NAME=FOLDER for backbones that lie elsewhere than the grid says, or are new."},
    )
    set: list[str] = field(
        default_factory=list,
        metadata={"help": "NAME=VALUE: arguments of train_glue.py for all runs. Give --results too."},
    )
    grid: str = field(default=str(GRID), metadata={"help": "File with tasks, backbones and recipes."})
    results: str = field(default=str(RESULTS), metadata={"help": "Where results go."})
    runs: str = field(default="runs/study", metadata={"help": "Where runs keep data, logs and checkpoints."})
    retry_failed: bool = field(default=False, metadata={"help": "Try again what failed before."})
    keep: bool = field(default=False, metadata={"help": "Keep the checkpoints of finished runs."})


class Started(NamedTuple):
    """A run under way."""

    cell: Cell
    process: subprocess.Popen[bytes]
    since: float


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(StudyArguments).parse_args_into_dataclasses(
        argv, look_for_args_file=False
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the same command goes on."))
    results, runs = Path(arguments.results), Path(arguments.runs)
    cells = chosen(arguments, runs)
    todo, failed_before = missing(cells, results, arguments.retry_failed)
    done = len(cells) - len(todo) - len(failed_before)
    tried = f", {len(failed_before)} failed before (--retry_failed tries them again)" * bool(failed_before)
    print(f"{len(cells)} runs: {done} have a result{tried}, {len(todo)} are to do.", flush=True)
    failed = work(todo, results, runs, arguments.workers, arguments.keep)
    if failed:
        raise SystemExit(f"{failed} runs failed; {failed_folder(results)} says why.")


def chosen(arguments: StudyArguments, runs: Path) -> list[Cell]:
    """The runs that the arguments ask for, with the places of their files."""
    grid = read_grid(Path(arguments.grid))
    models, more = (named(name, getattr(arguments, name)) for name in ("models", "set"))
    own = [f"--{name}" for name in ("set", "train_file", "validation_file") if getattr(arguments, name)]
    if own and Path(arguments.results) == RESULTS:
        raise SystemExit(f"{own[0]} makes other runs than the grid's; say with --results where they go.")
    if arguments.validation_file is not None and arguments.train_file is None:
        raise SystemExit("--validation_file is given without --train_file; the study needs both.")
    own_files: dict[str, str] = {}
    if arguments.train_file is not None:
        grid = own_task(grid, arguments.train_file, arguments.validation_file)
        own_files = {"train_file": arguments.train_file, "validation_file": arguments.validation_file}
    grid["backbones"] |= models
    cells = cells_of(grid, arguments.tasks, arguments.backbones, arguments.recipes, arguments.seeds, more)
    return with_places(cells, grid["backbones"], arguments.data, own_files, runs)


def named(argument: str, given: Sequence[str]) -> dict[str, Any]:
    """["a=1"] -> {"a": 1}"""
    if wrong := [one for one in given if "=" not in one]:
        raise SystemExit(f"--{argument} {wrong[0]}: write NAME=VALUE.")
    pairs = (one.split("=", 1) for one in given)
    return {name: value if argument == "models" else yaml.safe_load(value) for name, value in pairs}


def missing(cells: Sequence[Cell], results: Path, retry_failed: bool) -> tuple[list[Cell], list[Cell]]:
    """The runs without a result that are to do, and those that are not as they failed before with the same
    arguments and files.

    Results that were made with others than there are now are said aloud, and stay.
    """
    todo, failed_before, others = [], [], []
    for cell in cells:
        result, failure = cell.file(results), cell.file(failed_folder(results))
        if result.is_file():
            if not cell.is_of(read_json(result)):
                others.append(str(result))
        elif not retry_failed and failure.is_file() and cell.is_of(read_json(failure)):
            failed_before.append(cell)
        else:
            todo.append(cell)
    if others:
        print(
            f"{len(others)} results are of other arguments, data or weights than there are now; delete them"
            f" to run them anew: {', '.join(others)}"
        )
    return todo, failed_before


def work(todo: Sequence[Cell], results: Path, runs: Path, workers: int, keep: bool) -> int:
    """Run cells, so many at once -> how many failed. Ends what is under way when it is stopped."""
    waiting, under_way, done, failed = list(reversed(todo)), [], 0, 0
    begin = time.monotonic()
    try:
        while waiting or under_way:
            while waiting and len(under_way) < workers:
                under_way.append(start(waiting.pop(), results, runs, workers))
            for one in [one for one in under_way if one.process.poll() is not None]:
                under_way.remove(one)
                finish(one, results, runs, keep)
                done, failed = done + 1, failed + has_failed(one, results)
                left = (time.monotonic() - begin) / done * (len(waiting) + len(under_way))
                print(
                    f"[{done}/{len(todo)}] {outcome(one, results)}; about {in_words(left)} left", flush=True
                )
            time.sleep(0.2)
    finally:
        for one in under_way:
            one.process.terminate()
        for one in under_way:
            one.process.wait()
    return failed


def start(cell: Cell, results: Path, runs: Path, workers: int) -> Started:
    """Start a run as a process, with a share of the cores."""
    folder = cell.folder(runs)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CELL, {**vars(cell), "result": str(cell.file(results).resolve())})
    cell.file(results).parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    with open(folder / LOG, "ab") as log:
        process = subprocess.Popen([*python(), str(folder)], env=environment, stdout=log, stderr=log)
    print(f"started {cell.name}; {folder / LOG} says how far it is", flush=True)
    return Started(cell, process, time.monotonic())


def has_failed(one: Started, results: Path) -> bool:
    """Whether a run that ended has no result, and no other process that makes it."""
    return not one.cell.file(results).is_file() and one.process.returncode != BUSY


def finish(one: Started, results: Path, runs: Path, keep: bool) -> None:
    """Clear up after a run that ended. One that failed leaves its reason."""
    cell, folder = one.cell, one.cell.folder(runs)
    failure = cell.file(failed_folder(results))
    if not has_failed(one, results):
        failure.unlink(missing_ok=True)
        if cell.file(results).is_file() and not keep:
            shutil.rmtree(folder)
        return
    lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    failure.parent.mkdir(parents=True, exist_ok=True)
    returned = one.process.returncode
    reason = f"ended by signal {-returned}" if returned < 0 else "\n".join(lines[-TAIL:])
    kept = {"arguments": cell.arguments, "digests": cell.made_of}
    write_json(failure, {"reason": reason, "returned": returned, **kept})


def outcome(one: Started, results: Path) -> str:
    """A line on a run that ended."""
    took = in_words(time.monotonic() - one.since)
    file = one.cell.file(results)
    if has_failed(one, results):
        return f"{one.cell.name}: failed after {took}"
    if not file.is_file():
        return f"{one.cell.name}: is going on in another process"
    found = read_json(file)
    last, mean = list(found["exits"].values())[-1], found["mean_over_exits"]
    return f"{one.cell.name}: {found['metric']} {last:.3f} at the last exit, mean {mean:.3f}, {took}"


def in_words(seconds: float) -> str:
    """
    Example:
        >>> in_words(40), in_words(200), in_words(9000)
        ('40 s', '3 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    main()
