"""What is wrong with a dataset's labels, said before the first step instead of in the middle of an epoch.

All labels are read where that is cheap: a column of a `datasets.Dataset`, a list of dicts. Of any other dataset one row is looked
at, and the loss checks every batch (losses.py).
"""

from collections.abc import Iterable, Mapping, Sized
from itertools import islice
from numbers import Real
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import DataCollatorWithPadding, DefaultDataCollator, default_data_collator

from .losses import IGNORED_LABEL, check_labels, infer_problem_type

LABEL_COLUMNS = ("labels", "label", "label_ids")  # as the collators of transformers know them


def check_dataset(
    dataset: Any, name: str, num_labels: int, problem_type: str | None = None, collator: Any = None, trains: bool = True
) -> None:
    """Refuse a dataset that cannot be trained, or evaluated, on.

    Args:
        dataset: of any kind that a `Trainer` takes.
        name: of the argument, for the message.
        num_labels: how many classes the model has.
        problem_type: of the model; `None` leaves it to the labels.
        collator: what makes a batch. One that is not of transformers may make the labels itself: they are not looked for.
        trains: whether classes are to be learned from it, which takes two.

    Raises:
        ValueError: no rows, no labels, labels that are not numbers or out of range, or one class only.

    Example:
        >>> check_dataset([{"labels": 0}, {"labels": 1}], "train_dataset", num_labels=2)
        >>> check_dataset([], "train_dataset", num_labels=2)
        Traceback (most recent call last):
            ...
        ValueError: train_dataset has no rows; check the split, and the filters that made it.
    """
    if isinstance(dataset, Sized) and len(dataset) == 0:
        raise ValueError(f"{name} has no rows; check the split, and the filters that made it.")
    if not (collator in (None, default_data_collator) or isinstance(collator, DataCollatorWithPadding | DefaultDataCollator)):
        return
    values, whole = _label_values(dataset, name)
    if not values:
        return
    for value in values:
        _check_is_number(value, name, num_labels)
    labels = _stacked(values, name)
    problem_type = problem_type or infer_problem_type(num_labels, labels)
    try:
        check_labels(labels, problem_type, num_labels)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if whole and trains and problem_type == "single_label_classification":
        _check_two_classes(labels, name)


def _label_values(dataset: Any, name: str) -> tuple[list[Any], bool]:
    """Labels, and whether they are all that the dataset has; of a column of numbers each value once."""
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":  # a transform may make the labels
        column = _label_column(dataset.column_names, name)
        values = dataset.with_format("arrow", columns=[column])[:][column]
        nested = str(values.type).startswith(("list", "large_list", "fixed_size_list"))
        return (values if nested else values.unique()).to_pylist(), True
    whole = isinstance(dataset, list | tuple)
    rows = dataset if whole else _first_row(dataset)
    if not all(isinstance(row, Mapping) for row in rows):
        return [], False
    column = _label_column(rows[0], name) if rows else ""
    return [row.get(column) for row in rows], whole


def _first_row(dataset: Any) -> list[Any]:
    """The first row, or none where it could be looked at once only."""
    if not isinstance(dataset, IterableDataset | datasets.IterableDataset):
        return [dataset[0]]
    rows = iter(dataset)
    return [] if rows is iter(dataset) else list(islice(rows, 1))


def _label_column(columns: Iterable[str], name: str) -> str:
    found = [column for column in LABEL_COLUMNS if column in columns]
    if not found:
        raise ValueError(
            f"{name} has no labels: its columns are {', '.join(columns)}. Name the one with the labels `labels` or `label`, with"
            " dataset.rename_column where it is a datasets.Dataset."
        )
    return found[0]


def _check_is_number(label: Any, name: str, num_labels: int) -> None:
    if label is None:
        raise ValueError(f"{name} has rows whose label is None; leave them out with dataset.filter, or label them {IGNORED_LABEL}.")
    value = label[0] if isinstance(label, list | tuple) and label else label
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real | np.ndarray | Tensor):
        raise ValueError(
            f"{name} has labels of type {type(value).__name__}, such as {value!r}; training takes class ids 0..{num_labels - 1}."
            " Map them with dataset.class_encode_column, or row by row with config.label2id."
        )


def _stacked(labels: list[Any], name: str) -> Tensor:
    """Labels (N,), or (N, C) where each is a list."""
    try:
        return torch.stack([torch.as_tensor(label) for label in labels]) if _nested(labels[0]) else torch.tensor(labels)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} has labels that differ in length; every row takes one entry per label.") from error


def _nested(label: Any) -> bool:
    return isinstance(label, list | tuple | np.ndarray | Tensor)


def _check_two_classes(labels: Tensor, name: str) -> None:
    classes = labels[labels != IGNORED_LABEL].unique().tolist()
    if len(classes) < 2:
        found = f"is of class {classes[0]}" if classes else f"has the label {IGNORED_LABEL}, which is none"
        raise ValueError(
            f"{name}: every row {found}; there is nothing to tell apart. Where rows are sorted by class, shuffle before taking a"
            " part of them, or split with train_test_split(stratify_by_column=...)."
        )
