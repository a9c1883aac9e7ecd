"""What an evaluation found: the metric at every exit, and cost and metric at every threshold."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .drawing import new_figure
from .provenance import provenance, read_json, write_json


@dataclass
class CurvePoint:
    """A policy at one threshold: what it costs in layers (0..1] and what it scores."""

    threshold: float
    cost: float
    metric: float
    agreement: float  # share of predictions that equal those at full depth
    exit_shares: list[float]  # of rows, or of tokens, by exit
    # Of a token classifier, whose predictions are words: share of texts that equal full depth in every word.
    texts_agreement: float | None = None

    @property
    def saving(self) -> float:
        return 1 - self.cost

    @property
    def speedup(self) -> float:
        """In layers: what time is saved is measured elsewhere."""
        return 1 / self.cost


@dataclass
class ExitReport:
    """What `evaluate_exits` found. `to_json` and `from_json` keep it; `plot` draws it."""

    metric: str
    num_examples: int  # rows with a label
    num_layers: int
    exit_layers: list[int]
    exits: list[float]  # the metric at each exit, all rows leaving there
    policy: dict[str, Any]
    curve: list[CurvePoint]
    model: str = ""
    ignored: int = 0  # rows that were left out: their label is -100
    weights: str | None = None  # digest of those that the figures are of
    provenance: dict[str, Any] = field(default_factory=provenance)

    @property
    def mean(self) -> float:
        """The metric averaged over exits."""
        return float(np.mean(self.exits))

    @property
    def area(self) -> float:
        """Area under the metric over cost, between leaving at the first exit and never, divided by the width:
        a mean metric.
        """
        costs = [self.exit_layers[0] / self.num_layers, *(point.cost for point in self.curve), 1.0]
        metrics = [self.exits[0], *(point.metric for point in self.curve), self.exits[-1]]
        return area_under_curve(costs, metrics)

    def table(self) -> str:
        """The exits and the curve as Markdown."""
        lines = [f"| exit after layer | {self.metric} |", "|---|---|"]
        lines += [
            f"| {layer} | {value:.4f} |" for layer, value in zip(self.exit_layers, self.exits, strict=True)
        ]
        lines += [f"| mean | {self.mean:.4f} |", ""]
        columns = (
            f"{self.policy['name']} threshold",
            "cost",
            "speedup (layers)",
            self.metric,
            "same as full depth",
        )
        lines += [f"| {' | '.join(columns)} |", "|---|---|---|---|---|"]
        lines += [
            f"| {p.threshold:g} | {p.cost:.3f} | {p.speedup:.2f} | {p.metric:.4f} | {p.agreement:.4f} |"
            for p in self.curve
        ]
        left_out = f" ({self.ignored} without a label left out)" if self.ignored else ""
        return "\n".join(
            [*lines, "", f"area under the curve: {self.area:.4f}, on {self.num_examples} examples{left_out}"]
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as data, for JSON and for the model card."""
        curve = [{**asdict(point), "saving": point.saving, "speedup": point.speedup} for point in self.curve]
        return {**asdict(self), "mean": self.mean, "area": self.area, "curve": curve}

    def to_json(self, path: str | os.PathLike[str]) -> None:
        write_json(path, self.to_dict())

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> "ExitReport":
        content = read_json(path)
        content = {key: value for key, value in content.items() if key not in ("mean", "area")}
        derived = ("saving", "speedup")
        content["curve"] = [
            CurvePoint(**{k: v for k, v in point.items() if k not in derived}) for point in content["curve"]
        ]
        return cls(**content)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the metric over cost, for the exits and for the policy.

        Raises:
            ImportError: matplotlib is not installed.
        """
        figure, axes = new_figure(6, 4)
        costs = [layer / self.num_layers for layer in self.exit_layers]
        axes.plot(costs, self.exits, "o--", color="0.6", label="every row at one exit")
        points = sorted(self.curve, key=lambda point: point.cost)
        name = f"{self.policy['name']} policy"
        axes.plot([p.cost for p in points], [p.metric for p in points], "o-", color="tab:blue", label=name)
        axes.axhline(self.exits[-1], color="0.8", linewidth=1, zorder=0)
        axes.set(xlabel="cost: layers run / layers", ylabel=self.metric, xlim=(0, 1.03))
        axes.set_title(f"{self.num_examples} examples", fontsize="medium")
        axes.legend(loc="lower right")
        figure.savefig(path, dpi=150)


def area_under_curve(costs: Sequence[float], metrics: Sequence[float]) -> float:
    """Trapezoids under metric over cost, divided by the width of cost; the mean metric where all costs are
    equal.

    Example:
        >>> area_under_curve([0.5, 1.0], [0.8, 0.9])
        0.85
    """
    order = np.argsort(costs, kind="stable")
    cost, metric = np.asarray(costs, float)[order], np.asarray(metrics, float)[order]
    width = cost[-1] - cost[0]
    return (
        round(float((np.diff(cost) * (metric[1:] + metric[:-1]) / 2).sum() / width), 12)
        if width > 0
        else float(metric.mean())
    )
