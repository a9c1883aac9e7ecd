"""How good each exit is, and what a policy saves: one pass for all exits, then policies replayed on the
logits.

    cost = mean over rows of layers run / layers     saving = 1 - cost     speedup = 1 / cost, in layers

The replay uses the same policy objects as the early-exit loop, row for row; time is for benchmarks to
measure.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..exit_policies import POLICIES, ExitPolicy, as_policy, make_policy
from ..hub import weights_digest
from ..pretrained import inner_model
from .exit_logits import collect_exit_logits
from .metrics import DEFAULT_METRIC, Metric, find_metric, predictions_of
from .provenance import provenance, read_json, write_json


@dataclass
class CurvePoint:
    """A policy at one threshold: what it costs in layers (0..1] and what it scores."""

    threshold: float
    cost: float
    metric: float
    agreement: float  # share of predictions that equal those at full depth
    exit_shares: list[float]  # of rows, by exit

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
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("drawing needs matplotlib: pip install 'romebert[plot]'") from error
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
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


def replay(
    policy: ExitPolicy | dict[str, Any],
    exit_logits: Tensor,
    problem_type: str,
    exit_layers: Sequence[int] | None = None,
) -> Tensor:
    """exit_logits (N, E, C) of every row at every exit -> (N,): index of the exit where the policy lets each
    row leave.
    """
    rows_count, exits, _ = exit_logits.shape
    policy = as_policy(policy).start(exits, problem_type, exit_layers)
    rows = torch.arange(rows_count)
    left_at = torch.full((rows_count,), exits - 1)
    for index in filter(policy.asks, range(exits - 1)):
        leave = policy.leaves(index, exit_logits[rows, index])
        left_at[rows[leave]] = index
        stay = (~leave).nonzero().squeeze(1)
        policy.keep(stay)
        rows = rows[stay]
    return left_at


def evaluate_exits(
    model: Any,
    dataset: Iterable[dict[str, Any]],
    tokenizer: Any,
    *,
    metric: str | Metric | None = None,
    policy: str | dict[str, Any] = "entropy",
    thresholds: Sequence[float] | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> ExitReport:
    """Measure every exit in one pass, and a policy at every threshold of a sweep.

    The report also becomes `model.evaluation`, from which `save_pretrained` writes the model card.

    Args:
        model, dataset, tokenizer, batch_size: see `collect_exit_logits`.
        metric: a name in `METRICS` (metrics.py) or a function (predictions, references) -> one finite number,
            higher is better. Accuracy, micro F1 or Pearson's r by problem type when left out.
        policy: name of a policy, or its settings without the threshold, e.g. `{"name": "patient_confidence",
            "patience": 2}` or `{"name": "entropy", "ask_every": 2}`.
        thresholds: what to sweep; a range that fits the policy when left out.

    Returns:
        The metric per exit; cost, metric and agreement per threshold; the area under the curve.

    Raises:
        ValueError: an unknown metric or policy, one without meaning for the model, a metric that gives no
            number, or rows that cannot be evaluated. Rows whose label is -100 are left out, and counted in
            `ignored`.
    """
    romebert = inner_model(model)
    config = romebert.config
    judge(romebert, metric, policy)  # what has no meaning fails here, before the model runs
    exit_logits, labels, ignored = collect_exit_logits(model, dataset, tokenizer, batch_size, progress)
    name, score, settings = judge(romebert, metric, policy)  # labels may have settled the problem type
    if thresholds is None:
        thresholds = POLICIES[settings["name"]].grid(len(config.exit_layers))
    report = ExitReport(
        metric=name,
        num_examples=len(labels),
        num_layers=config.num_hidden_layers,
        exit_layers=list(config.exit_layers),
        exits=[
            score(predictions_of(of_exit.numpy(), romebert.problem_type), labels)
            for of_exit in exit_logits.unbind(1)
        ],
        policy=settings,
        curve=sweep(
            exit_logits, labels, config.exit_layers, romebert.problem_type, score, settings, thresholds
        ),
        model=str(config._name_or_path),
        ignored=ignored,
        weights=weights_digest(romebert.state_dict()),
    )
    romebert.evaluation = report.to_dict()
    return report


def judge(
    model: Any, metric: str | Metric | None, policy: str | dict[str, Any]
) -> tuple[str, Metric, dict[str, Any]]:
    """What is asked for -> the metric's name, the metric, and the settings of the policy to sweep.

    Raises:
        ValueError: see `find_metric` and `policy_to_sweep`.
    """
    config, problem_type = model.config, model.problem_type
    name, score = find_metric(metric or DEFAULT_METRIC[problem_type], problem_type, config.num_labels)
    return name, score, policy_to_sweep(policy, config.exit_layers, problem_type)


def policy_to_sweep(
    policy: str | dict[str, Any], exit_layers: Sequence[int], problem_type: str
) -> dict[str, Any]:
    """A policy's name, or its settings without the threshold -> those settings.

    Raises:
        ValueError: an unknown name or setting, a threshold, or a policy that has no meaning for the problem
            type.
    """
    settings = {"name": policy} if isinstance(policy, str) else dict(policy)
    if given := [name for name in ("threshold", "thresholds") if name in settings]:
        raise ValueError(f"policy={policy}: leave {given[0]} out; it is what is varied.")
    as_policy({**settings, "threshold": 1}).start(len(exit_layers), problem_type, exit_layers)
    return settings


def sweep(
    exit_logits: Tensor,
    labels: np.ndarray,
    exit_layers: Sequence[int],
    problem_type: str,
    score: Metric,
    policy: dict[str, Any],
    thresholds: Iterable[float],
) -> list[CurvePoint]:
    """exit_logits (N, E, C), labels -> one point per threshold, in the order given."""
    layers = torch.tensor(exit_layers)
    full_depth = predictions_of(exit_logits[:, -1].numpy(), problem_type)
    points = []
    for threshold in thresholds:
        left_at = replay(
            make_policy(**policy, threshold=threshold), exit_logits, problem_type, exit_layers
        )  # (N,)
        logits = exit_logits[torch.arange(len(left_at)), left_at].numpy()  # (N, C)
        predicted = predictions_of(logits, problem_type)
        points.append(
            CurvePoint(
                threshold=threshold,
                cost=(layers[left_at].double().mean() / layers[-1]).item(),
                metric=score(predicted, labels),
                agreement=float(np.mean(predicted == full_depth)),
                exit_shares=(torch.bincount(left_at, minlength=len(layers)) / len(left_at)).tolist(),
            )
        )
    return points
