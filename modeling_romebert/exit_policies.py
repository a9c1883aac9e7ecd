"""When a row leaves: the logits (B, C) of exit e -> which of the B rows are sure enough.

A policy holds its settings and, between `start` and the last exit, what it remembers of the rows that have
not exited. It never sees hidden states, and it does not move rows; the early-exit loop (early_exit.py) does.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from .confidence import all_finite, confidence, log_probabilities, margin, negative_entropy
from .configuration_romebert import plain

logger = logging.get_logger(__name__)


class _Agreement:
    """Memory of the policies that compare exits: the last prediction (B,) or (B, D), and what a run of equal
    ones adds up to.
    """

    def __init__(self) -> None:
        self.prediction: Tensor | None = None
        self.total: Tensor | None = None

    def add(
        self, amount: Tensor, prediction: Tensor, counts: Tensor, tolerance: float | None = None
    ) -> Tensor:
        """An exit's amount (B,), prediction and whether it counts (B,) -> (B,): sum over the run of agreeing
        exits.

        A row that does not count has 0, and its run begins anew.
        """
        amount = torch.where(counts, amount, 0)
        if self.prediction is None or self.total is None:
            self.total = amount
        else:
            same = (
                prediction == self.prediction
                if tolerance is None
                else (prediction - self.prediction).abs() < tolerance
            )
            same = same if same.dim() == 1 else same.all(dim=-1)
            self.total = torch.where(same & counts, self.total, 0) + amount
        self.prediction = prediction
        return self.total

    def keep(self, rows: Tensor | slice) -> None:
        if self.prediction is not None and self.total is not None:
            self.prediction, self.total = self.prediction[rows], self.total[rows]

    @classmethod
    def merge(cls, memories: Sequence["_Agreement"]) -> "_Agreement":
        """Memories of different rows at the same exit -> that of all of them."""
        merged = cls()
        predictions = [memory.prediction for memory in memories if memory.prediction is not None]
        totals = [memory.total for memory in memories if memory.total is not None]
        if predictions and totals:
            merged.prediction, merged.total = torch.cat(predictions), torch.cat(totals)
        return merged


class ExitPolicy(ABC):
    """A rule that says which rows leave at an exit.

    Use it as `policy.start(...)` once per batch, then at every exit that it `asks`, `leaves(...)` and, when
    rows left, `keep(...)`. `start` returns a fresh copy, so that one policy can serve many batches and
    threads.
    """

    name: str
    reads_regression = False
    ask_every: int | None = None
    ask_exits: list[int] | None = None
    _problem_type: str  # these three from `start` on
    _memory: _Agreement
    _asked: list[bool]

    def asking(self, every: int | None = None, exits: Sequence[int] | None = None) -> "ExitPolicy":
        """A copy that is asked less often: at every so many-th exit, or at the exits after these layers. The
        last is always asked.

        Exits that are not asked are not computed; the thresholds of the others stay what they are. Memory,
        where a policy has one, is of exits that were asked.

        Raises:
            ValueError: both are given, or what is given is no number from 1, or no list of layers.
        """
        every, exits = plain(every), plain(exits)
        if every is not None and exits is not None:
            raise ValueError(f"ask_every={every} and ask_exits={exits}: give one of them.")
        if every is not None and not _is_count(every):
            raise ValueError(f"ask_every={every!r}: give a whole number from 1; 2 asks at every second exit.")
        if isinstance(exits, set | frozenset):
            exits = list(exits)
        if exits is not None and not (isinstance(exits, list) and exits and all(map(_is_count, exits))):
            raise ValueError(f"ask_exits={exits!r}: give a list of layers that have an exit, counted from 1.")
        other = self._copy()
        other.ask_every, other.ask_exits = every, None if exits is None else sorted(exits)
        return other

    def start(
        self, num_exits: int, problem_type: str, exit_layers: Sequence[int] | None = None
    ) -> "ExitPolicy":
        """A copy without memory, for one batch. exit_layers: after which layers the exits are, for
        `ask_exits`; all when left out.

        Raises:
            ValueError: the policy has no meaning for this problem type, its thresholds do not fit the number
                of exits, or it asks where there is none.
        """
        if problem_type == "regression" and not self.reads_regression:
            raise ValueError(
                f"exit policy {self.name!r} needs class probabilities, and"
                ' problem_type="regression" has none. Use {"name": "patience", "patience": p,'
                ' "tolerance": t}.'
            )
        fresh = self._copy()
        fresh._problem_type = problem_type
        fresh._memory = _Agreement()
        fresh._asked = self._plan(range(1, num_exits + 1) if exit_layers is None else exit_layers)
        return fresh

    def _plan(self, exit_layers: Sequence[int]) -> list[bool]:
        """Layers with an exit -> whether each exit is asked."""
        if self.ask_exits is None:
            return [number % (self.ask_every or 1) == 0 for number in range(1, len(exit_layers) + 1)]
        if absent := [layer for layer in self.ask_exits if layer not in exit_layers]:
            raise ValueError(
                f"ask_exits={self.ask_exits}: there is no exit after {absent}; there are after"
                f" {list(exit_layers)}."
            )
        return [layer in self.ask_exits for layer in exit_layers]

    def asks(self, exit_index: int) -> bool:
        """Whether exit e = 0, 1, ... is asked; those that are not need not be computed."""
        return self._asked[exit_index]

    @abstractmethod
    def leaves(self, exit_index: int, logits: Tensor) -> Tensor:
        """Exit e = 0, 1, ... and its logits (B, C) for the B rows that have not exited -> (B,) bool: which
        exit.

        A row with a logit that is not finite never leaves, and does not count as agreeing.
        """

    def keep(self, rows: Tensor | slice) -> None:
        """Forget all rows but these: indices (b,) into the rows of the last call, or a slice of them."""
        self._memory.keep(rows)

    def merge(self, policies: Sequence["ExitPolicy"]) -> "ExitPolicy":
        """Of different rows at the same exit -> one for all of them, in order.

        A policy with memory of its own merges that too.
        """
        merged = self._copy()
        merged._memory = _Agreement.merge([policy._memory for policy in policies])
        return merged

    def can_rebatch(self) -> bool:
        """Whether rows under this policy can be split from a batch and merged with those of others.

        What a policy remembers has to go with its rows. A class of a user's own that says in its own way when
        rows exit, or what is kept of them, may remember things that an inherited `merge` would lose. It says
        how it merges: with a `merge` of its own, or with `merge = ExitPolicy.merge` where it remembers
        nothing else. Where it does not, that is said once.
        """
        for kind in type(self).__mro__:
            if "merge" in vars(kind) or kind.__module__ == __name__:
                break
            if own := sorted({"start", "leaves", "keep", "asks"} & vars(kind).keys()):
                logger.warning_once(
                    f"exit policy {type(self).__name__} has its own {', '.join(own)} and no merge, so what"
                    " it remembers cannot follow rows into other batches: it runs without rebatching, which"
                    " takes longer. Give it a merge, or merge = ExitPolicy.merge where it remembers nothing"
                    " of its own."
                )
                return False
        return True

    def _copy(self) -> "ExitPolicy":
        """As `copy.copy`, which for a single text takes as long as a layer's norm."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def to_dict(self) -> dict[str, Any]:
        """Settings that `make_policy(**settings)` takes, for `config.exit_policy`."""
        settings = {
            key: plain(value)
            for key, value in vars(self).items()
            if not key.startswith("_") and value is not None
        }
        return {"name": self.name, **settings}

    def with_threshold(self, threshold: Any) -> "ExitPolicy":
        """A copy with another threshold: a number, or one per exit."""
        settings = self.to_dict()
        asks = {"every": settings.pop("ask_every", None), "exits": settings.pop("ask_exits", None)}
        other = _build(type(self), _with_threshold(settings, threshold))
        return other.asking(**asks)

    def __repr__(self) -> str:
        return f"make_policy({', '.join(f'{key}={value!r}' for key, value in self.to_dict().items())})"


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

    def leaves(self, exit_index: int, logits: Tensor) -> Tensor:
        log_p = log_probabilities(logits, self._problem_type)
        # Logits that are not finite have an entropy that is not a number, so above nothing: no need to look
        # for them. The threshold is brought to nats, not the entropy to 0..1, which saves a single text an
        # operator.
        return negative_entropy(log_p) > -self.threshold_at(exit_index) * math.log(log_p.shape[-1])


