"""Rows of a table's file as `calibrate` and `export_onnx` take them."""

from typing import Any

from modeling_romebert.configuration_romebert import ProblemType
from modeling_romebert.losses import IGNORED_LABEL

from .table_files import Table


def rows_of(table: Table, model: Any) -> list[dict[str, Any]]:
    """The file's rows: `text`, and where there are such columns `text_pair` and `labels`."""
    if "text" not in table.columns:
        raise SystemExit(f"{table.origin} has no column text; {table.what_it_has()}")
    columns = {name: table.texts(name) for name in ("text", "text_pair") if name in table.columns}
    if "label" in table.columns:
        columns["labels"] = [as_label(label, model.config) for label in table.labels()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def as_label(label: Any, config: Any) -> Any:
    """A cell -> a class name of the model, also one that is a number, as training made names of them; or the
    number that it is: files of tables hold text, and write 1 as 1.0 where a column has gaps.

    What may be a class of several meanings stays as it stands, and `calibrate` refuses it, with the row.
    """
    if isinstance(label, bool):
        return label
    if str(label) in config.label2id:
        return str(label)
    try:
        number = float(label)
    except (TypeError, ValueError):
        return label
    if config.problem_type == ProblemType.REGRESSION or not number.is_integer():
        return number
    whole = int(number)
    if str(whole) in config.label2id:
        return str(whole)
    names_are_numbers = any(name.lstrip("-").isdecimal() for name in config.label2id)
    return str(label) if names_are_numbers and whole != IGNORED_LABEL else whole
