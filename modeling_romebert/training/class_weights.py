"""Class weights: what `class_weights` of the arguments stands for, and weights that balance the classes of a
dataset.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from ..configuration_romebert import ProblemType
from ..data.checks import is_stock
from ..data.dataset_labels import read_labels
from ..data.labels import LABEL_COLUMNS, LabelReader
from ..data.token_labels import reader_for
from ..losses import IGNORED_LABEL, check_class_weights

logger = logging.get_logger(__name__)

BALANCED = "balanced"
FORMS = f"give one number, 0 or more, per class, or {BALANCED!r}"


def parse_class_weights(given: Any) -> str | tuple[float, ...] | None:
    """`class_weights` as a command line, a file, a search or a caller gives it -> `"balanced"`, one number
    per class, or `None`.

    A search casts a value to the type of the one before it: numbers may come as one text, and a word as a
    list of its letters.

    Raises:
        ValueError: it is neither.

    Example:
        >>> [parse_class_weights(given) for given in (["0.3", "0.7"], "[0.3, 0.7]", ["balanced"])]
        [(0.3, 0.7), (0.3, 0.7), 'balanced']
    """
    if isinstance(given, np.ndarray | Tensor):
        given = given.tolist()
    if given is None or given == "None":
        return None
    if not isinstance(given, str | list | tuple):
        raise ValueError(f"class_weights={given!r} is a {type(given).__name__}; {FORMS}.")
    if isinstance(given, list | tuple) and given and all(isinstance(part, str) for part in given):
        given = ("" if all(len(part) == 1 for part in given) and "b" in given else " ").join(given)
    if isinstance(given, str):
        if given.strip() == BALANCED:
            return BALANCED
        given = given.strip("[]() ").replace(",", " ").split()
    try:
        weights = tuple(map(float, given))
    except (TypeError, ValueError):
        raise ValueError(f"class_weights={given!r} is unknown; {FORMS}.") from None
    if not (all(0 <= weight < float("inf") for weight in weights) and any(weights)):
        raise ValueError(
            f"class_weights={list(weights)} are not finite numbers of 0 or more, some of them above 0;"
            f" {FORMS}."
        )
    return weights


def resolve_class_weights(given: Any, dataset: Any, config: Any) -> tuple[float, ...] | None:
    """What the arguments say -> one number per class, or `None`.

    Args:
        given: `class_weights` of the arguments.
        dataset: that is trained on, from whose labels balanced weights are counted.
        config: of the model.

    Raises:
        ValueError: weights for a regression, not one for each class, or labels that cannot be counted.
    """
    weights = parse_class_weights(given)
    if weights is None:
        return None
    read = reader_for(config)
    problem_type = "regression" if config.num_labels == 1 else read.problem_type
    if weights == BALANCED:
        if problem_type == ProblemType.REGRESSION:
            raise ValueError(
                f"class_weights={BALANCED!r} is given, but a regression has no classes; leave it out."
            )
        labels = all_labels(dataset, read)
        weights = balanced_weights(labels, config.num_labels, str(read.problem_type), config.id2label)
    assert not isinstance(weights, str)
    check_class_weights(weights, problem_type, config.num_labels)
    return weights


class ClassWeights:
    """`resolve_class_weights`, which counts again only when what is asked for, or of what data, has changed.
    Without data, balanced weights are those of the training before.
    """

    def __init__(self) -> None:
        self._asked: Any = None
        self._dataset: Any = None
        self._weights: tuple[float, ...] | None = None

    def __call__(self, given: Any, dataset: Any, config: Any, collator: Any) -> tuple[float, ...] | None:
        asked = (str(given), config.problem_type, config.num_labels)
        if asked != self._asked or dataset is not self._dataset:
            if dataset is not None and parse_class_weights(given) == BALANCED and not is_stock(collator):
                logger.warning(
                    f"class_weights={BALANCED!r} is counted from the labels of train_dataset as they stand,"
                    f" and data_collator, a {type(collator).__name__}, may make others of them: give one"
                    " number per class if it does."
                )
            if dataset is None and parse_class_weights(given) == BALANCED:
                given = config.class_weights or given
            self._weights = resolve_class_weights(given, dataset, config)
            self._asked, self._dataset = asked, dataset
        return self._weights


def balanced_weights(
    labels: Tensor, num_labels: int, problem_type: str, names: Mapping[int, str]
) -> tuple[float, ...]:
    """Weights under which the classes count alike.

    For a single label as scikit-learn's `class_weight="balanced"`: N / (C * rows of the class), labels of
    -100 left out. For several labels a label's negatives / its positives, as the documentation of
    `BCEWithLogitsLoss` has it for `pos_weight`.

    Args:
        labels (N,) or (N, C).
        num_labels: C.
        problem_type: of the model.
        names: class -> its name, for the message.

    Raises:
        ValueError: a class without any example, or of several labels one that all rows have: no weight would
            balance it.

    Example:
        >>> balanced_weights(torch.tensor([0, 0, 0, 1]), 2, "single_label_classification", names={})
        (0.6666666666666666, 2.0)
    """
    if problem_type == ProblemType.MULTI_LABEL:
        labels = labels.reshape(-1, num_labels).double()  # (N, C)
        positives, negatives = labels.sum(dim=0), (1 - labels).sum(dim=0)  # (C,)
        counts, weights = positives.minimum(negatives), negatives / positives
    else:
        counts = torch.bincount(labels[labels != IGNORED_LABEL].long(), minlength=num_labels).double()  # (C,)
        weights = counts.sum() / (num_labels * counts)
    if (counts == 0).any():
        missing = ", ".join(
            str(names.get(index, index)) for index in (counts == 0).nonzero().flatten().tolist()
        )
        raise ValueError(
            f"class_weights={BALANCED!r} needs examples of every class (of several labels: for and against"
            f" each), and train_dataset has none of {missing}; give one number per class, or leave"
            " class_weights out."
        )
    return tuple(weights.tolist())


def all_labels(dataset: Any, read: LabelReader) -> Tensor:
    """Every label of a dataset, as the model takes it: (N,) or (N, C).

    Raises:
        ValueError: they cannot all be read: there is no such column, or no end; or one has no meaning.
    """
    labels = read_labels(dataset, read)
    if labels is None:
        raise ValueError(
            f"class_weights={BALANCED!r} is counted from the labels of train_dataset, which is a"
            f" {type(dataset).__name__} whose labels cannot all be read beforehand (columns"
            f" {', '.join(LABEL_COLUMNS)}); give one number per class."
        )
    return labels
