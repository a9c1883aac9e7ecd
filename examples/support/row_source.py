"""CSV, TSV, JSON, JSONL or Parquet files, or a dataset by its name -> tables of some rows each, streamed:
memory does not grow with what is read.

`datasets` reads all but JSONL. Nothing is guessed: in CSV every cell is the text that stands there, `NA` and
`007` too.
"""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, IterableDataset, Value, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from support.json_cells import schema_of, table_of
from support.table_files import long_cells

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
        read: number of rows -> tables of so many, from the beginning.
    """

    origin: str
    columns: list[str]
    identity: dict[str, Any]
    total: int | None
    read: Callable[[int], Iterable[pa.Table]]

    def tables(self, rows: int, begin: int = 0) -> Iterator[pa.Table]:
        """All rows in order, so many per table; the first `begin` tables are passed over.

        Raises:
            SystemExit: a file that cannot be read.
        """
        schema: pa.Schema | None = None  # of the first table, and so of all
        try:
            for number, table in enumerate(self.read(rows)):
                schema = schema or _without_nulls(table.schema)
                if number >= begin:
                    yield table.cast(schema)
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
    if kind_of(path):
        return _of_files(origin, files_of(path), list(dict.fromkeys(columns)))
    return _of_dataset(origin, path, list(dict.fromkeys(columns)), split, subset)


def files_of(path: str) -> list[str]:
    """A file, a pattern, or either in an object store -> the files, in order of their names.

    Raises:
        SystemExit: there are none, or not all can be read in one way.
    """
    if kind_of(path) is None:
        raise SystemExit(f"--input {path}: give {', '.join(READERS)} files, compressed or not.")
    system, pattern = fsspec.core.url_to_fs(path)
    files = sorted(system.glob(pattern))
    if not files:
        raise SystemExit(f"--input {path}: there is no such file.")
    return [system.unstrip_protocol(file) for file in files] if "://" in path else _as_given(path, files)


def _as_given(path: str, files: list[str]) -> list[str]:
    """Local files with names relative to the present folder, where the pattern was."""
    return files if Path(path).is_absolute() else [os.path.relpath(file) for file in files]


def kind_of(path: str) -> str | None:
    """The reader of a file by its ending; `None` for an unknown one."""
    return READERS.get(_ending(path))


def _ending(path: str) -> str:
    """The ending of a file's name, in small letters and without that of a compressed one."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if len(suffixes) > 1 and suffixes[-1] in COMPRESSED:
        return suffixes[-2]
    return suffixes[-1] if suffixes else ""


def _of_files(origin: str, files: list[str], columns: list[str]) -> RowSource:
    kind, settings = str(kind_of(files[0])), {}
    if kind == "csv":
        settings = csv_settings(origin, files[0])
        _check_cells(origin, files)
    if _ending(files[0]) == ".jsonl":
        read = _of_lines(origin, files, columns)
    else:
        dataset = load_dataset(kind, data_files=files, split="train", streaming=True, **settings)
        read = _with_columns(origin, dataset, columns)
    total = sum(_rows_of(file) for file in files) if kind == "parquet" else None
    return RowSource(origin, columns, identity_of_files(files), total, read)


def _of_lines(origin: str, files: list[str], columns: list[str]) -> Callable[[int], Iterable[pa.Table]]:
    """JSONL, whose cells stay what stands there (json_cells.py); read twice, the first time for the types.

    The reader of `datasets` guesses these by the first lines, also of columns that nobody reads, and takes
    texts for dates.
    """
    try:
        _check_columns(origin, list(next(_objects(files), {})), columns)
    except UNREADABLE as error:
        raise SystemExit(f"{origin} cannot be read: {error}") from None

    def read(rows: int) -> Iterator[pa.Table]:
        schema = schema_of(_objects(files), columns)
        objects = _objects(files)
        while here := list(islice(objects, rows)):
            yield table_of(here, schema)

    return read


def _objects(files: Sequence[str]) -> Iterator[dict[str, Any]]:
    """JSONL files -> a dict per line."""
    for path in files:
        with fsspec.open(path, "rt", encoding="utf-8-sig", compression="infer") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from None
                if not isinstance(row, dict):
                    raise ValueError(f"{path}, line {number} is no object: {line[:60]!r}")
                yield row


def _without_nulls(schema: pa.Schema) -> pa.Schema:
    """Columns that hold nothing yet will hold texts, or nothing."""
    return pa.schema(
        [field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in schema]
    )


