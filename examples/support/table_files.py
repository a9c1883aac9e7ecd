"""Files of labelled texts as people have them, CSV, TSV, JSON or JSONL -> rows, each with its place in the
file for messages.

Nothing is guessed: a CSV cell `NA` is the text NA, and an empty one is missing. What cannot be read in
exactly one way ends the program with the file, the row, the line, and what to do. Which columns are needed,
and what labels mean, is for the caller.
"""

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from modeling_romebert.data.labels import LabelReader
from modeling_romebert.losses import IGNORED_LABEL

KINDS = (".csv", ".tsv", ".json", ".jsonl")
# UTF-32 first: its mark begins as that of UTF-16 does.
MARKS = {
    **dict.fromkeys((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32"),
    **dict.fromkeys((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16"),
}
DELIMITERS = (",", ";", "\t", "|")
LONGEST_CELL = 2**31 - 1  # characters; the csv module stops at 131,072 unless told otherwise


class Table(NamedTuple):
    """Rows as they were found, and where."""

    origin: str  # what names the file in messages
    columns: list[str]
    rows: list[dict[str, Any]]
    lines: list[int] | None = (
        None  # where each row begins, counted from 1; `None` where rows are no lines of a file
    )
    has_header: bool = False

    def place(self, index: int) -> str:
        """The row with this index, for a message."""
        line = "" if self.lines is None else f" (line {self.lines[index]})"
        return f"{self.origin}: row {index + 1}{line}"

    def what_it_has(self) -> str:
        """The columns, after a message that misses one."""
        header = " The first line of the file names the columns." if self.has_header else ""
        return f"it has {', '.join(self.columns)}.{header}"

    def texts(self, column: str) -> list[str]:
        """A column of texts, as they stand there; numbers as they are written.

        Raises:
            SystemExit: a cell that is missing, empty, or no text.
        """
        texts = [str(value) for value in self._cells(column)]
        for index, text in enumerate(texts):
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise SystemExit(
                    f"{self.place(index)} has half a character in its {column}, {text[:60]!r}. Delete or"
                    " mend it."
                )
        return texts

    def labels(self, column: str = "label") -> list[Any]:
        """A column of labels: strings without the blanks around them, or what a JSON file has.

        Raises:
            SystemExit: a cell that is missing or empty, or holds several labels.
        """
        return [value.strip() if isinstance(value, str) else value for value in self._cells(column)]

    def _cells(self, column: str) -> list[Any]:
        values = [row.get(column) for row in self.rows]
        if missing := [index for index, value in enumerate(values) if _is_missing(value)]:
            others = f", and {len(missing) - 1} other rows have none" if len(missing) > 1 else ""
            raise SystemExit(
                f"{self.place(missing[0])} has no {column}{others}. Fill what is missing, or delete such"
                " rows."
            )
        for index, value in enumerate(values):
            if isinstance(value, list | dict):
                raise SystemExit(f"{self.place(index)} has {column} {value!r}; give one {column} per row.")
        return values


def _is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: null, a number that is none, or only blanks."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def refuse_unlabelled(origin: str, labels: Iterable[Any]) -> None:
    """Refuse rows to judge on of which none has a label.

    Args:
        labels: of each row, a class id, or those of its words; -100 is none.

    Raises:
        SystemExit: there is no other.
    """
    if not any(map(LabelReader.classes_of, labels)):
        raise SystemExit(
            f"{origin}: every row has the label {IGNORED_LABEL}, so there is nothing to judge on."
        )


def check_file(argument: str, path: str) -> None:
    """Refuse what is no file that can be read here.

    Raises:
        SystemExit: it is not there, or of another kind.
    """
    if Path(path).suffix.lower() not in KINDS or not Path(path).is_file():
        raise SystemExit(f"{argument} {path}: give an existing {', '.join(KINDS[:-1])} or {KINDS[-1]} file.")


def read_table(argument: str, path: str) -> Table:
    """A CSV or TSV file with a header, JSON with a list of objects, or JSONL.

    Args:
        argument: that named the file, for messages.
        path: of the file, in UTF-8, or in UTF-16 or UTF-32 with their mark.

    Raises:
        SystemExit: it cannot be read in exactly one way.
    """
    check_file(argument, path)
    origin, kind = f"{argument} {path}", Path(path).suffix.lower()
    text = _decoded(origin, Path(path).read_bytes())
    if not text.strip():
        raise SystemExit(f"{origin} is empty.")
    if kind in (".csv", ".tsv"):
        table = _csv_table(origin, text, "\t" if kind == ".tsv" else _delimiter(text))
    elif text.lstrip().startswith("["):
        table = _json_table(origin, text)
    else:
        table = _jsonl_table(origin, text)
    if not table.rows:
        raise SystemExit(f"{origin} holds {'a header and ' if table.has_header else ''}no rows.")
    return table


def _decoded(origin: str, content: bytes) -> str:
    encoding = next((encoding for mark, encoding in MARKS.items() if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            raise SystemExit(
                f"{origin} begins as {encoding} and goes on otherwise ({error.reason}). Save it as UTF-8."
            ) from None
        line = content.count(b"\n", 0, error.start) + 1
        before = content[: error.start].split(b"\n")[-1][-20:].decode("utf-8", errors="ignore")
        raise SystemExit(
            f"{origin}: line {line} is not UTF-8: byte 0x{content[error.start]:02x} after {before!r}. Save"
            " it as UTF-8; a file in Latin-1 becomes that with: iconv -f LATIN1 -t UTF-8 OLD > NEW"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise SystemExit(
            f"{origin}: line {line} holds a NUL character: it is no text, or UTF-16 without its mark. Save"
            " it as UTF-8."
        )
    return text


# ---- CSV


def _delimiter(text: str) -> str:
    """What separates the cells of the header, so that `label` is one of them."""
    first = text.lstrip().splitlines()[0]
    separated = {delimiter: [cell.strip(' "') for cell in first.split(delimiter)] for delimiter in DELIMITERS}
    return next(
        (delimiter for delimiter, cells in separated.items() if "label" in cells and len(cells) > 1), ","
    )


def _csv_table(origin: str, text: str, delimiter: str) -> Table:
    columns: list[str] | None = None
    rows, lines = [], []
    for line, cells in _csv_rows(origin, text, delimiter):
        if columns is None:
            columns = _header(origin, cells)
            continue
        rows.append(dict(zip(columns, cells, strict=False)))
        lines.append(line)
        if len(cells) != len(columns):
            raise SystemExit(
                f"{Table(origin, columns, rows, lines).place(len(rows) - 1)} has {len(cells)} cells, and"
                f" the header has {len(columns)} ({', '.join(columns)}). A cell with a {delimiter!r} or a"
                " line break in it needs quotes around it."
            )
    return Table(origin, [name for name in columns or [] if name], rows, lines, has_header=True)


def _csv_rows(origin: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows, and the line where each begins; blank lines are none."""
    with long_cells():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        line = 1
        try:
            for cells in reader:
                if len(cells) > 1 or (cells and cells[0].strip()):
                    yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            raise SystemExit(
                f"{origin}: the row that begins in line {line} cannot be read ({error}). A cell that begins"
                " with a quote ends"
                ' with one, and has those within it doubled: "a ""good"" film".'
            ) from None


@contextmanager
def long_cells() -> Iterator[None]:
    """Around a reader of the csv module: cells as long as they are."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _header(origin: str, cells: list[str]) -> list[str]:
    """Names of the columns. Those without a name, such as an index that pandas wrote, are let be."""
    columns = [cell.strip() for cell in cells]
    if twice := [name for name, count in Counter(columns).items() if count > 1 and name]:
        raise SystemExit(
            f"{origin} has more than one column {twice[0]!r}: its header is {', '.join(columns)}. Rename or"
            " delete one."
        )
    return columns


# ---- JSON


def _json_table(origin: str, text: str) -> Table:
    try:
        rows = json.loads(text, object_pairs_hook=_object)
    except ValueError as error:
        raise SystemExit(f"{origin} is no JSON: {error}.") from None
    return _table_of_objects(origin, rows, None)


def _jsonl_table(origin: str, text: str) -> Table:
    rows, lines = [], []
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            rows.append(json.loads(content, object_pairs_hook=_object))
        except ValueError as error:
            why = (
                f"{error.msg} at character {error.colno}"
                if isinstance(error, json.JSONDecodeError)
                else error
            )
            raise SystemExit(
                f"{origin}: line {line} is no JSON ({why}): {content.strip()[:60]!r}. Each line holds one"
                " object, {...}; a .json file may hold one list of objects, [{...}, {...}], instead."
            ) from None
        lines.append(line)
    return _table_of_objects(origin, rows, lines)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ValueError(f"it has the key {twice[0]!r} more than once")
    return dict(pairs)


def _table_of_objects(origin: str, rows: list[Any], lines: list[int] | None) -> Table:
    table = Table(
        origin,
        list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row)),
        rows,
        lines,
    )
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise SystemExit(f"{table.place(index)} is {str(row)[:60]!r}, no object with named columns.")
    return table
