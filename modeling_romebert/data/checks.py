"""What is wrong with a dataset, said before the first step instead of in the middle of an epoch; and labels,
read for the model.

All labels are read where that is cheap: a column of a `datasets.Dataset`, a list of dicts. Of any other
dataset one row is looked at, of a stream of torch none, and of all every batch as it is made.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    DefaultDataCollator,
    default_data_collator,
)
from transformers.utils import logging

from ..configuration_romebert import ProblemType
from ..losses import IGNORED_LABEL
from ..token_spans import NO_WORD
from .labels import LABEL_COLUMNS, Label, LabelReader, say_ignored, take_class_names
from .token_labels import reader_for

logger = logging.get_logger(__name__)

MAKE_BATCHES = ("__call__", "torch_call")  # of a collator of transformers


def check_dataset(
    dataset: Any, name: str, config: Any, collator: Any = None, trains: bool = True, needs_labels: bool = True
) -> None:
    """Refuse a dataset that cannot be trained, or evaluated, on; and take the names of its classes where the
    model has none.

    Args:
        dataset: of any kind that a `Trainer` takes.
        name: of the argument, for the message.
        config: of the model.
        collator: what makes a batch. One that is not of transformers may make the labels itself: they are not
            looked for.
        trains: whether classes are to be learned from it: of one class only is then worth a word.
        needs_labels: whether it is of no use without labels.

    Raises:
        ValueError: no rows, no labels, or labels without exactly one meaning (labels.py).

    Example:
        >>> from modeling_romebert import RomeBertConfig
        >>> check_dataset([{"labels": 0}, {"labels": 1}], "train_dataset", RomeBertConfig(num_labels=2))
        >>> check_dataset([], "train_dataset", RomeBertConfig(num_labels=2))
        Traceback (most recent call last):
            ...
        ValueError: train_dataset has no rows; check the split, and the filters that made it.
    """
    if isinstance(dataset, Sized) and len(dataset) == 0:
        raise ValueError(f"{name} has no rows; check the split, and the filters that made it.")
    if isinstance(dataset, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise ValueError(
            f"{name} is a {type(dataset).__name__}; give one of its splits: {', '.join(dataset)}."
        )
    if not is_stock(collator):
        return
    take_class_names(config, dataset, name)
    # A transform may make the labels.
    in_columns = isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom"
    whole = in_columns or isinstance(dataset, list | tuple)
    rows = [] if in_columns else dataset if whole else _first_row(dataset)
    rows = [row for row in rows if isinstance(row, Mapping)]
    columns = dataset.column_names if in_columns else list(rows[0]) if rows else None
    if columns is None:
        return
    if not any(column in columns for column in LABEL_COLUMNS):
        if not needs_labels:
            return
        raise no_labels(name, columns)
    read = reader_for(config)
    labels = _labels_of_columns(dataset, read, name) if in_columns else _labels_of_rows(rows, read, name)
    if whole and read.problem_type == ProblemType.SINGLE_LABEL:
        classes = [(read.classes_of(label), count) for label, count in labels]
        ignored = sum(count for named, count in classes if not named)
        _check_classes({one for named, _ in classes for one in named}, len(dataset), name, trains)
        say_ignored(ignored, len(dataset), name)


def no_labels(name: str, columns: Iterable[Any]) -> ValueError:
    """What is said of a dataset that has none, and needs some."""
    return ValueError(
        f"{name} has no labels: its columns are {', '.join(map(str, columns))}. Name the one with the"
        " labels `labels` or `label`, with dataset.rename_column where it is a datasets.Dataset."
    )


def is_stock(collator: Any) -> bool:
    """Whether a collator is one of transformers that takes labels as they stand in the rows, or makes its
    batches as one does.
    """
    if collator in (None, default_data_collator):
        return True
    kinds = (DataCollatorWithPadding, DataCollatorForTokenClassification, DefaultDataCollator)
    return any(
        isinstance(collator, kind)
        and all(getattr(type(collator), name, None) is getattr(kind, name, None) for name in MAKE_BATCHES)
        for kind in kinds
    )


def _first_row(dataset: Any) -> Sequence[Any]:
    """The first row, or none of a stream of torch: it may have a row once only."""
    if isinstance(dataset, datasets.IterableDataset):
        return list(dataset.take(1))
    return [] if isinstance(dataset, IterableDataset) else [dataset[0]]


# Labels, each with how often it was found.
Counted = list[tuple[Label, int]]


def _labels_of_columns(dataset: datasets.Dataset, read: LabelReader, name: str) -> Counted:
    """Of one column of plain values each value is read once."""
    columns = [column for column in LABEL_COLUMNS if column in dataset.column_names]
    table = dataset.with_format("arrow", columns=columns)[:]
    values = table[columns[0]]
    if len(columns) == 1 and not pa.types.is_nested(values.type):
        found = [(entry["values"], entry["counts"]) for entry in values.value_counts().to_pylist()]
        try:
            return [(read(value, name), count) for value, count in found]
        except ValueError:
            pass  # which row it is, is found below
    return _labels_of_rows(table.to_pylist(), read, name)


def _labels_of_rows(rows: Sequence[Any], read: LabelReader, name: str) -> Counted:
    return [(read.of_row(row, f"{name}: row {number}")[1], 1) for number, row in enumerate(rows)]


def _check_classes(classes: set[Any], rows: int, name: str, trains: bool) -> None:
    if not classes:
        raise ValueError(
            f"{name}: every row has the label {IGNORED_LABEL}, which is none; there is nothing to learn or"
            " to judge."
        )
    if trains and len(classes) == 1 and rows > 1:
        logger.warning(
            f"{name}: every row is of class {classes.pop()}, so a model learns to say nothing else. Where"
            " rows are sorted by class, shuffle before taking a part of them, or split with"
            " train_test_split(stratify_by_column=...)."
        )


# ---- batches


class LabelCollator:
    """Makes batches with a collator of transformers, after reading the label of each row (labels.py).

    Args:
        collator: see `is_stock`.
        config: of the model.
        max_tokens: positions that the model has; `None` where any length runs.
        name: of the dataset, for messages.
        needs_labels: whether it is of no use without labels.

    Raises:
        ValueError: on making a batch: a label without exactly one meaning, or none where there has to be one;
            a row without tokens or with too many.
    """

    def __init__(
        self,
        collator: Callable[[list[Any]], Any],
        config: Any,
        max_tokens: int | None,
        name: str,
        needs_labels: bool = False,
    ):
        self.needs_labels = needs_labels
        self.collator, self.read, self.max_tokens, self.name = collator, reader_for(config), max_tokens, name
        self.of_tokens: bool = config.classifies_tokens

    def __call__(self, rows: list[Any]) -> Any:
        read = list(self._rows(rows))
        if not (self.of_tokens and read and all("word_ids" in row for row in read)):
            return self.collator(read)
        words = [row["word_ids"] for row in read]
        batch = self.collator([{key: row[key] for key in row if key != "word_ids"} for row in read])
        side = getattr(getattr(self.collator, "tokenizer", None), "padding_side", "right")
        return {**batch, "word_ids": padded_words(words, batch["input_ids"].shape[1], side)}

    def _rows(self, rows: list[Any]) -> Iterator[Any]:
        for number, row in enumerate(rows):
            where = f"{self.name}: row {number} of a batch"
            if not isinstance(row, Mapping):
                yield row
                continue
            if "input_ids" in row:
                check_length(row["input_ids"], self.max_tokens, where)
            if any(row.get(column) is not None for column in LABEL_COLUMNS):
                column, label = self.read.of_row(row, where)
                column = "labels" if self.of_tokens else column  # whose collator renames none
                row = {key: value for key, value in row.items() if key not in LABEL_COLUMNS} | {column: label}
            elif self.needs_labels and not any(column in row for column in LABEL_COLUMNS):
                raise no_labels(self.name, row)
            yield row


def padded_words(words: Sequence[Sequence[int]], longest: int, side: str) -> Tensor:
    """Words of each row's tokens -> (B, T), `NO_WORD` for padding.

    Example:
        >>> padded_words([[-1, 0, -1], [-1, 0, 0, 1, -1]], 5, "right")[0].tolist()
        [-1, 0, -1, -1, -1]
    """
    filled = [[NO_WORD] * (longest - len(of_row)) for of_row in words]
    pairs = zip(words, filled, strict=True)
    return torch.tensor([[*fill, *own] if side == "left" else [*own, *fill] for own, fill in pairs])


def check_length(input_ids: Any, max_tokens: int | None, where: str) -> None:
    """Refuse what is no list of token ids, an empty one, and one with more than there are positions for."""
    if input_ids is None or len(input_ids) == 0:
        raise ValueError(
            f"{where} has no tokens: its input_ids are {input_ids}. Leave such rows out with dataset.filter."
        )
    if isinstance(input_ids, str) or np.ndim(input_ids[0]) > 0:
        raise ValueError(
            f"{where} has input_ids of another shape than a list of token ids: {str(input_ids)[:60]}."
            " Tokenise one text per row."
        )
    tokens = len(input_ids)
    if max_tokens is not None and tokens > max_tokens:
        raise ValueError(
            f"{where} has {tokens} tokens, and the model has positions for {max_tokens}. Tokenise with"
            f" truncation=True, max_length={max_tokens}."
        )
