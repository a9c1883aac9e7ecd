"""Cells of JSONL in tables: a column of one type is of that type; one of several, or of lists and objects,
holds each cell as JSON until it is written, so that a cell stays what stands there.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

AS_JSON = {b"romebert.cell": b"JSON"}  # metadata of a column whose cells are JSON
NUMBERS = {pa.int64(), pa.float64()}


def schema_of(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> pa.Schema:
    """What is in the columns of all rows -> a table's schema. A column of nothing is one of texts."""
    found: dict[str, set[Any]] = {name: set() for name in columns}
    for row in rows:
        for name, types in found.items():
            if row.get(name) is not None:
                types.add(_type_of(row[name]))
    return pa.schema([_field(name, types) for name, types in found.items()])


def _type_of(value: Any) -> pa.DataType | None:
    """Of one cell; `None` where it has to be kept as JSON."""
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if -(2**63) <= value < 2**63 else None
    return {str: pa.string(), float: pa.float64()}.get(type(value))


def _field(name: str, types: set[Any]) -> pa.Field:
    if types == NUMBERS:
        return pa.field(name, pa.float64())
    if len(types) > 1 or None in types:
        return pa.field(name, pa.string(), metadata=AS_JSON)
    return pa.field(name, next(iter(types), pa.string()))


def table_of(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows -> a table of this schema, which is `schema_of` these rows and others."""

    def cell(value: Any, field: pa.Field) -> Any:
        return _dumped(value) if _is_json(field) and value is not None else value

    arrays = [pa.array([cell(row.get(field.name), field) for row in rows], field.type) for field in schema]
    return pa.table(arrays, schema=schema)


def cells(table: pa.Table, name: str) -> list[Any]:
    """A column's cells, as they stood in the file."""
    values = table[name].to_pylist()
    if not _is_json(table.schema.field(name)):
        return values
    return [None if value is None else json.loads(value) for value in values]


def as_texts(table: pa.Table) -> pa.Table:
    """The same for files that hold columns of one type: cells that are JSON become texts, those that were
    texts the texts that they were.
    """
    for index, field in enumerate(table.schema):
        if _is_json(field):
            values = cells(table, field.name)
            texts = [value if value is None or isinstance(value, str) else _dumped(value) for value in values]
            table = table.set_column(index, pa.field(field.name, pa.string()), pa.array(texts, pa.string()))
    return table


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _is_json(field: pa.Field) -> bool:
    return AS_JSON.items() <= (field.metadata or {}).items()
