"""Policies replayed on the logits of every exit: what each threshold costs, and what it scores.

The replay uses the same policy objects as the early-exit loop, row for row.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..configuration_romebert import plain
from ..exit_policies import ExitPolicy, as_policy, make_policy, threshold_settings
from .metrics import Metric, predictions_of
from .report import CurvePoint


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


def policy_to_sweep(
    policy: str | dict[str, Any], exit_layers: Sequence[int], problem_type: str
) -> dict[str, Any]:
    """A policy's name, or its settings without the threshold -> those settings.

    Raises:
        ValueError: an unknown name or setting, a threshold, or a policy that has no meaning for the problem
            type.
    """
    settings = {"name": policy} if isinstance(policy, str) else plain(dict(policy))
    varied = threshold_settings(settings.get("name"))
    if given := [name for name in varied if name in settings]:
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
