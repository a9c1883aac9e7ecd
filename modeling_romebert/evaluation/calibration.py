"""Thresholds that keep a promise: the cheapest exit policy that is certified to lose at most so much, or the
best one within a budget.

    rows -> one pass at full depth -> losses of every exit -> thresholds tested in order -> Calibration

What may be promised is in risks.py, the tests in risk_bounds.py, their order in fixed_sequence.py, budgets in
budget.py, what is found in calibrated.py, and the sentence that travels in certificate.py.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..certificate import precision_of
from ..configuration_romebert import ProblemType
from ..data.fingerprint import digest, row_hashes
from ..exit_policies import POLICIES, ExitPolicy, as_policy
from ..hub import weights_digest
from ..pretrained import inner_model
from .budget import within_budget
from .calibrated import Calibration
from .calibration_checks import (
    checked_arguments,
    checked_rows,
    checked_tolerance,
    refuse_training_data,
    warn_of_adapters,
)
from .evaluate import judge
from .exit_logits import read_rows, run_rows
from .fixed_sequence import Tested, certify_in_order, cheapest, exit_shares
from .metrics import DEFAULT_METRIC, Metric, find_metric, predictions_of
from .reliability import fit_scale, scale_exits
from .risk_curve import losses_over_cost
from .risks import NEEDS_LABELS, loss_table, risk_bound
from .shortfall import why_nothing
from .sweep import policy_to_sweep
from .token_calibration import calibrate_tokens


def calibrate(
    model: Any,
    dataset: Iterable[dict[str, Any]],
    tokenizer: Any,
    *,
    max_drop: float = 0.01,
    confidence: float = 0.95,
    risk: str = "drop",
    policy: str | dict[str, Any] = "entropy",
    metric: str | Metric | None = None,
    tolerance: float | None = None,
    cost: float | None = None,
    speedup: float | None = None,
    temperature: bool = False,
    per: str | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Calibration:
    """Choose the exit policy that costs least among those certified to keep a promise, and store both in
    `model.config`.

    With probability `confidence`, over the draw of the examples, the risk on texts like them is at most
    `max_drop`. The default risk is the drop itself, signed, because that is what the argument's name says,
    and it costs less than the bounds above it: rows that only an exit has right make up for rows that it
    gets wrong. `"harm"` promises more (the rows that get worse, alone), `"disagreement"` promises most and
    needs no labels, so that thousands of unlabelled texts can be used.

    Args:
        model, dataset, tokenizer, metric, batch_size: see `evaluate_exits`. The data must be none that the
            model was trained on, and should be none that it is later judged on. For `risk="disagreement"`
            rows need no labels.
        max_drop: in (0, 1); 0.01 is one point of accuracy. For several labels, of the share of right
            yes-or-no answers; for regression, of the share of answers within `tolerance`.
        confidence: in (0, 1).
        risk: "drop", "harm" or "disagreement" (risks.py).
        policy: its name, or its settings without the threshold.
        tolerance: for regression, in units of the label: answers that differ by no more are as good as equal.
            That of the policy when left out.
        cost, speedup: ask for the best share of right answers within a budget instead, as the fraction of
            layers run, or as 1 / that. Nothing is promised then; what it loses is reported with an interval.
        temperature: first scale every exit's logits to the temperature of least log loss (reliability.py), so
            that one threshold means the same at all exits. A fifth of the rows goes into that, and is not
            certified on; the scale goes into the weights of the exits. Answers stay what they are. For a
            single label.
        per: of a token classifier, whether an answer is a whole text (`"row"`, also when left out) or each of
            its words (`"token"`); see `calibrate_tokens`.

    Returns: What was found. Where nothing can be certified, its `reason` says so, and with how many examples
        it could be; the policy then runs every layer. `model.config.exit_policy` and
        `model.config.calibration` hold policy and certificate, so `save_pretrained`, the card and the
        pipeline carry them on.

    Raises:
        ValueError: an argument out of range, examples that the model was trained on, labels that are missing
            for a risk that needs them, or see `evaluate_exits`.
    """
    budget = checked_arguments(max_drop, confidence, risk, policy, cost, speedup)
    romebert = inner_model(model)
    warn_of_adapters(romebert)
    if romebert.config.classifies_tokens:
        if temperature or tolerance is not None:
            raise ValueError("temperature and tolerance are for classifiers of whole texts; leave them out.")
        given: dict[str, Any] = {"max_drop": max_drop, "confidence": confidence, "risk": risk}
        given |= {"policy": policy, "metric": metric, "cost": cost, "speedup": speedup}
        given |= {"per": per or "row", "batch_size": batch_size, "progress": progress}
        return calibrate_tokens(model, dataset, tokenizer, **given)
    if per is not None:
        raise ValueError(f"per={per!r} is for token classifiers, and this model classifies whole texts.")
    judge(romebert, metric, policy)  # what has no meaning fails here, before the model runs
    if temperature and not isinstance(romebert, torch.nn.Module):
        raise ValueError(
            "temperature=True scales the weights of the exits, and those of a bundle are fixed: calibrate the"
            " torch model with it, and export that."
        )
    needs_labels = risk in NEEDS_LABELS or budget is not None
    rows = read_rows(model, dataset, tokenizer, needs_labels)
    hashes = row_hashes(rows.inputs)
    refuse_training_data(romebert, hashes)
    exit_logits, labels = run_rows(model, rows.inputs, tokenizer, batch_size, progress), rows.labels
    scale = None
    if temperature:
        scale, rest = fit_scale(exit_logits, labels, romebert.problem_type)
        exit_logits, labels = (exit_logits / scale[:, None])[rest], None if labels is None else labels[rest]
    found = calibrate_from_logits(
        exit_logits,
        labels,
        exit_layers=romebert.config.exit_layers,
        problem_type=romebert.problem_type,
        max_drop=max_drop,
        confidence=confidence,
        risk=risk,
        policy=policy,
        metric=metric,
        tolerance=tolerance,
        cost=budget,
    )
    if scale is not None:
        scale_exits(romebert, scale)
    found = replace(
        found,
        digest=digest(hashes),
        weights=weights_digest(romebert.state_dict()),
        precision=precision_of(romebert),
        device=romebert.device.type,
    )
    romebert.config.exit_policy = found.policy.to_dict()
    romebert.config.calibration = found.to_dict()
    return found


def calibrate_from_logits(
    exit_logits: Tensor | np.ndarray,
    labels: np.ndarray | Sequence[Any] | None,
    *,
    exit_layers: Sequence[int],
    problem_type: str = ProblemType.SINGLE_LABEL,
    max_drop: float = 0.01,
    confidence: float = 0.95,
    risk: str = "drop",
    policy: str | dict[str, Any] = "entropy",
    metric: str | Metric | None = None,
    tolerance: float | None = None,
    cost: float | None = None,
    speedup: float | None = None,
) -> Calibration:
    """As `calibrate`, from the logits of every exit: no model, no text.

    Args:
        exit_logits: (N, E, C), of N independent examples.
        labels: (N,) class ids or numbers, (N, C) of 0 and 1; `None` where the risk needs none. Rows labelled
            -100 are left out.
        exit_layers: E of them: after how many layers each exit is.

    Raises:
        ValueError: see `calibrate`; or shapes that do not fit, or answers at full depth that are not finite.

    Example:
        >>> logits = torch.randn(400, 1, 2, generator=torch.Generator().manual_seed(0)).repeat(1, 3, 1)
        >>> found = calibrate_from_logits(logits, None, exit_layers=[1, 2, 3], risk="disagreement")
        >>> found.certified, round(found.cost, 2), found.policy
        (True, 0.33, make_policy(name='entropy', threshold=1.0))
    """
    budget = checked_arguments(max_drop, confidence, risk, policy, cost, speedup)
    logits, targets = checked_rows(exit_logits, labels, exit_layers, problem_type)
    settings = policy_to_sweep(policy, exit_layers, problem_type)
    if (risk in NEEDS_LABELS or budget is not None) and targets is None:
        raise ValueError(
            f'labels=None, and risk="{risk}" compares with labels: give them, or take risk="disagreement",'
            " which needs none and bounds the drop of accuracy too."
        )
    tolerance = checked_tolerance(tolerance, settings, problem_type)
    name, score = find_metric(metric or DEFAULT_METRIC[problem_type], problem_type, logits.shape[-1])
    grid = POLICIES[settings["name"]].grid(len(exit_layers), fine=True)
    common: dict[str, Any] = {"exit_layers": exit_layers, "problem_type": problem_type}

    interval, reason = None, None
    if budget is not None:
        table = loss_table("drop", logits, targets, problem_type, tolerance)
        fitted = within_budget(table, logits, settings, grid, budget=budget, confidence=confidence, **common)
        chosen, thresholds, certified = fitted.chosen, fitted.thresholds, False
        observed, bound, interval, risk = fitted.drop, fitted.interval[1], fitted.interval, "drop"
    else:
        table = loss_table(risk, logits, targets, problem_type, tolerance)
        promise: dict[str, Any] = {"risk": risk, "max_drop": max_drop, "confidence": confidence}
        kept, failed = certify_in_order(table, logits, settings, grid[1:], **common, **promise)
        best, certified = cheapest(kept), bool(kept)
        chosen = best or _nobody_exits(table, grid[0], exit_layers)
        thresholds, observed, bound = chosen.threshold, chosen.observed, 0.0
        if best is None:
            reason = why_nothing(failed, **promise)
        else:
            bound = risk_bound(risk, chosen.losses, confidence)

    differs = loss_table("disagreement", logits, None, problem_type, tolerance)[
        np.arange(len(logits)), chosen.left_at
    ]
    full_depth, with_exits = None, None
    if targets is not None:
        at_exit = logits[torch.arange(len(logits)), torch.as_tensor(chosen.left_at)]
        full_depth = score(predictions_of(logits[:, -1].numpy(), problem_type), targets)
        with_exits = score(predictions_of(at_exit.numpy(), problem_type), targets)
    return Calibration(
        policy=as_policy({**settings, **ExitPolicy.named_threshold(thresholds)}),
        certified=certified,
        risk=risk,
        max_drop=max_drop if budget is None else None,
        confidence=confidence,
        num_examples=len(logits),
        observed=observed,
        bound=bound,
        cost=chosen.cost,
        metric=name,
        full_depth=full_depth,
        with_exits=with_exits,
        exit_layers=list(exit_layers),
        exit_shares=exit_shares(chosen.left_at, len(exit_layers)),
        disagreement=float(differs.mean()),
        disagreement_bound=risk_bound("disagreement", differs, confidence),
        tolerance=tolerance,
        reason=reason,
        budget=budget,
        drop_interval=interval,
        curve=losses_over_cost(table, logits, settings, exit_layers, problem_type),
        versions={package: version(package) for package in ("romebert", "torch")},
    )


def _nobody_exits(table: Any, threshold: float, exit_layers: Sequence[int]) -> Tested:
    """The policy at which every row runs every layer: no risk, by construction."""
    last = np.full(len(table), len(exit_layers) - 1)
    return Tested(threshold, 1.0, last, np.zeros(len(table), dtype=np.int8), 0.0)
