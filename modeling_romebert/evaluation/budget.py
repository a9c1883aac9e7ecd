"""The best answers within a budget: one threshold per exit, found jointly, where that pays on held-out rows.

    level (N, E)   how far down the grid a threshold has to go before a row leaves at an exit
    one exit       all thresholds of it at once: what rows that reach it change, by level
    all exits      coordinate descent on drop + price * cost, for many prices, then within the budget

Cross-fitting (5 folds) says whether several thresholds beat one on rows that they were not fitted on; else
one stays. What is reported as the drop is the cross-fitted one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..exit_policies import make_policy
from .fixed_sequence import Tested, tried
from .risks import risk_bound

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

JOINT = ("entropy", "confidence", "margin")  # policies without memory: an exit can be looked at alone
FOLDS = 5
PRICES = np.concatenate([[0.0], np.geomspace(1e-3, 3.0, 40)])  # of cost, in drop


class Fitted(NamedTuple):
    """What was chosen within a budget."""

    chosen: Tested  # on all rows
    thresholds: float | list[float]
    drop: float  # cross-fitted
    interval: tuple[float, float]  # of the drop, at the confidence


class Problem(NamedTuple):
    """Rows to choose thresholds on."""

    losses: Floats  # (N, E): the drop of each row at each exit
    levels: Ints  # (N, E): the first index into the grid at which the row leaves there
    costs: Floats  # (E,): layers run / layers

    def of(self, rows: Ints) -> "Problem":
        return Problem(self.losses[rows], self.levels[rows], self.costs)

    def left_at(self, indices: Ints) -> Ints:
        """Indices into the grid, one per exit -> (N,): where each row leaves; the last exit keeps nobody."""
        leaves = self.levels <= indices  # (N, E)
        leaves[:, -1] = True
        return leaves.argmax(axis=1)

    def judge(self, indices: Ints) -> tuple[float, float]:
        """-> mean loss, mean cost"""
        left_at = self.left_at(indices)
        return float(self.losses[np.arange(len(left_at)), left_at].mean()), float(self.costs[left_at].mean())


def within_budget(
    table: NDArray[Any],
    exit_logits: Tensor,
    policy: dict[str, Any],
    grid: Sequence[float],
    *,
    exit_layers: Sequence[int],
    problem_type: str,
    budget: float,
    confidence: float,
) -> Fitted:
    """Choose thresholds of least drop that cost at most the budget on the rows.

    Args:
        table: (N, E), the drop of each row at each exit.
        exit_logits: (N, E, C).
        policy: settings without the threshold.
        grid: thresholds, the safest first.

    Raises:
        ValueError: no threshold is so cheap.
    """
    layers = np.asarray(exit_layers) / exit_layers[-1]
    rows = np.arange(len(table))
    if policy["name"] not in JOINT:
        return _one_threshold(table, exit_logits, policy, grid, exit_layers, problem_type, budget, confidence)
    levels = _levels(exit_logits, policy, grid, exit_layers, problem_type)
    whole = Problem(table.astype(float), levels, layers)
    single = _best_single(whole, len(grid), budget)
    if (least := whole.judge(single)[1]) > budget + 1e-12:
        raise ValueError(too_small(budget, least))
    joint = _best_joint(whole, single, len(grid), budget)

    # On rows that were not fitted on: both ways, in folds that are always the same.
    fold = np.random.default_rng(0).permutation(len(table)) % min(FOLDS, len(table))
    held_out = {way: np.zeros(len(table), table.dtype) for way in ("single", "joint")}
    for number in np.unique(fold) if len(table) > 1 else []:
        inside, outside = rows[fold != number], rows[fold == number]
        part, rest = whole.of(inside), whole.of(outside)
        alone = _best_single(part, len(grid), budget)
        for way, indices in (("single", alone), ("joint", _best_joint(part, alone, len(grid), budget))):
            held_out[way][outside] = table[outside, rest.left_at(indices)]
    way = "joint" if held_out["joint"].mean() < held_out["single"].mean() else "single"
    indices = joint if way == "joint" else single
    thresholds: float | list[float] = float(grid[indices[0]])
    if way == "joint":
        thresholds = [float(grid[index]) for index in indices]
    left_at = whole.left_at(indices)
    chosen = Tested(float(grid[indices[0]]), whole.judge(indices)[1], left_at, table[rows, left_at])
    losses = held_out[way]
    return Fitted(chosen, thresholds, float(losses.mean()), drop_interval(losses, confidence))


def drop_interval(losses: NDArray[Any], confidence: float) -> tuple[float, float]:
    """Signed losses (N,) -> an interval that holds their mean at this confidence, with equal tails.

    Example:
        >>> losses = np.array([1] * 30 + [-1] * 10 + [0] * 960, dtype=np.int8)
        >>> [round(end, 3) for end in drop_interval(losses, 0.9)]
        [0.009, 0.032]
    """
    side = 1 - (1 - confidence) / 2
    return -risk_bound("drop", -losses, side), risk_bound("drop", losses, side)


def _levels(
    exit_logits: Tensor, policy: dict[str, Any], grid: Sequence[float], layers: Sequence[int], kind: str
) -> Ints:
    """(N, E): how many thresholds of the grid, from the safest on, keep a row at an exit."""
    rows, exits, _ = exit_logits.shape
    levels = np.zeros((rows, exits), dtype=np.int64)
    for threshold in grid:
        rule = make_policy(**policy, threshold=threshold).start(exits, kind, layers)
        for index in range(exits):
            if not rule.asks(index):
                levels[:, index] += 1
            else:
                levels[:, index] += ~rule.leaves(index, exit_logits[:, index]).numpy()
    return levels


def _best_single(problem: Problem, size: int, budget: float) -> Ints:
    """The grid's index, for all exits alike, of least loss within the budget, the cheaper of equal ones; the
    cheapest where none is within it.
    """
    exits = len(problem.costs)
    found = [(*problem.judge(np.full(exits, index)), index) for index in range(size)]
    allowed = [(loss, cost, index) for loss, cost, index in found if cost <= budget + 1e-12]
    if not allowed:  # such as on the rows of a fold, which just miss the budget
        return np.full(exits, min(found, key=lambda one: one[1])[2])
    return np.full(exits, min(allowed)[2])


def too_small(budget: float, least: float) -> str:
    """Why no threshold is within a budget, and what would help."""
    return (
        f"cost={budget:g} is below {least:.3g}, the least that any threshold of this exit policy costs: allow"
        " more, ask more exits, or train a model with an earlier one."
    )


def _best_joint(problem: Problem, single: Ints, size: int, budget: float) -> Ints:
    """One index per exit: never of more loss than the best single one, within the budget."""
    starts = [single]
    for price in PRICES:
        starts.append(_descend(problem, starts[-1], size, price))
    within = [(*problem.judge(start), tuple(start)) for start in starts]
    allowed = [found for found in within if found[1] <= budget + 1e-12]
    best = min(allowed, default=(*problem.judge(single), tuple(single)))
    return _descend(problem, np.array(best[2]), size, 0.0, budget)


def _descend(
    problem: Problem, start: Ints, size: int, price: float, budget: float | None = None, sweeps: int = 8
) -> Ints:
    """Coordinate descent on mean(loss + price * cost), each exit over all thresholds; within a budget where
    one is given.
    """
    indices, count = start.copy(), len(problem.losses)
    for _ in range(sweeps):
        before = indices.copy()
        for index in range(len(indices) - 1):
            others = problem.levels <= indices  # (N, E)
            others[:, -1] = True
            reaches = ~others[:, :index].any(axis=1)
            later = index + 1 + others[:, index + 1 :].argmax(axis=1)[reaches]  # where else they leave
            level = np.minimum(problem.levels[reaches, index], size)
            loss = problem.losses[reaches]
            of_loss = loss[:, index] - loss[np.arange(len(later)), later]
            of_cost = problem.costs[index] - problem.costs[later]
            # By threshold: what changes against nobody leaving here.
            losses = np.cumsum(np.bincount(level, of_loss, size + 1))[:size] / count
            costs = np.cumsum(np.bincount(level, of_cost, size + 1))[:size] / count
            value = losses + price * costs
            if budget is not None:
                now = problem.judge(indices)[1] - costs[indices[index]]
                value = np.where(now + costs <= budget + 1e-12, value, np.inf)
            best = int(value.argmin())
            if value[best] < value[indices[index]] - 1e-12:
                indices[index] = best
        if np.array_equal(before, indices):
            break
    return indices


def _one_threshold(
    table: NDArray[Any],
    exit_logits: Tensor,
    policy: dict[str, Any],
    grid: Sequence[float],
    exit_layers: Sequence[int],
    kind: str,
    budget: float,
    confidence: float,
) -> Fitted:
    """For policies with memory: the best single threshold of the grid; its drop is that on the rows."""
    points = [tried(table, exit_logits, policy, threshold, exit_layers, kind) for threshold in grid]
    allowed = [point for point in points if point.cost <= budget + 1e-12]
    if not allowed:
        raise ValueError(too_small(budget, min(point.cost for point in points)))
    best = min(allowed, key=lambda point: (point.observed, point.cost))
    return Fitted(best, best.threshold, best.observed, drop_interval(best.losses, confidence))
