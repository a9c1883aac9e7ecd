"""CSV, TSV, JSON, JSONL or Parquet files, or a dataset by its name -> tables of some rows each, streamed:
memory does not grow with what is read.

`datasets` reads. Nothing is guessed in CSV: every cell is the text that stands there, `NA` and `007` too.
"""

import csv
import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, IterableDataset, Value, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
COMPRESSED = (".gz", ".bz2", ".xz", ".zip", ".zst")
# What readers say of a file that cannot be read in one way.
UNREADABLE = (ValueError, pa.ArrowException, DatasetGenerationError, UnicodeDecodeError)


@dataclass
class RowSource:
    """Rows that are read from the beginning each time.

    Args:
        origin: what names them in messages.
        columns: that are read.
        identity: by which another input is told from this one.
        total: number of rows, where it is known without reading them.
    """

    origin: str
    columns: list[str]
    identity: dict[str, Any]
    total: int | None
    dataset: IterableDataset

    def tables(self, rows: int, begin: int = 0) -> Iterator[pa.Table]:
        """All rows in order, so many per table; the first `begin` tables are passed over.

        Raises:
            SystemExit: a file that cannot be read.
        """
        batches = self.dataset.with_format("arrow").iter(batch_size=rows)
        try:
            yield from islice(batches, begin, None)
        except UNREADABLE as error:
            raise SystemExit(f"{self.origin} cannot be read: {error}") from None


def open_rows(
    path: str, columns: Sequence[str], split: str = "train", subset: str | None = None
) -> RowSource:
    """Open files, or a dataset.

    Args:
        path: a file, a pattern such as `reviews-*.csv`, or the name of a dataset on the Hub.
        columns: to read.
        split, subset: of a dataset.

    Raises:
        SystemExit: there is nothing there, or a column is missing.
    """
    origin = f"--input {path}"
    files = sorted(glob.glob(path, recursive=True))
    if files:
        source = _of_files(origin, files, list(dict.fromkeys(columns)))
    elif kind_of(path) or Path(path).is_absolute():
        raise SystemExit(f"{origin}: there is no such file.")
    else:
        source = _of_dataset(origin, path, list(dict.fromkeys(columns)), split, subset)
    return source


def kind_of(path: str) -> str | None:
    """The reader of a file by its ending; `None` for an unknown one."""
    name = Path(path)
    suffix = name.suffixes[-2] if name.suffix in COMPRESSED and len(name.suffixes) > 1 else name.suffix
    return READERS.get(suffix.lower())


def _of_files(origin: str, files: list[str], columns: list[str]) -> RowSource:
    kinds = {kind_of(file) for file in files}
    if len(kinds) > 1 or None in kinds:
        raise SystemExit(f"{origin}: give files of one kind, {', '.join(READERS)}, compressed or not.")
    kind, settings = str(kinds.pop()), {}
    if kind == "csv":
        settings = _as_texts(origin, files)
    dataset = load_dataset(kind, data_files=files, split="train", streaming=True, **settings)
    total = sum(pq.read_metadata(file).num_rows for file in files) if kind == "parquet" else None
    states = [Path(file).stat() for file in files]
    identity = {
        "files": [
            {"name": file, "bytes": state.st_size, "changed": state.st_mtime_ns}
            for file, state in zip(files, states, strict=True)
        ]
    }
    return RowSource(origin, columns, identity, total, _with_columns(origin, dataset, columns))


def _as_texts(origin: str, files: list[str]) -> dict[str, Any]:
    """Settings of the CSV reader under which a cell is what stands in the file."""
    delimiter = "\t" if Path(files[0]).suffixes[0].lower() == ".tsv" else ","
    with fsspec.open(files[0], "rt", encoding="utf-8-sig", newline="", compression="infer") as file:
        header = next(csv.reader(file, delimiter=delimiter), [])
    if not header:
        raise SystemExit(f"{origin} is empty.")
    if len(set(header)) < len(header):
        raise SystemExit(f"{origin} has a column twice: its header is {', '.join(header)}. Rename one.")
    return {
        "features": Features({name: Value("string") for name in header}),
        "keep_default_na": False,
        "sep": delimiter,
        "encoding": "utf-8-sig",
    }


def _of_dataset(origin: str, name: str, columns: list[str], split: str, subset: str | None) -> RowSource:
    try:
        dataset = load_dataset(name, subset, split=split, streaming=True)
    except (DatasetNotFoundError, FileNotFoundError, ValueError, ConnectionError) as error:
        raise SystemExit(f"{origin}: there is no such file, and as a dataset: {error}") from None
    splits = dataset.info.splits or {}
    total = splits[split].num_examples if split in splits else None
    identity = {"dataset": name, "subset": subset, "split": split, "rows": total}
    return RowSource(origin, columns, identity, total, _with_columns(origin, dataset, columns))


def _with_columns(origin: str, dataset: IterableDataset, columns: list[str]) -> IterableDataset:
    names = dataset.column_names
    if names is None:  # JSON: the first row says
        try:
            names = list(next(iter(dataset), {}))
        except UNREADABLE as error:
            raise SystemExit(f"{origin} cannot be read: {error}") from None
    if missing := [name for name in columns if name not in names]:
        raise SystemExit(f"{origin} has no column {', '.join(missing)}; it has {', '.join(names)}.")
    return dataset.select_columns(columns)
