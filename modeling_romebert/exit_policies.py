"""The exit policies: the logits (B, C) of exit e -> which of the B rows are sure enough to leave there.

What a policy is, and what it remembers of the rows, is in policy_base.py; how sure an exit is, in
confidence.py.
"""

import math
from collections.abc import Sequence
from typing import Any

from .arrays import Array, to_fp32
from .confidence import all_finite, confidence, log_probabilities, margin, negative_entropy
from .configuration_romebert import ProblemType, plain
from .policy_base import ExitPolicy


class ThresholdPolicy(ExitPolicy):
    """Compares a score with the threshold of the exit."""

    def __init__(self, threshold: float | None = None, thresholds: Sequence[float] | None = None):
        threshold, thresholds = plain(threshold), plain(thresholds)
        if (threshold is None) == (thresholds is None):
            missing = (
                f': add it, as in {{"name": "{self.name}", "threshold": ...}};'
                " the pipeline also takes exit_threshold=..."
            )
            raise ValueError(
                f"exit policy {self.name!r} takes exactly one of threshold (a number in"
                f" {_allowed(self._highest)}) and thresholds (one per"
                f" exit){missing if threshold is None else ''}."
            )
        if isinstance(threshold, list):
            raise ValueError(
                f"exit policy {self.name!r}: threshold={threshold} is not a number; thresholds takes one"
                " per exit."
            )
        if thresholds is not None and not isinstance(thresholds, list):
            raise ValueError(
                f"exit policy {self.name!r}: thresholds={thresholds!r} is not a list with one threshold per"
                " exit."
            )
        for value in [threshold] if thresholds is None else thresholds:
            _check_range(self.name, "threshold", value, high=self._highest)
        self.threshold: float | None = threshold
        self.thresholds: list[float] | None = thresholds

    _highest = 1.0

    @classmethod
    def grid(cls, num_exits: int, fine: bool = False) -> list[float]:
        return [round(1 - share, 6) for share in _shares(fine)]

    def start(
        self, num_exits: int, problem_type: str, exit_layers: Sequence[int] | None = None
    ) -> "ExitPolicy":
        if self.thresholds is not None and len(self.thresholds) != num_exits:
            raise ValueError(
                f"thresholds has {len(self.thresholds)} entries, but the model has {num_exits} exits: give"
                " one per exit."
            )
        return super().start(num_exits, problem_type, exit_layers)

    def threshold_at(self, exit_index: int) -> float:
        """The threshold that exit e = 0, 1, ... goes by."""
        if self.thresholds is not None:
            return self.thresholds[exit_index]
        assert self.threshold is not None  # the constructor takes exactly one of the two
        return self.threshold


class EntropyPolicy(ThresholdPolicy):
    """Leaves when the entropy over ln K is below the threshold (DeeBERT, FastBERT)."""

    name = "entropy"

    @classmethod
    def grid(cls, num_exits: int, fine: bool = False) -> list[float]:
        return _shares(fine)

    def leaves(self, exit_index: int, logits: Array) -> Array:
        log_p = log_probabilities(logits, self._problem_type)
        # Logits that are not finite have an entropy that is not a number, so above nothing: no need to look
        # for them. The threshold is brought to nats, not the entropy to 0..1, which saves a single text an
        # operator.
        return negative_entropy(log_p) > -self.threshold_at(exit_index) * math.log(log_p.shape[-1])


class ConfidencePolicy(ThresholdPolicy):
    """Leaves when the largest probability is above the threshold."""

    name = "confidence"

    def leaves(self, exit_index: int, logits: Array) -> Array:
        sure = confidence(log_probabilities(logits, self._problem_type)) > self.threshold_at(exit_index)
        return sure & all_finite(logits)


class MarginPolicy(ThresholdPolicy):
    """Leaves when the largest probability is above the second largest by more than the threshold."""

    name = "margin"

    def leaves(self, exit_index: int, logits: Array) -> Array:
        sure = margin(log_probabilities(logits, self._problem_type)) > self.threshold_at(exit_index)
        return sure & all_finite(logits)


