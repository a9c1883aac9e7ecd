"""Learn then Test: thresholds from the safest on, each tested, until one cannot be certified.

Angelopoulos et al., arXiv 2110.01052, with fixed-sequence testing. The thresholds and their order are fixed
before data are seen, so no correction for their number is needed: the first threshold that breaks the promise
is certified with probability at most 1 - confidence, and without it none after it is reached.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..exit_policies import make_policy
from .risks import p_value_of
from .sweep import replay


class Tested(NamedTuple):
    """A threshold of the sequence on N rows."""

    threshold: float
    cost: float
    left_at: NDArray[np.int64]  # (N,): index of the exit of each row
    losses: NDArray[Any]  # (N,)
    p_value: float = 1.0  # of the promise, where it was tested

    @property
    def observed(self) -> float:
        return float(self.losses.mean())


def tried(
    table: NDArray[Any],
    exit_logits: Tensor,
    policy: dict[str, Any],
    threshold: float,
    exit_layers: Sequence[int],
    problem_type: str,
) -> Tested:
    """What a policy does at one threshold: where rows leave, what it costs, what they lose. Tests nothing.

    Args:
        table: (N, E), the loss of each row at each exit (risks.py).
        exit_logits: (N, E, C).
        policy: its settings, without the threshold.
    """
    rule, layers = make_policy(**policy, threshold=threshold), np.asarray(exit_layers)
    left_at = replay(rule, exit_logits, problem_type, exit_layers).numpy()  # (N,)
    cost = float(layers[left_at].mean() / layers[-1])
    return Tested(threshold, cost, left_at, table[np.arange(len(table)), left_at])


def certify_in_order(
    table: NDArray[Any],
    exit_logits: Tensor,
    policy: dict[str, Any],
    thresholds: Iterable[float],
    *,
    exit_layers: Sequence[int],
    problem_type: str,
    risk: str,
    max_drop: float,
    confidence: float,
) -> tuple[list[Tested], Tested | None]:
    """Test thresholds in the order given, up to the first that cannot be certified.

    Args:
        table: (N, E), the loss of each row at each exit (risks.py).
        exit_logits: (N, E, C).
        policy: its settings, without the threshold.
        thresholds: the safest first; fixed before data are seen.

    Returns:
        Those that are certified, and the one that is not, or `None` where all are.
    """
    certified: list[Tested] = []
    for threshold in thresholds:
        tested = tried(table, exit_logits, policy, threshold, exit_layers, problem_type)
        if certified and np.array_equal(tested.left_at, certified[-1].left_at):
            p_value = certified[-1].p_value  # the same rows, the same test
        else:
            p_value = p_value_of(risk, tested.losses, confidence)(max_drop)
        tested = tested._replace(p_value=p_value)
        if p_value > 1 - confidence:
            return certified, tested
        certified.append(tested)
    return certified, None


def cheapest(certified: list[Tested]) -> Tested | None:
    """The certified threshold of lowest cost; the first, and so the safest, of equal ones."""
    return min(certified, key=lambda tested: tested.cost, default=None)


def exit_shares(left_at: NDArray[np.int64], num_exits: int) -> list[float]:
    """(N,) exits -> the share of rows at each of E exits."""
    counts = torch.bincount(torch.as_tensor(left_at), minlength=num_exits)
    return (counts / len(left_at)).tolist()
