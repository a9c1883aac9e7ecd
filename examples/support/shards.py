"""Results in shards, each whole or not there, that become one file in the end: a run that is killed goes on
behind its last shard, and the file is byte for byte that of a run that was not.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from modeling_romebert.evaluation.provenance import write_json
from modeling_romebert.model_card import unfinished

from .json_cells import as_texts, cells
from .run_folder import SETTINGS, check_run_folder, open_run_folder


@dataclass
class Tally:
    """What is counted of results: rows, rows with an error, and rows by exit layer."""

    rows: int = 0
    errors: int = 0
    exits: Counter[int] = field(default_factory=Counter)

    def add(self, table: pa.Table) -> None:
        """Count a table with `exit_layer` and `error`."""
        self.rows += len(table)
        self.errors += len(table) - table["error"].null_count
        for count in pc.value_counts(table["exit_layer"].drop_null()).to_pylist():
            self.exits[count["values"]] += count["counts"]

    def cost(self, layers: int) -> float | None:
        """Layers run / layers, over the rows without an error; `None` where there are none."""
        classified = self.rows - self.errors
        return sum(layer * count for layer, count in self.exits.items()) / (classified * layers or 1) or None


class Shards:
    """The results of one run, kept in a folder beside the output while it lasts.

    Args:
        output: .parquet, .csv or .jsonl.
        settings: all that the content depends on; JSON.

    Raises:
        SystemExit: the output is there and of something else, or of no kind that can be written.
    """

    def __init__(self, output: Path, settings: dict[str, Any]):
        if output.suffix not in WRITERS:
            raise SystemExit(f"--output {output}: give a file that ends in {', '.join(WRITERS)}.")
        self.output, self.settings = output, settings
        self.folder = output.with_name(f"{output.name}.run")
        check_run_folder(self.folder, settings, "--output")
        if output.exists() and not (self.folder / SETTINGS).is_file():
            raise SystemExit(
                f"--output {output} exists, and not as the output of an unfinished run. Delete it, or give"
                " another; nothing was touched."
            )

    def open(self) -> int:
        """Make the folder -> how many shards are there, of an earlier run that was killed."""
        open_run_folder(self.folder, self.settings, "--output")
        count = 0
        while self._shard(count).is_file():
            count += 1
        return count

    def write(self, index: int, table: pa.Table) -> None:
        """Write shard 0, 1, ... in one step."""
        with unfinished(self._shard(index)) as there:
            pq.write_table(table, there)

    def read(self, count: int) -> Iterator[pa.Table]:
        """The first shards, one after the other."""
        return (pq.read_table(self._shard(index)) for index in range(count))

    def join(self, count: int) -> Tally:
        """All shards -> the output, in one step, and what is counted of it."""
        tally = Tally()
        if not self.output.exists():  # it does where the run was killed right behind this
            with unfinished(self.output) as there:
                _write(there, self.output.suffix, self.read(count))
        for table in self.read(count):
            tally.add(table)
        return tally

    def close(self, summary: dict[str, Any]) -> Path:
        """Write what is to be said of the run beside the output, and delete the shards -> the file."""
        path = self.output.with_name(f"{self.output.name}.summary.json")
        write_json(path, summary)
        # Renamed first: what a kill leaves of it is then no run that could be gone on with.
        gone = self.folder.rename(self.folder.with_name(f".{self.folder.name}.{os.getpid()}"))
        shutil.rmtree(gone)
        return path

    def _shard(self, index: int) -> Path:
        return self.folder / f"shard-{index:06}.parquet"


def _write(path: Path, suffix: str, tables: Iterator[pa.Table]) -> None:
    """Tables of one schema, at least one -> a file. JSONL alone holds cells of several types in a column."""
    if suffix != ".jsonl":
        tables = map(as_texts, tables)
    first = next(tables)
    with WRITERS[suffix](path, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


class JsonLinesWriter:
    """As the writers of pyarrow, one JSON object per row."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._file = path.open("w", encoding="utf-8", newline="\n")

    def __enter__(self) -> "JsonLinesWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def write_table(self, table: pa.Table) -> None:
        for start in range(0, len(table), 4096):
            here = table.slice(start, 4096)
            columns = {name: cells(here, name) for name in here.column_names}
            for row in zip(*columns.values(), strict=True):
                line = json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False, default=str)
                self._file.write(f"{line}\n")


WRITERS: dict[str, Any] = {".parquet": pq.ParquetWriter, ".csv": pa_csv.CSVWriter, ".jsonl": JsonLinesWriter}