class PatiencePolicy(ExitPolicy):
    """Leaves when `patience` exits in a row predict the same (PABEE); for regression, the same up to
    `tolerance`.
    """

    name = "patience"
    reads_regression = True
    threshold_names = ("threshold", "thresholds", "patience")

    def __init__(
        self, patience: int | None = None, tolerance: float | None = None, threshold: int | None = None
    ):
        if patience is not None and threshold is not None:
            raise ValueError(
                f"patience={patience} and threshold={threshold}: for this policy they are the same setting;"
                " give one."
            )
        self.patience = _checked_patience(self.name, threshold if patience is None else patience)
        tolerance = plain(tolerance)
        if tolerance is not None:
            _check_range(self.name, "tolerance", tolerance, high=math.inf)
        self.tolerance = tolerance

    @classmethod
    def grid(cls, num_exits: int, fine: bool = False) -> list[float]:
        return list(range(num_exits, 0, -1))

    def start(
        self, num_exits: int, problem_type: str, exit_layers: Sequence[int] | None = None
    ) -> "ExitPolicy":
        if problem_type == ProblemType.REGRESSION and self.tolerance is None:
            raise ValueError(
                "exit policy 'patience' needs tolerance (in units of the target) for"
                ' problem_type="regression".'
            )
        return super().start(num_exits, problem_type, exit_layers)

    def leaves(self, exit_index: int, logits: Array) -> Array:
        finite = all_finite(logits)
        if self._problem_type == ProblemType.REGRESSION:
            prediction, tolerance = to_fp32(logits), self.tolerance
        else:
            prediction, tolerance = log_probabilities(logits, self._problem_type).argmax(axis=-1), None
        return self._memory.add(1 * finite, prediction, finite, tolerance) >= self.patience


class PatientConfidencePolicy(ThresholdPolicy):
    """Leaves when `patience` exits in a row predict the same, each with a confidence above the threshold
    (PCEE-BERT).
    """

    name = "patient_confidence"

    def __init__(
        self,
        threshold: float | None = None,
        thresholds: Sequence[float] | None = None,
        patience: int | None = None,
    ):
        super().__init__(threshold, thresholds)
        self.patience = _checked_patience(self.name, patience)

    def leaves(self, exit_index: int, logits: Array) -> Array:
        log_p = log_probabilities(logits, self._problem_type)
        confident = (confidence(log_p) > self.threshold_at(exit_index)) & all_finite(logits)
        return self._memory.add(1 * confident, log_p.argmax(axis=-1), confident) >= self.patience


class VotePolicy(ThresholdPolicy):
    """Leaves when the confidences of the present run of agreeing exits add up to more than the threshold
    (BEEM).

    Each exit adds at most 1, so a threshold of 1.5 asks for at least two exits.
    """

    name = "vote"
    _highest = math.inf

    @classmethod
    def grid(cls, num_exits: int, fine: bool = False) -> list[float]:
        steps = 200 if fine else 20
        return [num_exits * step / steps for step in range(steps, -1, -1)]

    def leaves(self, exit_index: int, logits: Array) -> Array:
        log_p = log_probabilities(logits, self._problem_type)
        return self._memory.add(
            confidence(log_p), log_p.argmax(axis=-1), all_finite(logits)
        ) > self.threshold_at(exit_index)


class FullDepth(ExitPolicy):
    """Nobody exits early, and no exit but the last is evaluated."""

    name = "full_depth"
    reads_regression = True

    def asks(self, exit_index: int) -> bool:
        return False

    def leaves(self, exit_index: int, logits: Array) -> Array:
        return all_finite(logits) & False


POLICIES: dict[str, type[ExitPolicy]] = {
    policy.name: policy
    for policy in (
        EntropyPolicy,
        ConfidencePolicy,
        MarginPolicy,
        PatiencePolicy,
        PatientConfidencePolicy,
        VotePolicy,
    )
}


