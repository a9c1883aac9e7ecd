"""How sure an exit is: logits (B, C) -> one number per row.

A row is read as decisions among K outcomes: one among C classes for single-label problems, C yes-or-no
decisions for multi-label ones. It is only as sure as its least sure decision. Every operator counts in the
time of small batches, so one decision has no dimension of its own.
"""

import math

from .arrays import Array, exp, largest, log_sigmoid, log_softmax, smallest, stack, to_fp32, two_largest
from .configuration_romebert import ProblemType


def log_probabilities(logits: Array, problem_type: str) -> Array:
    """logits (B, C) -> log-probabilities: (B, C) for a single label, (B, C, 2) for several. In fp32."""
    logits = to_fp32(logits)
    if problem_type == ProblemType.MULTI_LABEL:
        return stack([log_sigmoid(-logits), log_sigmoid(logits)], axis=-1)
    return log_softmax(logits)


def _least_sure(values: Array) -> Array:
    """(B,), or (B, D) for several decisions -> (B,)"""
    return values if values.ndim == 1 else smallest(values)


def negative_entropy(log_p: Array) -> Array:
    """log_p (B, K) or (B, D, K) -> (B,): minus the entropy, in -ln K (uniform) .. 0 (sure), of the least sure
    decision.

    NaN where a logit was infinite or NaN: 0 times an infinite log-probability is NaN.
    """
    return _least_sure((exp(log_p) * log_p).sum(axis=-1))


def normalized_entropy(log_p: Array) -> Array:
    """log_p (B, K) or (B, D, K) -> (B,): entropy over ln K, in 0 (sure) .. 1 (uniform), of the least sure
    decision.
    """
    return negative_entropy(log_p) / -math.log(log_p.shape[-1])


def confidence(log_p: Array) -> Array:
    """log_p (B, K) or (B, D, K) -> (B,): largest probability, of the least sure decision."""
    return exp(_least_sure(largest(log_p)))


def margin(log_p: Array) -> Array:
    """log_p (B, K) or (B, D, K) -> (B,): largest minus second largest probability, of the least sure
    decision.
    """
    best, second = two_largest(exp(log_p))  # (B,) or (B, D) each
    return _least_sure(best - second)


def all_finite(logits: Array) -> Array:
    """logits (B, C) -> (B,) bool: an infinity or a NaN minus itself is NaN."""
    return (logits - logits).sum(axis=-1) == 0
