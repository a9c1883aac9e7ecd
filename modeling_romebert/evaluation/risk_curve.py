"""The risk of a policy over its cost, with an upper bound at each threshold, and how that looks."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray
from torch import Tensor

from ..exit_policies import POLICIES
from .drawing import new_figure
from .fixed_sequence import Tested, tried
from .risks import risk_bound


class RiskPoint(NamedTuple):
    """One threshold: its cost, the risk that was seen, and the upper bound at that threshold alone."""

    threshold: float
    cost: float
    observed: float
    bound: float


def losses_over_cost(
    table: NDArray[Any],
    exit_logits: Tensor,
    policy: dict[str, Any],
    exit_layers: Sequence[int],
    problem_type: str,
) -> tuple[Tested, ...]:
    """The losses at each threshold of the coarse grid; nothing is tested."""
    return tuple(
        tried(table, exit_logits, policy, threshold, exit_layers, problem_type)
        for threshold in POLICIES[policy["name"]].grid(len(exit_layers))
    )


def risk_curve(points: Sequence[Tested], risk: str, confidence: float) -> list[RiskPoint]:
    """Losses at some thresholds -> what was seen and what it bounds."""
    return [
        RiskPoint(point.threshold, point.cost, point.observed, risk_bound(risk, point.losses, confidence))
        for point in points
    ]


def plot_risk(points: Sequence[RiskPoint], calibration: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw risk and bound over cost, what was promised, and the threshold that was chosen.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, axes = new_figure(6, 4)
    ordered = sorted(points, key=lambda point: point.cost)
    costs, seen, bounds = (
        [getattr(point, name) for point in ordered] for name in ("cost", "observed", "bound")
    )
    axes.plot(costs, seen, "o-", color="tab:blue", label="seen")
    axes.plot(costs, bounds, "--", color="tab:orange", label=f"upper bound, {calibration['confidence']:.4g}")
    top = max(seen)
    if (promise := calibration["max_drop"]) is not None:
        axes.axhline(promise, color="0.6", linewidth=1, label="promised at most")
        top = max(top, 3 * promise)
    axes.axvline(calibration["cost"], color="tab:green", linewidth=1, label="chosen")
    axes.set(xlabel="cost: layers run / layers", ylabel=f"risk: {calibration['risk']}", xlim=(0, 1.03))
    axes.set_ylim(min(0.0, *seen), 1.1 * top)
    axes.set_title(f"{calibration['num_examples']:,} examples", fontsize="medium")
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=150)