def make_policy(
    name: str,
    ask_every: int | None = None,
    ask_exits: Sequence[int] | None = None,
    unit: str | None = None,
    window: int | None = None,
    **settings: Any,
) -> ExitPolicy:
    """Build an exit policy by name.

    Args:
        name: one of `POLICIES`. Its settings may be numbers of Python, or scalars, arrays and tensors;
            `to_dict` has Python's.
        threshold: leave below it (`entropy`) or above it (`confidence`, `margin`, `patient_confidence`: in
            0..1; `vote`: in summed confidences). For `patience` it is another word for `patience`.
        thresholds: one threshold per exit instead; the entry of the last exit decides nothing.
        patience: exits in a row that must agree (`patience`, `patient_confidence`).
        tolerance: for `patience` on regression: exits agree when they differ by less, in units of the target.
        ask_every, ask_exits: ask at every so many-th exit only, or at the exits after these layers; see
            `ExitPolicy.asking`.
        unit, window: for a token classifier: whether whole texts leave (`"row"`) or single tokens halt
            (`"token"`), and the window that has to be sure; see `ExitPolicy.deciding_for`.

    Raises:
        ValueError: unknown name, a setting that the policy does not take, or a value out of range.

    Example:
        >>> make_policy("entropy", threshold=0.2).to_dict()
        {'name': 'entropy', 'threshold': 0.2}
    """
    if not isinstance(name, str) or name not in POLICIES:
        raise ValueError(f"exit policy {name!r} is unknown; choose from {', '.join(POLICIES)}.")
    policy = _build(POLICIES[name], settings)
    if unit is not None or window is not None:
        policy = policy.deciding_for(unit, window)
    return policy if ask_every is None and ask_exits is None else policy.asking(ask_every, ask_exits)


def _build(policy: type[ExitPolicy], settings: dict[str, Any]) -> ExitPolicy:
    settings = {key: value for key, value in settings.items() if key != "name"}
    try:
        return policy(**settings)
    except TypeError as error:
        reason = str(error).rpartition("__init__() ")[2]
        raise ValueError(f"exit policy {policy.name!r}: {reason}.") from None


def threshold_settings(name: Any) -> tuple[str, ...]:
    """A policy's name -> its settings that a threshold stands for."""
    return POLICIES.get(name, ExitPolicy).threshold_names


def _with_threshold(settings: dict[str, Any], threshold: Any) -> dict[str, Any]:
    """A policy's settings -> the same with another threshold, a number or one per exit."""
    kept = {key: value for key, value in settings.items() if key not in threshold_settings(settings["name"])}
    return kept | ExitPolicy.named_threshold(threshold)


def as_policy(policy: "ExitPolicy | dict[str, Any] | str", threshold: Any = None) -> ExitPolicy:
    """A policy, its settings as in `config.exit_policy`, or its name -> a policy; with another threshold
    where one is given.

    Raises:
        ValueError: it is none of these, or see `make_policy`.
    """
    if isinstance(policy, str):
        policy = {"name": policy}
    if isinstance(policy, dict):
        if "name" not in policy:
            raise ValueError(f"exit_policy={policy}: it has no 'name'; choose from {', '.join(POLICIES)}.")
        return make_policy(**policy if threshold is None else _with_threshold(policy, threshold))
    if not hasattr(policy, "leaves"):
        raise ValueError(
            f"exit_policy={policy!r}: give a policy or its settings, such as"
            ' {"name": "entropy", "threshold": 0.2}.'
        )
    return policy if threshold is None else policy.with_threshold(threshold)


def _allowed(high: float) -> str:
    return f"0..{high:g}" if math.isfinite(high) else "0 or more"


def _check_range(policy: str, what: str, value: Any, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
        raise ValueError(f"exit policy {policy!r}: {what}={value!r} is not in {_allowed(high)}.")


def _checked_patience(policy: str, patience: Any) -> int:
    patience = plain(patience)
    if (
        isinstance(patience, bool)
        or not isinstance(patience, (int, float))
        or not patience >= 1
        or patience % 1 != 0
    ):
        raise ValueError(
            f"exit policy {policy!r}: patience={patience!r}: give the number of exits in a row that must"
            " agree, a whole number"
            f' from 1, as in {{"name": "{policy}", "patience": 2}}.'
        )
    return int(patience)


def _shares(fine: bool) -> list[float]:
    """0 to 1: fine in steps of 0.005, or coarser; closer near 0, where policies differ most."""
    if fine:
        return [0.0, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.003, *(step / 200 for step in range(1, 201))]
    percent = (0, 1, 2, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 60, 70, 80, 90, 95, 100)
    return [share / 100 for share in percent]
