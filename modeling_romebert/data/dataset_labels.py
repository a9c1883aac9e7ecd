"""The labels of a dataset, read before anything is trained on it."""

from collections.abc import Mapping, Sequence, Sized
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from .labels import LABEL_COLUMNS, LabelReader
from .token_labels import TokenLabelReader


def read_labels(dataset: Any, read: LabelReader, most: int | None = None) -> Tensor | None:
    """Labels of a dataset as the model takes them: (N,) or (N, C), those of tokens one after another (N,).
    `None` where they cannot be read beforehand: there is no such column, or no end.

    Args:
        read: of one row.
        most: of the rows, the same in every process; all when left out.

    Raises:
        ValueError: a label that has no meaning.

    Example:
        >>> from modeling_romebert import RomeBertConfig
        >>> read = LabelReader(RomeBertConfig(num_labels=1))
        >>> read_labels([{"label": number / 2} for number in range(3)], read)
        tensor([0.0000, 0.5000, 1.0000])
    """
    if not isinstance(dataset, Sized) or isinstance(dataset, IterableDataset):
        return None
    numbers: Sequence[int] = range(len(dataset))
    if most is not None and len(numbers) > most:
        numbers = sorted(np.random.default_rng(0).choice(len(numbers), most, replace=False).tolist())
    rows: Any
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
        columns = [name for name in LABEL_COLUMNS if name in dataset.column_names]
        rows = dataset.select_columns(columns).with_format(None).select(numbers) if columns else ()
    else:
        rows = [dataset[number] for number in numbers]  # type: ignore[index]
    if not rows or not all(
        isinstance(row, Mapping) and any(name in row for name in LABEL_COLUMNS) for row in rows
    ):
        return None
    labels: list[Any] = [
        read.of_row(row, f"train_dataset: row {number}")[1] for number, row in zip(numbers, rows, strict=True)
    ]
    if isinstance(read, TokenLabelReader):
        return torch.tensor([one for of_row in labels for one in of_row])
    return torch.tensor(labels)