def _rows_of(file: str) -> int:
    """Of a Parquet file, which says so."""
    with fsspec.open(file) as opened:
        return pq.read_metadata(opened).num_rows


def identity_of_files(files: Sequence[str]) -> dict[str, Any]:
    """What files are told by: name, size and time of the last change."""
    states = [(file, fsspec.core.url_to_fs(file)) for file in files]
    return {
        "files": [
            {"name": file, "bytes": system.size(path), "changed": str(system.modified(path))}
            for file, (system, path) in states
        ]
    }


def csv_settings(origin: str, path: str) -> dict[str, Any]:
    """Settings of the CSV reader of `datasets` under which a cell is what stands in the file.

    Raises:
        SystemExit: it has no header that names each column once.
    """
    with _csv_rows(origin, path) as rows:
        header = next(rows, [])
    if not header:
        raise SystemExit(f"{origin}: {path} is empty.")
    if len(set(header)) < len(header):
        raise SystemExit(f"{origin} has a column twice: its header is {', '.join(header)}. Rename one.")
    # A column without a name, as of row numbers, has the one that the reader makes up.
    names = [name or f"Unnamed: {index}" for index, name in enumerate(header)]
    return {
        "features": Features({name: Value("string") for name in names}),
        "keep_default_na": False,
        "sep": _delimiter(path),
        "encoding": "utf-8-sig",
    }


def _check_cells(origin: str, files: Sequence[str]) -> None:
    """Refuse CSV files of different headers, and rows with more or fewer cells than theirs: the reader takes
    the first cells of too many for row numbers, and makes up the last of too few.
    """
    header: list[str] | None = None  # of the first file, and so of all
    for path in files:
        with _csv_rows(origin, path) as rows:
            found = next(rows, [])
            header = found if header is None else header
            if found != header:
                raise SystemExit(
                    f"{origin}: the header of {path} is {', '.join(found)}, and that of {files[0]} is"
                    f" {', '.join(header)}. Give files with the same columns."
                )
            for row in rows:
                if row and len(row) != len(header):
                    raise SystemExit(
                        f"{origin}: the row of {path} that ends in line {rows.line_num} has {len(row)} cells,"
                        f" and the header {len(header)}. Put cells with a {_delimiter(path)!r} in them into"
                        " double quotes, or mend the row."
                    )


@contextmanager
def _csv_rows(origin: str, path: str) -> Iterator[Any]:
    """The reader of the csv module over a file."""
    opened = fsspec.open(path, "rt", encoding="utf-8-sig", newline="", compression="infer")
    try:
        with long_cells(), opened as file:
            yield csv.reader(file, delimiter=_delimiter(path))
    except (csv.Error, UnicodeDecodeError) as error:
        raise SystemExit(f"{origin}: {path} cannot be read: {error}") from None


def _delimiter(path: str) -> str:
    return "\t" if _ending(path) == ".tsv" else ","


def _of_dataset(origin: str, name: str, columns: list[str], split: str, subset: str | None) -> RowSource:
    try:
        dataset = load_dataset(name, subset, split=split, streaming=True)
    except (DatasetNotFoundError, FileNotFoundError, ValueError, ConnectionError) as error:
        raise SystemExit(f"{origin}: there is no such file, and as a dataset: {error}") from None
    splits = dataset.info.splits or {}
    total = splits[split].num_examples if split in splits else None
    identity = {"dataset": name, "subset": subset, "split": split, "rows": total}
    return RowSource(origin, columns, identity, total, _with_columns(origin, dataset, columns))


def _with_columns(
    origin: str, dataset: IterableDataset, columns: list[str]
) -> Callable[[int], Iterable[pa.Table]]:
    names = dataset.column_names
    if names is None:  # JSON: the first row says
        try:
            names = list(next(iter(dataset), {}))
        except UNREADABLE as error:
            raise SystemExit(f"{origin} cannot be read: {error}") from None
    _check_columns(origin, names, columns)
    chosen = dataset.select_columns(columns).with_format("arrow")
    return lambda rows: chosen.iter(batch_size=rows)


def _check_columns(origin: str, names: Sequence[str], columns: Sequence[str]) -> None:
    if missing := [name for name in columns if name not in names]:
        raise SystemExit(f"{origin} has no column {', '.join(missing)}; it has {', '.join(names)}.")
