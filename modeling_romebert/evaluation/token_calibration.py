"""Thresholds of a token classifier that keep a promise: `calibrate` for tokens.

    rows -> one pass at full depth -> outcomes of thresholds, the safest first -> losses of rows ->
    Calibration

Texts are independent, their words are not: a loss is of a text. Per row, a text is one answer, right or the
same as full depth's when all its words are. Per token, its loss is the share of its words. The tests are
those of texts (risk_bounds.py), in the same order (fixed_sequence.py).
"""

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..certificate import precision_of
from ..data.fingerprint import digest, row_hashes
from ..data.token_rows import read_token_rows
from ..exit_policies import POLICIES, ExitPolicy, as_policy
from ..hub import weights_digest
from ..pretrained import inner_model
from .budget import FOLDS, drop_interval, too_small
from .calibrated import Calibration
from .calibration_checks import checked_arguments, refuse_training_data
from .fixed_sequence import Tested, cheapest
from .risks import NEEDS_LABELS, p_value_of, risk_bound
from .shortfall import why_nothing
from .sweep import policy_to_sweep
from .token_evaluation import Judge, TokenMetric, find_token_metric
from .token_outcomes import Outcome, TokenOutcomes, labelled

PER = ("row", "token")


def calibrate_tokens(
    model: Any,
    dataset: Iterable[dict[str, Any]],
    tokenizer: Any,
    *,
    max_drop: float = 0.01,
    confidence: float = 0.95,
    risk: str = "drop",
    per: str = "row",
    policy: str | dict[str, Any] = "entropy",
    metric: str | TokenMetric | None = None,
    cost: float | None = None,
    speedup: float | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Calibration:
    """As `calibrate`, which calls this for a token classifier.

    Args:
        dataset: see `read_token_rows`.
        per: "row": the risk is of texts, of which one word that is wrong makes a wrong answer; "token": of
            the share of words in a text, averaged over texts.
        policy: with `"unit": "token"` the model runs anew at each of some twenty thresholds; else some two
            hundred are replayed on one pass.
        max_drop, confidence, risk, metric, cost, speedup: see `calibrate`; `cost` counts layers times tokens.

    Returns: What was found; policy and certificate are in the model's config.
    """
    if per not in PER:
        raise ValueError(f"per={per!r} is unknown; choose from {', '.join(PER)}.")
    budget = checked_arguments(max_drop, confidence, risk, policy, cost, speedup)
    romebert = inner_model(model)
    settings = policy_to_sweep(policy, romebert.exit_layers, romebert.problem_type)
    find_token_metric(metric, romebert.config)
    needs_labels = risk in NEEDS_LABELS or budget is not None
    rows = read_token_rows(model, dataset, tokenizer, needs_labels)
    hashes = row_hashes(rows.inputs)
    refuse_training_data(romebert, hashes)
    outcomes = TokenOutcomes(model, rows, tokenizer, batch_size, progress)
    if not outcomes.exit_logits[:, -1].isfinite().all():
        raise ValueError(
            "the answers at full depth of some words are not finite. Run the model in fp32, where its numbers"
            " do not overflow."
        )
    name, score = find_token_metric(metric, romebert.config)
    grid = POLICIES[settings["name"]].grid(len(romebert.exit_layers), fine=settings.get("unit") != "token")
    losses = Losses(outcomes, "drop" if budget is not None else risk, per)

    reason, interval, observed = None, None, None
    if budget is None:
        promise: dict[str, Any] = {"risk": risk, "max_drop": max_drop, "confidence": confidence}
        kept, failed = _certify(outcomes, losses, settings, grid[1:], promise)
        chosen, certified = cheapest(kept), bool(kept)
        if chosen is None:
            reason = why_nothing(failed, **promise)
    else:
        chosen, held_out = _within(outcomes, losses, settings, grid, budget)
        certified, risk = False, "drop"
        observed, interval = float(held_out.mean()), drop_interval(held_out, confidence)
    if chosen is None:
        chosen = losses.tested(outcomes.at(settings, grid[0]), grid[0])
    if observed is None:
        observed = chosen.observed
    outcome = outcomes.at(settings, chosen.threshold)
    differs = Losses(outcomes, "disagreement", per)(outcome)
    full_depth, with_exits = None, None
    if outcomes.labels is not None:
        judge = Judge(outcomes, score)
        full_depth, with_exits = judge(outcomes.full_depth), judge(outcome.answers)
    found = Calibration(
        policy=as_policy({**settings, **ExitPolicy.named_threshold(chosen.threshold)}),
        certified=certified,
        risk=risk,
        max_drop=max_drop if budget is None else None,
        confidence=confidence,
        num_examples=len(rows.inputs),
        observed=observed,
        bound=0.0 if reason else interval[1] if interval else risk_bound(risk, chosen.losses, confidence),
        cost=chosen.cost,
        metric=name,
        full_depth=full_depth,
        with_exits=with_exits,
        exit_layers=list(romebert.exit_layers),
        exit_shares=outcomes.shares(outcome),
        disagreement=float(differs.mean()),
        disagreement_bound=risk_bound("disagreement", differs, confidence),
        reason=reason,
        budget=budget,
        drop_interval=interval,
        per=per,
        digest=digest(hashes),
        weights=weights_digest(romebert.state_dict()),
        precision=precision_of(romebert),
        device=romebert.device.type,
        curve=_curve(outcomes, losses, settings),
        versions={package: version(package) for package in ("romebert", "torch")},
    )
    romebert.config.exit_policy = found.policy.to_dict()
    romebert.config.calibration = found.to_dict()
    return found


class Losses:
    """Outcomes -> the loss of each of N texts, see `calibrate_tokens`.

    Args:
        risk: "disagreement", "harm" or "drop" (risks.py).
        per: "row" or "token".
    """

    def __init__(self, outcomes: TokenOutcomes, risk: str, per: str):
        self.outcomes, self.risk, self.per = outcomes, risk, per
        # (n,): which words count.
        everywhere = np.ones(len(outcomes.row_of), dtype=bool)
        self.counted = everywhere if risk == "disagreement" else labelled(outcomes)
        self.rows = len(outcomes.words)
        self.sizes = np.maximum(np.bincount(outcomes.row_of[self.counted], minlength=self.rows), 1)

    def __call__(self, outcome: Outcome) -> NDArray[Any]:
        """(N,): int8 of -1, 0, 1 per row, or float64 in -1..1 per token."""
        wrong, before = self._wrong(outcome.answers), self._wrong(self.outcomes.full_depth)
        if self.per == "token":
            change = (
                self._sums(wrong & ~before) if self.risk == "harm" else self._sums(wrong) - self._sums(before)
            )
            return change / self.sizes
        rows, rows_before = self._sums(wrong) > 0, self._sums(before) > 0
        if self.risk == "harm":
            return (rows & ~rows_before).astype(np.int8)
        return rows.astype(np.int8) - rows_before.astype(np.int8)

    def _wrong(self, answers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,): which words are wrong, or of disagreement other than at full depth."""
        right = self.outcomes.full_depth if self.risk == "disagreement" else self.outcomes.labels
        assert right is not None
        return np.asarray(answers != right) & self.counted

    def _sums(self, flags: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(n,) -> (N,): how many words of each row."""
        return np.bincount(self.outcomes.row_of[flags], minlength=self.rows)

    def tested(self, outcome: Outcome, threshold: float) -> Tested:
        """As a threshold of a sequence; `left_at` is where the last token of each row left."""
        bounds = np.cumsum([0, *self.outcomes.counts])[:-1]
        deepest = np.maximum.reduceat(outcome.layers, bounds)
        left_at = np.searchsorted(self.outcomes.model.exit_layers, deepest)
        return Tested(threshold, self.outcomes.cost(outcome), left_at, self(outcome))


def _certify(
    outcomes: TokenOutcomes,
    losses: Losses,
    settings: dict[str, Any],
    thresholds: Iterable[float],
    promise: dict[str, Any],
) -> tuple[list[Tested], Tested | None]:
    """Test thresholds in the order given, up to the first that cannot be certified: `certify_in_order`."""
    certified: list[Tested] = []
    for threshold in thresholds:
        tested = losses.tested(outcomes.at(settings, threshold), threshold)
        p_value = p_value_of(promise["risk"], tested.losses, promise["confidence"])(promise["max_drop"])
        tested = tested._replace(p_value=p_value)
        if p_value > 1 - promise["confidence"]:
            return certified, tested
        certified.append(tested)
    return certified, None


def _within(
    outcomes: TokenOutcomes, losses: Losses, settings: dict[str, Any], grid: Sequence[float], budget: float
) -> tuple[Tested, NDArray[Any]]:
    """The threshold of least drop within a budget, the cheaper of equal ones; and (N,) losses of rows at the
    thresholds that the others would have chosen.

    Raises:
        ValueError: no threshold is so cheap.
    """
    found = [outcomes.at(settings, threshold) for threshold in grid]
    points = [losses.tested(outcome, threshold) for outcome, threshold in zip(found, grid, strict=True)]
    bounds = np.cumsum([0, *outcomes.counts])[:-1]
    ran = np.stack([np.add.reduceat(outcome.layers, bounds) for outcome in found])  # (K, N)
    most = np.asarray(outcomes.counts) * outcomes.model.exit_layers[-1]  # (N,)
    lost = np.stack([point.losses for point in points])  # (K, N)

    def best(rows: NDArray[Any]) -> int:
        costs = ran[:, rows].sum(axis=1) / most[rows].sum()  # (K,)
        within = np.flatnonzero(costs <= budget + 1e-12)
        if not len(within):
            return int(costs.argmin())
        return int(min(within, key=lambda index: (lost[index, rows].mean(), costs[index])))

    chosen = points[best(np.arange(lost.shape[1]))]
    if chosen.cost > budget + 1e-12:
        raise ValueError(too_small(budget, chosen.cost))
    fold = np.random.default_rng(0).permutation(lost.shape[1]) % min(FOLDS, lost.shape[1])
    held_out = chosen.losses.copy()
    for number in np.unique(fold) if lost.shape[1] > 1 else []:
        outside = np.flatnonzero(fold == number)
        held_out[outside] = lost[best(np.flatnonzero(fold != number)), outside]
    return chosen, held_out


def _curve(outcomes: TokenOutcomes, losses: Losses, settings: dict[str, Any]) -> tuple[Tested, ...]:
    """Losses at the thresholds of the coarse grid, for `plot`; of tokens that halt there is none, as each
    takes a pass.
    """
    if settings.get("unit") == "token":
        return ()
    grid = POLICIES[settings["name"]].grid(len(outcomes.model.exit_layers))
    return tuple(losses.tested(outcomes.at(settings, threshold), threshold) for threshold in grid)