class ConfidencePolicy(ThresholdPolicy):
    """Leaves when the largest probability is above the threshold."""

    name = "confidence"

    def leaves(self, exit_index: int, logits: Tensor) -> Tensor:
        sure = confidence(log_probabilities(logits, self._problem_type)) > self.threshold_at(exit_index)
        return sure & all_finite(logits)


class MarginPolicy(ThresholdPolicy):
    """Leaves when the largest probability is above the second largest by more than the threshold."""

    name = "margin"

    def leaves(self, exit_index: int, logits: Tensor) -> Tensor:
        sure = margin(log_probabilities(logits, self._problem_type)) > self.threshold_at(exit_index)
        return sure & all_finite(logits)


class PatiencePolicy(ExitPolicy):
    """Leaves when `patience` exits in a row predict the same (PABEE); for regression, the same up to
    `tolerance`.
    """

    name = "patience"
    reads_regression = True

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

    def start(
        self, num_exits: int, problem_type: str, exit_layers: Sequence[int] | None = None
    ) -> "ExitPolicy":
        if problem_type == "regression" and self.tolerance is None:
            raise ValueError(
                "exit policy 'patience' needs tolerance (in units of the target) for"
                ' problem_type="regression".'
            )
        return super().start(num_exits, problem_type, exit_layers)

    def leaves(self, exit_index: int, logits: Tensor) -> Tensor:
        finite = all_finite(logits)
        if self._problem_type == "regression":
            prediction, tolerance = logits.float(), self.tolerance
        else:
            prediction, tolerance = log_probabilities(logits, self._problem_type).argmax(dim=-1), None
        return self._memory.add(finite.long(), prediction, finite, tolerance) >= self.patience


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

    def leaves(self, exit_index: int, logits: Tensor) -> Tensor:
        log_p = log_probabilities(logits, self._problem_type)
        confident = (confidence(log_p) > self.threshold_at(exit_index)) & all_finite(logits)
        return self._memory.add(confident.long(), log_p.argmax(dim=-1), confident) >= self.patience


