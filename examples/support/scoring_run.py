"""One scoring run, whatever scores: arguments, shards that are written as they come, one output, a summary.

    rows -> [ engine: rows with labels, in order ] -> shards -> output, summary

The engines are one process (score_file.py), Daft (score_daft.py) and Ray (score_ray.py).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from tqdm.auto import tqdm

from modeling_romebert import RomeBertConfig
from modeling_romebert.certificate import certificate_of, sentence
from modeling_romebert.evaluation.provenance import provenance
from modeling_romebert.onnx.bundle import MANIFEST, Manifest

from .labelling import RESULTS, identity_of
from .shards import Shards, Tally

# Rows that are labelled already -> tables of the others with labels, in order, of any size.
Engine = Callable[[int], Iterator[pa.Table]]


@dataclass
class ScoringArguments:
    """What is scored, and where the results go."""

    model: str = field(metadata={"help": "Folder of a saved model, or of a bundle of ONNX."})
    input: str = field(
        metadata={"help": "CSV, TSV, JSONL or Parquet: a file, or a pattern of names in quotes."}
    )
    output: str = field(metadata={"help": "File to write: .parquet, .csv or .jsonl."})
    text_column: str = field(default="text", metadata={"help": "Column of the texts."})
    pair_column: str | None = field(default=None, metadata={"help": "Column of their seconds, for pairs."})
    keep: list[str] = field(default_factory=list, metadata={"help": "Columns to copy to the output."})
    exit_threshold: float | None = field(default=None, metadata={"help": "In place of the calibrated one."})
    batch_tokens: int | None = field(default=None, metadata={"help": "Tokens of a batch; see `score`."})
    dtype: str | None = field(default=None, metadata={"help": "float32, bfloat16 or float16."})
    shard_rows: int = field(
        default=32768, metadata={"help": "Rows of a shard: the work that a kill of the program can cost."}
    )

    @property
    def columns(self) -> list[str]:
        """That are read."""
        pair = [self.pair_column] if self.pair_column else []
        return list(dict.fromkeys([self.text_column, *pair, *self.keep]))

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            SystemExit: an argument is wrong.
        """
        if clash := sorted({*self.keep} & {*RESULTS.names}):
            raise SystemExit(
                f"--keep {' '.join(clash)}: the output has columns of that name; rename the input's."
            )
        if len(set(self.keep)) < len(self.keep):
            raise SystemExit(f"--keep {' '.join(self.keep)}: name each column once.")
        if self.shard_rows < 1:
            raise SystemExit(f"--shard_rows {self.shard_rows}: give a number from 1.")

    def settings(self, source: dict[str, Any], engine: dict[str, Any]) -> dict[str, Any]:
        """All that the bytes of the output depend on: what is read, by what, and the choices here."""
        names = (
            "text_column",
            "pair_column",
            "keep",
            "exit_threshold",
            "batch_tokens",
            "dtype",
            "shard_rows",
        )
        return {
            **{name: getattr(self, name) for name in names},
            "model": identity_of(self.model),
            "input": source,
            "engine": engine,
            "versions": {**provenance()["versions"], "pyarrow": pa.__version__},
        }


