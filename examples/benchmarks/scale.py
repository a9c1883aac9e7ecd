"""Many rows through one process and through several: texts per second and memory beside plain `score`.

    python examples/benchmarks/scale.py  # after `make quickstart`; needs the extra `distributed`
    python examples/benchmarks/scale.py --rows 1000000 --sides score score_file --output_file scale.json

1. The test sentences are written so often as it takes to a CSV file of `--rows`.
2. Each side is a process of its own that labels the file: `score` fed from the csv module with as many
   threads as the machine has, score_file.py, and Daft and Ray with 1 and more workers of one thread each.
3. Each labels a quarter of the rows, then all. What the others take longer is the rate; what is left of the
   first run is what starting takes. Give `--rows` in multiples of 16,384 times the workers: both are then
   whole rounds of their batches of 4,096. The peak of memory is that of the process that reads and writes.
4. Labels and exit layers of all sides are compared.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # examples/
import support.installed  # noqa: F401

# isort: split
import csv
import itertools
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq
from quickstart import QuickstartArguments
from support.labelling import Labeller
from support.reviews import load_splits
from transformers import HfArgumentParser

from modeling_romebert import RomeBertConfig, score
from modeling_romebert.evaluation.provenance import provenance, read_json, write_json

SIDES = ("score", "score_file", "daft", "ray")
EXAMPLES = Path(__file__).parents[1]
KEPT = 100_000  # results of `score` that are kept to compare


@dataclass
class ScaleArguments:
    """What is labelled, and by what."""

    model: str = field(
        default=QuickstartArguments.output_dir + "/model", metadata={"help": "Folder of a saved model."}
    )
    dataset: str | None = field(
        default=None, metadata={"help": "CSV or JSONL with `text` and `label`; else movie reviews."}
    )
    rows: int = field(default=32_768, metadata={"help": "Of the file."})
    sides: list[str] = field(
        default_factory=lambda: list(SIDES), metadata={"help": f"Of {', '.join(SIDES)}."}
    )
    workers: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "Of Daft and Ray."})
    output_file: str | None = field(default=None, metadata={"help": "JSON to write."})
    only_score: str | None = field(default=None, metadata={"help": "Internal: the file of a child process."})


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(ScaleArguments).parse_args_into_dataclasses(argv)
    if arguments.only_score:
        plain_score(arguments.model, Path(arguments.only_score))
        return
    if unknown := [side for side in arguments.sides if side not in SIDES]:
        raise SystemExit(f"--sides {' '.join(unknown)}: choose from {', '.join(SIDES)}.")
    splits, _ = load_splits(arguments.dataset)
    texts = Path(arguments.dataset).name if arguments.dataset else "movie reviews"
    dtype = str(RomeBertConfig.from_pretrained(arguments.model).dtype).removeprefix("torch.")
    about = {"rows": arguments.rows, "texts": texts, "dtype": dtype}
    results: dict[str, Any] = {**about, **provenance(), "sides": []}
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in (("rows.csv", arguments.rows), ("quarter.csv", arguments.rows // 4)):
            write_rows(Path(folder, name), list(splits["test"]["text"]), rows)
        for side, workers in ways(arguments):
            found = measured(side, workers, arguments.model, Path(folder), arguments.rows)
            results["sides"].append({"side": side, "workers": workers, **found})
            print(f"{name_of(side, workers)}: {found['texts_per_second']:.0f} texts per second")
            if arguments.output_file:
                write_json(arguments.output_file, results)
        results["agree"] = agreement(Path(folder))
    if arguments.output_file:
        write_json(arguments.output_file, results)
    print(table(results))


def ways(arguments: ScaleArguments) -> Iterator[tuple[str, int | None]]:
    """Sides, and how many workers each has; `None`: one process with all threads."""
    for side in arguments.sides:
        yield from ((side, workers) for workers in (arguments.workers if side in ("daft", "ray") else [None]))


def write_rows(path: Path, texts: list[str], rows: int) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(itertools.islice(itertools.cycle(texts), rows)))


def measured(side: str, workers: int | None, model: str, folder: Path, rows: int) -> dict[str, Any]:
    """A side on the small file and on the large one -> its rate, and the peak of its memory in MB.

    Raises:
        SystemExit: it failed, or the large file took no longer.
    """
    small, _ = run_side(side, workers, model, folder / "quarter.csv")
    large, peak = run_side(side, workers, model, folder / "rows.csv")
    if large <= small:
        raise SystemExit(
            f"{name_of(side, workers)}: {rows:,} rows took {large:.1f} s and a quarter of them {small:.1f} s."
            " Give more --rows, or a machine that does nothing else."
        )
    rate = (rows - rows // 4) / (large - small)
    return {
        "texts_per_second": rate,
        "seconds": [small, large],
        "seconds_to_start": small - rows // 4 / rate,
        "peak_mb": peak,
    }


def run_side(side: str, workers: int | None, model: str, path: Path) -> tuple[float, float]:
    """A side as a process -> its seconds, and the peak of its memory in MB.

    Raises:
        SystemExit: it failed.
    """
    output = path.with_name(f"{path.stem}-{side}-{workers}.parquet")
    if side == "score":
        command = [__file__, "--model", model, "--only_score", str(path)]
    else:
        command = [str(EXAMPLES / (f"{side}.py" if side == "score_file" else f"score_{side}.py"))]
        command += ["--model", model, "--input", str(path), "--output", str(output), "--keep", "id"]
    if workers:
        command += ["--workers", str(workers), "--threads", "1"]
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name_of(side, workers)} failed with exit status {process.returncode}.")
    return time.perf_counter() - begin, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def plain_score(model: str, path: Path) -> None:
    """The child process of the side `score`: what a user would write. Keeps some results to compare."""
    labeller = Labeller(model)
    with path.open(encoding="utf-8", newline="") as file:
        texts = (row["text"] for row in csv.DictReader(file))
        results = score(labeller.model, labeller.tokenizer, texts, exit_policy=labeller.policy)
        kept = [[result["label"], result["exit_layer"]] for result in itertools.islice(results, KEPT)]
        for _ in results:
            pass
    write_json(path.with_suffix(".score.json"), kept)


def agreement(folder: Path) -> float | None:
    """Share of rows with the label and exit layer of the first side, over all sides; `None` for one side."""
    sides = [[tuple(one) for one in read_json(path)] for path in folder.glob("rows.score.json")]
    for path in sorted(folder.glob("rows-*.parquet")):
        table = pq.read_table(path, columns=["label", "exit_layer"]).slice(0, KEPT)
        sides.append(list(zip(*(column.to_pylist() for column in table.columns), strict=True)))
    if len(sides) < 2:
        return None
    return min(
        sum(one == other for one, other in zip(sides[0], side, strict=True)) / len(side) for side in sides[1:]
    )


def name_of(side: str, workers: int | None) -> str:
    if workers is None:
        return {"score": "`score`", "score_file": "score_file.py"}[side]
    return f"{side.capitalize()}, {workers} worker{'s' * (workers > 1)} of one thread"


def table(results: dict[str, Any]) -> str:
    """As Markdown."""
    lines = [
        "| what runs | texts/s | hours for a million | starts in | peak memory |",
        "|---|---|---|---|---|",
    ]
    for one in results["sides"]:
        name, rate = name_of(one["side"], one["workers"]), one["texts_per_second"]
        hours = 1e6 / rate / 3600
        lines.append(
            f"| {name} | {rate:,.0f} | {hours:.2f} | {one['seconds_to_start']:.0f} s |"
            f" {one['peak_mb']:,.0f} MB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