class VotePolicy(ThresholdPolicy):
    """Leaves when the confidences of the present run of agreeing exits add up to more than the threshold
    (BEEM).

    Each exit adds at most 1, so a threshold of 1.5 asks for at least two exits.
    """

    name = "vote"
    _highest = math.inf

    def leaves(self, exit_index: int, logits: Tensor) -> Tensor:
        log_p = log_probabilities(logits, self._problem_type)
        return self._memory.add(
            confidence(log_p), log_p.argmax(dim=-1), all_finite(logits)
        ) > self.threshold_at(exit_index)


class FullDepth(ExitPolicy):
    """Nobody exits early, and no exit but the last is evaluated."""

    name = "full_depth"
    reads_regression = True

    def asks(self, exit_index: int) -> bool:
        return False

    def leaves(self, exit_index: int, logits: Tensor) -> Tensor:
        return torch.zeros(len(logits), dtype=torch.bool)


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
    name: str, ask_every: int | None = None, ask_exits: Sequence[int] | None = None, **settings: Any
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

    Raises:
        ValueError: unknown name, a setting that the policy does not take, or a value out of range.

    Example:
        >>> make_policy("entropy", threshold=0.2).to_dict()
        {'name': 'entropy', 'threshold': 0.2}
    """
    if not isinstance(name, str) or name not in POLICIES:
        raise ValueError(f"exit policy {name!r} is unknown; choose from {', '.join(POLICIES)}.")
    policy = _build(POLICIES[name], settings)
    return policy if ask_every is None and ask_exits is None else policy.asking(ask_every, ask_exits)


def _build(policy: type[ExitPolicy], settings: dict[str, Any]) -> ExitPolicy:
    settings = {key: value for key, value in settings.items() if key != "name"}
    try:
        return policy(**settings)
    except TypeError as error:
        reason = str(error).rpartition("__init__() ")[2]
        raise ValueError(f"exit policy {policy.name!r}: {reason}.") from None


def threshold_settings(name: Any) -> set[str]:
    """A policy's name -> its settings that a threshold stands for."""
    return {"threshold", "thresholds"} | ({"patience"} if name == PatiencePolicy.name else set())


def _with_threshold(settings: dict[str, Any], threshold: Any) -> dict[str, Any]:
    """A policy's settings -> the same with another threshold, a number or one per exit."""
    threshold = plain(threshold)
    kept = {key: value for key, value in settings.items() if key not in threshold_settings(settings["name"])}
    return kept | {"thresholds" if isinstance(threshold, list) else "threshold": threshold}


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


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


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
