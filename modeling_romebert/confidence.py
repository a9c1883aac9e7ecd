"""How sure an exit is: logits (B, C) -> one number per row.

A row is read as decisions among K outcomes: one among C classes for single-label problems, C yes-or-no
decisions for multi-label ones. It is only as sure as its least sure decision. Every operator shows on the
clock of small batches, so that one decision has no dimension of its own.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .configuration_romebert import ProblemType


def log_probabilities(logits: Tensor, problem_type: str) -> Tensor:
    """logits (B, C) -> log-probabilities: (B, C) for a single label, (B, C, 2) for several. In fp32."""
    logits = logits.float()
    if problem_type == ProblemType.MULTI_LABEL:
        return torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=-1)
    return logits.log_softmax(dim=-1)


def _lowest(values: Tensor) -> Tensor:
    """(B,), or (B, D) for several decisions -> (B,)"""
    return values if values.dim() == 1 else values.amin(dim=-1)


def negative_entropy(log_p: Tensor) -> Tensor:
    """log_p (B, K) or (B, D, K) -> (B,): minus the entropy, in -ln K (uniform) .. 0 (sure), of the least sure
    decision.

    Not a number where a logit was infinite or not a number: a product with an infinite log-probability is
        none.
    """
    return _lowest((log_p.exp() * log_p).sum(dim=-1))


def normalized_entropy(log_p: Tensor) -> Tensor:
    """log_p (B, K) or (B, D, K) -> (B,): entropy over ln K, in 0 (sure) ..

    1 (uniform), of the least sure decision.
    """
    return negative_entropy(log_p) / -math.log(log_p.shape[-1])


def confidence(log_p: Tensor) -> Tensor:
    """log_p (B, K) or (B, D, K) -> (B,): largest probability, of the least sure decision."""
    return _lowest(log_p.amax(dim=-1)).exp()


def margin(log_p: Tensor) -> Tensor:
    """log_p (B, K) or (B, D, K) -> (B,): largest minus second largest probability, of the least sure
    decision.
    """
    best, second = log_p.exp().topk(2, dim=-1).values.unbind(dim=-1)  # (B,) or (B, D) each
    return _lowest(best - second)


def all_finite(logits: Tensor) -> Tensor:
    """logits (B, C) -> (B,) bool: infinite or not a number minus itself is not a number."""
    return (logits - logits).sum(dim=-1) == 0
