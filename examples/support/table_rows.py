"""Rows of a table's file as `calibrate` and `export_onnx` take them."""

from typing import Any

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
    number that it is: files of tables hold text.
    """
    if not isinstance(label, bool) and str(label) in config.label2id:
        return str(label)
    if not isinstance(label, str):
        return label
    try:
        number = float(label)
    except ValueError:
        return label  # which `calibrate` refuses, with the row
    return int(number) if number.is_integer() and config.problem_type != "regression" else number
