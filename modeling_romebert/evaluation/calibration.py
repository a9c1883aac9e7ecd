"""Thresholds that are chosen on data: the cheapest policy that still meets a target."""

from collections.abc import Iterable
from typing import Any

from ..exit_policies import POLICIES, ExitPolicy, make_policy
from ..pretrained import inner_model
from .evaluate import judge
from .exit_logits import collect_exit_logits
from .metrics import Metric
from .report import CurvePoint
from .sweep import sweep


def calibrate(
    model: Any,
    dataset: Iterable[dict[str, Any]],
    tokenizer: Any,
    *,
    max_loss: float = 0.01,
    metric: str | Metric | None = None,
    policy: str | dict[str, Any] = "entropy",
    batch_size: int = 64,
    progress: bool = True,
) -> ExitPolicy:
    """Find the threshold with the lowest cost among those that lose at most `max_loss`, and store it in
    `model.config`.

    Args:
        model, dataset, tokenizer, metric, policy, batch_size: see `evaluate_exits`. The data should be none
            that the model was trained on, and none that it is later judged on.
        max_loss: how far the metric may fall below full depth, in units of the metric (0.01 is one point of
            accuracy).

    Returns:
        The policy. `model.config.exit_policy` holds its settings, so `save_pretrained` and the pipeline
        carry it on.

    Raises:
        ValueError: `max_loss` is negative, or see `evaluate_exits`.
    """
    if not max_loss >= 0:
        raise ValueError(
            f"max_loss={max_loss} is not 0 or more: it says how far the metric may fall below full depth."
        )
    romebert = inner_model(model)
    judge(romebert, metric, policy)  # what has no meaning fails here, before the model runs
    exit_logits, labels, _ = collect_exit_logits(model, dataset, tokenizer, batch_size, progress)
    _, score, settings = judge(romebert, metric, policy)  # labels may have settled the problem type
    # From "nobody leaves" on, so that of equal thresholds the most careful is taken.
    thresholds = POLICIES[settings["name"]].grid(len(romebert.config.exit_layers), fine=True)
    points = sweep(
        exit_logits, labels, romebert.config.exit_layers, romebert.problem_type, score, settings, thresholds
    )
    best = cheapest(points, max_loss)
    calibrated = make_policy(**settings, threshold=round(best.threshold, 6))
    romebert.config.exit_policy = calibrated.to_dict()
    return calibrated


def cheapest(points: list[CurvePoint], max_loss: float) -> CurvePoint:
    """The point of lowest cost whose metric is at most `max_loss` below that of the point of highest cost
    (full depth).
    """
    full = max(points, key=lambda point: point.cost)
    rounding = 1e-9  # 0.8 - 0.7 is more than 0.1
    return min(
        (point for point in points if full.metric - point.metric <= max_loss + rounding),
        key=lambda point: point.cost,
    )