@dataclass
class WorkerArguments(ScoringArguments):
    """What is scored, by how many workers, and where the results go."""

    workers: int = field(default=2, metadata={"help": "Processes, each with the model."})
    threads: int | None = field(
        default=None,
        metadata={"help": "CPU threads of a worker; those of this machine shared out if left out."},
    )
    batch_rows: int = field(default=4096, metadata={"help": "Rows that a worker is handed at once."})
    ray: str | None = field(
        default=None, metadata={"help": "Address of a Ray cluster; this machine if left out."}
    )

    def check(self) -> None:
        """As of `ScoringArguments`; also the model is looked at, which workers open later."""
        super().check()
        try:
            config_of(self.model)
        except OSError as error:
            raise SystemExit(f"--model {self.model}: {error}") from None

    @property
    def threads_each(self) -> int:
        """CPU threads of a worker."""
        return self.threads or max(1, torch.get_num_threads() // self.workers)

    def engine(self, **version: str) -> dict[str, Any]:
        """What scores, as `settings` takes it."""
        return {
            **version,
            "workers": self.workers,
            "threads": self.threads_each,
            "batch_rows": self.batch_rows,
        }


def run(
    arguments: ScoringArguments,
    settings: dict[str, Any],
    engine: Engine,
    total: int | None = None,
    resumes: bool = True,
) -> dict[str, Any]:
    """Go on with a run, or begin it, up to its output -> the summary, which is also printed and written.

    Args:
        arguments: checked.
        settings: by which an earlier run is known as the same one.
        engine: labels what is left.
        total: rows of the input, where known.
        resumes: the engine can begin behind the first rows; else all are labelled anew.

    Raises:
        SystemExit: the output is there, or is that of other settings; the input has no rows.
    """
    shards = Shards(Path(arguments.output), settings)
    begin = shards.open()
    if not resumes:
        begin = 0
    if begin:
        print(f"{begin} shards of {arguments.shard_rows:,} rows are there already; going on behind them.")
    done, count, pace = begin * arguments.shard_rows, begin, Pace()
    with tqdm(total=total, initial=done, desc="scoring", unit=" rows") as bar:
        for table in in_shards(pace.kept(engine(done), bar), arguments.shard_rows):
            shards.write(count, table)
            count += 1
    if not count:
        raise SystemExit(f"--input {arguments.input} has no rows.")
    summary = summary_of(shards.join(count), arguments, pace)
    print(in_words(summary, arguments.output))
    print(f"The same as data: {shards.close(summary)}")
    return summary


def with_labels(rows: pa.Table, results: pa.Table, keep: list[str]) -> pa.Table:
    """Rows and their results -> the columns to keep, with those of the results."""
    kept = rows.select(keep)
    return pa.table([*kept.columns, *results.columns], schema=pa.schema([*kept.schema, *results.schema]))


def in_shards(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Tables of any size -> tables of so many rows each, but for the last.

    Example:
        >>> tables = [pa.table({"n": [1, 2, 3]}), pa.table({"n": [4, 5]})]
        >>> [table["n"].to_pylist() for table in in_shards(iter(tables), 2)]
        [[1, 2], [3, 4], [5]]
    """
    waiting: list[pa.Table] = []
    for table in tables:
        while table is not None and sum(map(len, waiting)) + len(table) >= rows:
            missing = rows - sum(map(len, waiting))
            yield pa.concat_tables([*waiting, table.slice(0, missing)]).combine_chunks()
            waiting, table = [], table.slice(missing) if len(table) > missing else None
        if table is not None and len(table):
            waiting.append(table)
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


class Pace:
    """How many rows a run has labelled, and in which time."""

    def __init__(self) -> None:
        self.rows, self._begin = 0, time.perf_counter()
        self.seconds = 0.0

    def kept(self, tables: Iterator[pa.Table], bar: Any) -> Iterator[pa.Table]:
        """The same tables, counted, also on a progress bar."""
        for table in tables:
            self.rows += len(table)
            bar.update(len(table))
            yield table
        self.seconds = time.perf_counter() - self._begin

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "rows_of_this_run": self.rows,
            "seconds_of_this_run": self.seconds,
            "texts_per_second": self.rows / self.seconds if self.rows else None,
        }


def config_of(folder: str) -> tuple[Any, list[int]]:
    """A folder of a model or a bundle -> its config, and the layers with an exit; no weights are read."""
    config = RomeBertConfig.from_pretrained(folder)
    if not Path(folder, MANIFEST).is_file():
        return config, list(config.exit_layers)
    manifest = Manifest.load(Path(folder))
    config.exit_policy, config.calibration = manifest.exit_policy, manifest.calibration
    return config, manifest.exit_layers


def certificate_for(arguments: ScoringArguments, config: Any) -> dict[str, Any] | None:
    """What was promised of a run: nothing of another threshold, or in another precision."""
    certificate = certificate_of(config)
    if certificate is None or arguments.exit_threshold is not None:
        return None
    ran_in = arguments.dtype or certificate.get("precision")
    return certificate if ran_in == certificate.get("precision") else None


def summary_of(tally: Tally, arguments: ScoringArguments, pace: Pace) -> dict[str, Any]:
    """What there is to say of a finished run, as data."""
    config, exit_layers = config_of(arguments.model)
    certificate = certificate_for(arguments, config)
    return {
        "rows": tally.rows,
        "errors": tally.errors,
        "exits": {str(layer): tally.exits[layer] for layer in sorted(tally.exits)},
        "layers": exit_layers[-1],
        "cost": tally.cost(exit_layers[-1]),
        **pace.summary(),
        "certificate": None if certificate is None else sentence(certificate),
        **provenance(),
    }


def in_words(summary: dict[str, Any], output: str) -> str:
    """The summary as a paragraph and a table."""
    failed = f", {summary['errors']:,} of them with an error" if summary["errors"] else ""
    words = [f"{summary['rows']:,} rows are in {output}{failed}."]
    if summary["rows_of_this_run"]:
        words.append(
            f"This run scored {summary['rows_of_this_run']:,} in {summary['seconds_of_this_run']:.1f} s,"
            f" {summary['texts_per_second']:,.0f} texts per second, reading and writing included."
        )
    if summary["cost"]:
        words.append(f"A text ran {summary['cost']:.0%} of the {summary['layers']} layers on average:")
    classified = summary["rows"] - summary["errors"]
    lines = [
        f"  exit after layer {layer}: {count / classified:6.1%}" for layer, count in summary["exits"].items()
    ]
    promise = summary["certificate"] or (
        "No certificate is of this exit policy in this precision: examples/calibrate.py makes one."
    )
    return "\n".join([" ".join(words), *lines, promise])
