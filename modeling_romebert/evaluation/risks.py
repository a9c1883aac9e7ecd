"""What may go wrong when a row leaves early: exit logits -> the loss of every row at every exit.

    disagreement   the answer is not that of full depth; needs no labels
    harm           full depth was right, and the exit is wrong: bounds the drop from above
    drop           harm, less the rows that only the exit has right: the signed drop in right answers

Losses of one decision a row are -1, 0 or 1, of several decisions their mean. For regression an answer is
right within a tolerance of the label, and agrees within a tolerance of full depth.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..configuration_romebert import ProblemType
from .risk_bounds import betting_p_value, binomial_p_value, signed_p_value, upper_bound

Bools = NDArray[np.bool_]
RISKS = ("disagreement", "harm", "drop")
NEEDS_LABELS = ("harm", "drop")
SIGNED = ("drop",)


def loss_table(
    risk: str,
    exit_logits: Tensor,
    labels: np.ndarray | None,
    problem_type: str,
    tolerance: float | None = None,
) -> NDArray[Any]:
    """The loss of each row, were it to leave at each exit.

    Args:
        risk: one of `RISKS`.
        exit_logits: (N, E, C).
        labels: (N,) or (N, C); not read for disagreement.
        tolerance: for regression, in units of the label.

    Returns: (N, E): int8 of -1, 0, 1 where a row is one decision, else float64 in -1..1.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])  # one row, which changes its mind
        >>> loss_table("disagreement", logits, None, "single_label_classification").tolist()
        [[1, 0]]
        >>> loss_table("drop", logits, np.array([0]), "single_label_classification").tolist()
        [[-1, 0]]
    """
    if risk == "disagreement":
        agree = agrees(exit_logits, problem_type, tolerance)  # (N, E, D)
        return _averaged(~agree)
    assert labels is not None
    right = _is_right(exit_logits, labels, problem_type, tolerance)  # (N, E, D)
    at_full_depth = right[:, -1:]
    if risk == "harm":
        return _averaged(at_full_depth & ~right)
    return _averaged(at_full_depth.astype(np.int8) - right.astype(np.int8))


def _answers(exit_logits: Tensor, problem_type: str) -> NDArray[Any]:
    """(N, E, C) -> (N, E, D): the class, 0/1 per label, or numbers."""
    logits = exit_logits.float().numpy()
    if problem_type == ProblemType.SINGLE_LABEL:
        return logits.argmax(axis=-1)[..., None]
    return logits > 0 if problem_type == ProblemType.MULTI_LABEL else logits


def agrees(exit_logits: Tensor, problem_type: str, tolerance: Any) -> Bools:
    """(N, E, C) -> (N, E, D): whether each exit answers as the last one does.

    tolerance: of a regression, for all its D numbers or for each of them.
    """
    answers = _answers(exit_logits, problem_type)
    if problem_type == ProblemType.REGRESSION:
        return np.asarray(np.abs(answers - answers[:, -1:]) <= tolerance)
    return np.asarray(answers == answers[:, -1:])


def _is_right(exit_logits: Tensor, labels: np.ndarray, problem_type: str, tolerance: float | None) -> Bools:
    answers = _answers(exit_logits, problem_type)
    expected = np.asarray(labels).reshape(len(answers), 1, -1)  # (N, 1, D)
    if problem_type == ProblemType.REGRESSION:
        return np.asarray(np.abs(answers - expected) <= tolerance)
    if problem_type == ProblemType.MULTI_LABEL:
        expected = expected > 0.5
    return np.asarray(answers == expected)


def _averaged(losses: NDArray[Any]) -> NDArray[Any]:
    """(N, E, D) -> (N, E)"""
    return losses[..., 0].astype(np.int8) if losses.shape[-1] == 1 else losses.mean(axis=-1)


def p_value_of(risk: str, losses: NDArray[Any], confidence: float) -> Callable[[float], float]:
    """Losses (N,) of one policy -> the p-value, of a target, against "the risk is the target or more".

    Which test it is depends on the risk and the problem type, never on the losses.
    """
    count, low = len(losses), _least(risk)
    if not np.issubdtype(losses.dtype, np.integer):
        return lambda target: float(betting_p_value(losses, target, confidence, low))
    worse, better = int((losses > 0).sum()), int((losses < 0).sum())
    if risk in SIGNED:
        return lambda target: float(signed_p_value(worse, better, count, target, confidence))
    return lambda target: float(binomial_p_value(worse, count, target))


def risk_bound(risk: str, losses: NDArray[Any], confidence: float) -> float:
    """Losses (N,) of one policy -> the upper bound of its risk at this confidence."""
    return upper_bound(p_value_of(risk, losses, confidence), confidence, _least(risk))


def _least(risk: str) -> float:
    """The smallest value that a risk can have."""
    return -1.0 if risk in SIGNED else 0.0
