"""Where a regression starts: new exits answer the mean of the labels.

The answers of new exits are near 0. Where labels are not, their distance gives every text's states a push in
the same direction, until all are alike and so are the answers: the loss then stays at the labels' variance.
"""

import re
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..data.checks import is_stock
from ..data.dataset_labels import read_labels
from ..data.labels import LabelReader
from ..losses import IGNORED_LABEL

logger = logging.get_logger(__name__)

ROWS = 1000  # that the mean is taken of: within about 3 % of a standard deviation


@torch.no_grad()
def start_at_mean(model: nn.Module, config: Any, dataset: Any, collator: Any) -> None:
    """Set the biases of a regression's new exits, which are trained and all 0, to the mean of the labels.
    Says so where the labels cannot be read beforehand: those of a stream, or of a collator that may make them
    itself.

    Args:
        model: a RomeBERT model, also within adapters.
        config: of it, whose problem type is regression.
        dataset, collator: that it will be trained on.
    """
    new = [bias for bias in head_biases(model) if not bias.any()]
    if not new:
        return
    labels = None
    if is_stock(collator):
        labels = read_labels(dataset, LabelReader(config), most=ROWS)  # (N,) or (N, C)
    if labels is None:
        logger.warning(
            f"The labels that batches will have cannot be read beforehand (train_dataset is a"
            f" {type(dataset).__name__}, data_collator a {type(collator).__name__}), so the exits of this"
            " regression start at 0 and not at their mean. Where that is far from 0, training"
            " may end in the same answer for all texts: centre the labels, or set the bias of each head of"
            " model.exits to their mean."
        )
        return
    marked = labels == IGNORED_LABEL
    if marked.any() and (labels[~marked] >= 0).all():
        logger.warning(
            f"Some labels are {IGNORED_LABEL}, which in a regression is a number as any other. If it marks"
            " rows without a label, leave them out with dataset.filter."
        )
    mean = labels.reshape(-1, config.num_labels).double().mean(dim=0)  # (C,)
    for bias in new:
        bias.copy_(mean)


def head_biases(model: nn.Module) -> list[nn.Parameter]:
    """The biases (C,) of the exits' classifiers that are trained."""
    return [
        weight
        for name, weight in model.named_parameters()
        if weight.requires_grad and re.search(r"\bexits\..*\bclassifier\..*\bbias$", name)
    ]
