"""Entities in tags, and how many of them are found: precision, recall and F1 as seqeval counts them.

An entity is right when its type, its first and its last word are. Tags are `B-TYPE`, `I-TYPE`, `E-TYPE`,
`S-TYPE` and `O`, read as conlleval reads them: an entity also begins where an `I-` or `E-` follows nothing,
or another type. The tests hold this against seqeval, which is not needed here.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import EvalPrediction

from ..losses import IGNORED_LABEL

OUTSIDE = "O"
CHUNK_TAG = re.compile(r"[BIES]-.+")
Entity = tuple[str, int, int]  # type, first word, behind the last word


def marks_entities(names: Iterable[str]) -> bool:
    """Whether tags mark entities, as those of named entities and chunks do, and those of parts of speech do
    not.

    Example:
        >>> marks_entities(["O", "B-PER", "I-PER"]), marks_entities(["NOUN", "VERB"]), marks_entities(["O"])
        (True, False, False)
    """
    tags = [name for name in names if name != OUTSIDE]
    return bool(tags) and all(CHUNK_TAG.fullmatch(tag) for tag in tags)


def entities(tags: Sequence[str]) -> list[Entity]:
    """Tags of a text -> its entities.

    Example:
        >>> entities(["B-PER", "I-PER", "O", "I-LOC", "I-ORG"])
        [('PER', 0, 2), ('LOC', 3, 4), ('ORG', 4, 5)]
    """
    found: list[Entity] = []
    kind, start, goes_on = "", 0, False
    for index, tag in enumerate([*tags, OUTSIDE]):
        mark, _, this = tag.partition("-")
        if goes_on and (mark in ("O", "B", "S") or this != kind):
            found.append((kind, start, index))
            goes_on = False
        if mark != OUTSIDE and not goes_on:
            kind, start, goes_on = this, index, True
        if goes_on and mark in ("E", "S"):
            found.append((kind, start, index + 1))
            goes_on = False
    return found


def token_scores(predicted: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> dict[str, float]:
    """Predicted and right tags of texts -> `precision`, `recall` and `f1` of entities, counted over all types
    together, and `accuracy` of tags; the latter alone where tags mark no entities.

    What is a share of nothing is 0.

    Example:
        >>> token_scores([["B-PER", "O", "B-LOC"]], [["B-PER", "I-PER", "B-LOC"]])
        {'precision': 0.5, 'recall': 0.5, 'f1': 0.5, 'accuracy': 0.6666666666666666}
    """
    words = sum(map(len, tags))
    right = sum(
        a == b for of_text in zip(predicted, tags, strict=True) for a, b in zip(*of_text, strict=True)
    )
    accuracy = {"accuracy": right / words if words else 0.0}
    if not marks_entities({tag for of_texts in (predicted, tags) for of_text in of_texts for tag in of_text}):
        return accuracy
    found, there, both = 0, 0, 0
    for ours, theirs in zip(predicted, tags, strict=True):
        mine, gold = entities(ours), entities(theirs)
        found, there, both = found + len(mine), there + len(gold), both + len(set(mine) & set(gold))
    return _shares(found, there, both) | accuracy


def _shares(found: int, there: int, both: int) -> dict[str, float]:
    return {
        "precision": both / found if found else 0.0,
        "recall": both / there if there else 0.0,
        "f1": 2 * both / (found + there) if found + there else 0.0,
    }


def token_metrics(names: Sequence[str]) -> Callable[..., dict[str, float]]:
    """Names of the classes -> a `compute_metrics` for `Trainer`, of the tokens that have a label.

    It takes logits (N, T, C) and labels (N, T) as a `Trainer` hands them over: of all rows, as a list of
    batches, or batch by batch.

    Example:
        >>> metrics = token_metrics(["O", "B-PER"])
        >>> logits = np.array([[[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]])
        >>> metrics(EvalPrediction(logits, np.array([[1, 1, -100]])))
        {'precision': 1.0, 'recall': 0.5, 'f1': 0.6666666666666666, 'accuracy': 0.5}
    """
    texts: list[tuple[list[str], list[str]]] = []  # predicted and right tags

    def compute(prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        logits, labels = prediction.predictions, prediction.label_ids
        pairs = zip(logits, labels, strict=True) if isinstance(logits, list) else [(logits, labels)]
        for of_batch in pairs:
            texts.extend(_tags_of(*of_batch, names))
        if not compute_result:
            return {}
        predicted, tags = [one for one, _ in texts], [one for _, one in texts]
        texts.clear()
        scores = token_scores(predicted, tags)
        if marks_entities(names) and "f1" not in scores:  # not one entity, found or there
            scores = _shares(0, 0, 0) | scores
        return scores

    return compute


def _tags_of(logits: Any, labels: Any, names: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """logits (n, T, C) and labels (n, T) of a batch -> predicted and right tags of each row."""
    logits, labels = (part[0] if isinstance(part, tuple) else part for part in (logits, labels))
    logits, labels = (
        part.float().cpu().numpy()
        if isinstance(part, Tensor) and part.is_floating_point()
        else np.asarray(part)
        for part in (logits, labels)
    )
    found = []
    for classes, right in zip(logits.argmax(axis=-1), labels, strict=True):  # (T,) each
        labelled = right != IGNORED_LABEL
        found.append(([names[i] for i in classes[labelled]], [names[i] for i in right[labelled]]))
    return found
