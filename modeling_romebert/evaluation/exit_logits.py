"""One pass of a model over a dataset: the logits of every exit, and the labels.

What evaluation and calibration start from.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import DataCollatorWithPadding
from transformers.utils import logging

from ..configuration_romebert import ProblemType
from ..data.checks import check_length
from ..data.labels import LABEL_COLUMNS, LabelReader, say_ignored, take_class_names
from ..input_checks import check_token_ids
from ..losses import IGNORED_LABEL
from ..pretrained import forward_of, inner_model
from ..text_batcher import was_cut, with_truncation
from ..text_items import each, not_unicode, text_and_pair

logger = logging.get_logger(__name__)


class ExitLogits(NamedTuple):
    """Of the N rows that have a label, in the order of the dataset."""

    exit_logits: Tensor  # (N, E, C), fp32, on the CPU
    labels: np.ndarray  # (N,) class ids or numbers, (N, C) targets
    ignored: int  # rows that were left out: their label is -100


class Rows(NamedTuple):
    """A dataset's rows as the model takes them."""

    inputs: list[dict[str, Any]]  # N of them, each with input_ids and what else the tokenizer gives
    labels: np.ndarray | None  # (N,) class ids or numbers, (N, C) targets; None where a row has none
    ignored: int  # rows that were left out: their label is -100


def collect_exit_logits(
    model: Any, dataset: Iterable[dict[str, Any]], tokenizer: Any, batch_size: int = 64, progress: bool = True
) -> ExitLogits:
    """Run every row that has a label through every layer once.

    Args:
        model: a `RomeBertForSequenceClassification`; it is put in evaluation mode. Where it has no names for
            its classes it takes those of a `ClassLabel` column.
        dataset: see `read_rows`.
        tokenizer: pads, and tokenises where that is needed.

    Raises:
        ValueError, TypeError: see `read_rows`.
    """
    rows = read_rows(model, dataset, tokenizer)
    assert rows.labels is not None  # or it had raised
    return ExitLogits(
        run_rows(model, rows.inputs, tokenizer, batch_size, progress), rows.labels, rows.ignored
    )


def read_rows(
    model: Any, dataset: Iterable[dict[str, Any]], tokenizer: Any, needs_labels: bool = True
) -> Rows:
    """Read, and tokenise where needed, a dataset; its labels may settle the problem type of the model.

    Args:
        dataset: rows with `labels` (or `label`), read as in training (labels.py), and either `input_ids` (and
            what else the tokenizer gives) or `text` (and `text_pair`), which is tokenised, and cut to the
            positions of the model as in `score`.
        needs_labels: whether rows must have labels. Where they need none, those labelled -100 count too, and
            one row without a label leaves all without.

    Raises:
        ValueError: no rows, or rows without labels or inputs, or with labels or inputs that the model cannot
            take.
        TypeError: a text that is not a string.
    """
    if isinstance(dataset, Mapping):
        raise ValueError(
            f"the dataset is a {type(dataset).__name__}; give one of its splits:"
            f" {', '.join(map(str, dataset))}."
        )
    romebert = inner_model(model)
    take_class_names(romebert.config, dataset, "the dataset")
    read, tokenize = LabelReader(romebert.config), _Tokenizer(tokenizer, romebert.max_tokens)
    inputs, labels, rows, all_labelled = [], [], 0, True
    for index, row in enumerate(each(dataset)):
        if not isinstance(row, Mapping):
            raise ValueError(
                f"row {index} is a {type(row).__name__}; give dicts with labels, and input_ids or text."
            )
        rows += 1
        if needs_labels or any(row.get(name) is not None for name in LABEL_COLUMNS):
            _, label = read.of_row(row, f"row {index}")
            if read.problem_type == ProblemType.SINGLE_LABEL and label == IGNORED_LABEL:
                if needs_labels:
                    continue
                all_labelled = False
            labels.append(label)
        else:
            all_labelled = False
        inputs.append(tokenize(row, f"row {index}"))
    if not inputs:
        found = f"in every row the label is {IGNORED_LABEL}" if rows else "the dataset has no rows"
        raise ValueError(f"{found}, so there is nothing to evaluate.")
    say_ignored(rows - len(inputs), rows, "the dataset")
    if tokenize.cut:
        logger.warning(
            f"{tokenize.cut} of {len(inputs)} texts were longer than {tokenize.settings['max_length']}"
            " tokens and were cut."
        )
    if labels and read.problem_type != romebert.problem_type:
        # it was left open, and the labels settle it, as in training
        romebert.config.problem_type = read.problem_type
    return Rows(inputs, np.asarray(labels) if all_labelled else None, rows - len(inputs))


class _Tokenizer:
    """A row -> what the model takes. Counts the texts that were cut."""

    def __init__(self, tokenizer: Any, max_tokens: int | None):
        self.tokenizer, self.max_tokens, self.cut = tokenizer, max_tokens, 0
        self.settings = with_truncation(tokenizer, max_tokens, {})

    def __call__(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        if "input_ids" in row:
            encoded = {name: row[name] for name in self.tokenizer.model_input_names if name in row}
        elif "text" in row:
            encoded = self._tokenized(row, where)
        else:
            raise ValueError(
                f"{where} has neither 'input_ids' nor 'text'; it has {', '.join(map(str, row))}."
            )
        check_length(encoded["input_ids"], self.max_tokens, where)
        return encoded

    def _tokenized(self, row: Mapping[str, Any], where: str) -> Any:
        parts = {name: row[name] for name in ("text", "text_pair") if row.get(name) is not None}
        try:
            text, pair = text_and_pair(parts)
        except TypeError:
            wrong = next((value for value in parts.values() if not isinstance(value, str)), row["text"])
            raise TypeError(
                f"{where} has the text {wrong!r}, which is no string; leave such rows out with"
                " dataset.filter."
            ) from None
        if not text.strip():
            raise ValueError(f"{where} has an empty text, {text!r}; leave such rows out with dataset.filter.")
        if (flaw := not_unicode(text, pair)) is not None:
            raise TypeError(f"{where}: {flaw}")
        encoded = self.tokenizer([text], None if pair is None else [pair], **self.settings)
        self.cut += was_cut(self.tokenizer, encoded, 0, text, pair, self.settings)
        return {name: encoded[name][0] for name in self.tokenizer.model_input_names if name in encoded}


@torch.no_grad()
def run_rows(
    model: Any, inputs: list[dict[str, Any]], tokenizer: Any, batch_size: int, progress: bool
) -> Tensor:
    """What the model takes of each row -> exit_logits (N, E, C), in their order."""
    model.eval()
    if not isinstance(model, torch.nn.Module):  # a bundle, which takes padding on the right
        tokenizer = copy.copy(tokenizer)
        tokenizer.padding_side = "right"
    forward, collate = forward_of(model), DataCollatorWithPadding(tokenizer)
    order = sorted(range(len(inputs)), key=lambda index: len(inputs[index]["input_ids"]))  # little padding
    collected = torch.empty(0)
    for start in tqdm(range(0, len(order), batch_size), desc="evaluating exits", disable=not progress):
        rows = order[start : start + batch_size]
        batch = collate([inputs[row] for row in rows])
        check_token_ids(inner_model(model), batch["input_ids"])  # while they are on the host
        exit_logits = forward(**batch.to(inner_model(model).device)).exit_logits.float().cpu()  # (b, E, C)
        if start == 0:
            collected = exit_logits.new_empty(len(order), *exit_logits.shape[1:])
        collected[rows] = exit_logits
    return collected
