"""What an exit policy is: asked at an exit which rows are sure enough, with a memory that follows the rows.

The rules themselves are in exit_policies.py. A policy never sees hidden states, and it does not move rows;
the early-exit loop (early_exit.py) does.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from .arrays import Array, concat, where
from .configuration_romebert import ProblemType, plain

RULES = f"{__name__.rpartition('.')[0]}.exit_policies"  # whose policies remember an `Agreement` at most

UNITS = ("row", "token")
# Settings that every policy takes, besides those of its class.
OF_EVERY_POLICY = ("ask_every", "ask_exits", "unit", "window")


class Agreement:
    """Memory of the policies that compare exits: the last prediction (B,) or (B, D), and what a run of equal
    ones adds up to.
    """

    def __init__(self) -> None:
        self.prediction: Array | None = None
        self.total: Array | None = None

    def add(self, amount: Array, prediction: Array, counts: Array, tolerance: float | None = None) -> Array:
        """An exit's amount (B,), prediction and whether it counts (B,) -> (B,): sum over the run of agreeing
        exits.

        A row that does not count has 0, and its run begins anew.
        """
        amount = where(counts, amount, 0)
        if self.prediction is None or self.total is None:
            self.total = amount
        else:
            same = (
                prediction == self.prediction
                if tolerance is None
                else abs(prediction - self.prediction) < tolerance
            )
            same = same if same.ndim == 1 else same.all(axis=-1)
            self.total = where(same & counts, self.total, 0) + amount
        self.prediction = prediction
        return self.total

    def keep(self, rows: Array | slice) -> None:
        if self.prediction is not None and self.total is not None:
            self.prediction, self.total = self.prediction[rows], self.total[rows]

    @classmethod
    def merge(cls, memories: Sequence["Agreement"]) -> "Agreement":
        """Memories of different rows at the same exit -> that of all of them."""
        merged = cls()
        predictions = [memory.prediction for memory in memories if memory.prediction is not None]
        totals = [memory.total for memory in memories if memory.total is not None]
        if predictions and totals:
            merged.prediction, merged.total = concat(predictions), concat(totals)
        return merged


class ExitPolicy(ABC):
    """A rule that says which rows leave at an exit.

    Use it as `policy.start(...)` once per batch, then at every exit that it `asks`, `leaves(...)` and, when
    rows left, `keep(...)`. `start` returns a fresh copy, so that one policy can serve many batches and
    threads.
    """

    name: str
    reads_regression = False
    threshold_names: tuple[str, ...] = ("threshold", "thresholds")  # settings that a threshold stands for
    ask_every: int | None = None
    ask_exits: list[int] | None = None
    unit: str | None = None  # of a token classifier: what leaves, see `deciding_for`
    window: int | None = None
    _problem_type: str  # these three from `start` on
    _memory: Agreement
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
        if every is not None and not is_count(every):
            raise ValueError(f"ask_every={every!r}: give a whole number from 1; 2 asks at every second exit.")
        if isinstance(exits, set | frozenset):
            exits = list(exits)
        if exits is not None and not (isinstance(exits, list) and exits and all(map(is_count, exits))):
            raise ValueError(f"ask_exits={exits!r}: give a list of layers that have an exit, counted from 1.")
        other = self._copy()
        other.ask_every, other.ask_exits = every, None if exits is None else sorted(exits)
        return other

    def deciding_for(self, unit: str | None = None, window: int | None = None) -> "ExitPolicy":
        """A copy that lets whole texts or single tokens of a token classifier leave (token_spans.py).

        Args:
            unit: `"row"`, also what is meant when it is left out: a text leaves when all its words are sure.
                `"token"`: a token halts when all words in a window around it are.
            window: tokens of that window, an odd number; 1, the token alone, when left out.

        Raises:
            ValueError: another unit, a window that is no odd number from 1, or one for whole texts.
        """
        unit, window = plain(unit), plain(window)
        if unit not in (None, *UNITS):
            raise ValueError(f"unit={unit!r} is unknown; choose from {', '.join(UNITS)}.")
        if window is not None and not (is_count(window) and window % 2):
            raise ValueError(f"window={window!r}: give an odd number of tokens from 1, such as 5.")
        if window is not None and unit != "token":
            raise ValueError(f'window={window} is for unit="token"; here the unit is {unit or "row"!r}.')
        other = self._copy()
        other.unit, other.window = unit, window
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
        if problem_type == ProblemType.REGRESSION and not self.reads_regression:
            raise ValueError(
                f"exit policy {self.name!r} needs class probabilities, and"
                ' problem_type="regression" has none. Use {"name": "patience", "patience": p,'
                ' "tolerance": t}.'
            )
        fresh = self._copy()
        fresh._problem_type = problem_type
        fresh._memory = Agreement()
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
    def leaves(self, exit_index: int, logits: Array) -> Array:
        """Exit e = 0, 1, ... and its logits (B, C) for the B rows that have not exited -> (B,) bool: which
        exit.

        A row with a logit that is not finite never leaves, and does not count as agreeing.
        """

    def keep(self, rows: Array | slice) -> None:
        """Forget all rows but these: indices (b,) into the rows of the last call, or a slice of them."""
        self._memory.keep(rows)

    def merge(self, policies: Sequence["ExitPolicy"]) -> "ExitPolicy":
        """Of different rows at the same exit -> one for all of them, in order.

        A policy with memory of its own merges that too.
        """
        merged = self._copy()
        merged._memory = Agreement.merge([policy._memory for policy in policies])
        return merged

    def can_rebatch(self) -> bool:
        """Whether rows under this policy can be split from a batch and merged with those of others.

        What a policy remembers has to go with its rows. A class of a user's own that says in its own way when
        rows exit, or what is kept of them, may remember things that an inherited `merge` would lose. It says
        how it merges: with a `merge` of its own, or with `merge = ExitPolicy.merge` where it remembers
        nothing else. Where it does not, that is said once.
        """
        for kind in type(self).__mro__:
            if "merge" in vars(kind) or kind.__module__ in (__name__, RULES):
                break
            if own := sorted({"start", "leaves", "keep", "asks"} & vars(kind).keys()):
                from transformers.utils import logging  # not where a bundle of ONNX runs

                logging.get_logger(__name__).warning_once(
                    f"exit policy {type(self).__name__} has its own {', '.join(own)} and no merge, so what"
                    " it remembers cannot follow rows into other batches: it runs without rebatching, which"
                    " takes longer. Give it a merge, or merge = ExitPolicy.merge where it remembers nothing"
                    " of its own."
                )
                return False
        return True

    @classmethod
    def grid(cls, num_exits: int, fine: bool = False) -> list[float]:
        """Thresholds to vary the policy by, from "nobody exits early" to "everybody exits at once".

        Args:
            num_exits: of the model.
            fine: for a choice on data; else as many as a table shows.
        """
        raise NotImplementedError(f"{cls.__name__} has no thresholds to vary it by; write its `grid`.")

    @staticmethod
    def named_threshold(threshold: Any) -> dict[str, Any]:
        """A number, or one per exit -> the setting that it is."""
        threshold = plain(threshold)
        return {"thresholds" if isinstance(threshold, list) else "threshold": threshold}

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
        dropped = ("name", *OF_EVERY_POLICY, *self.threshold_names)
        kept = {name: value for name, value in self.to_dict().items() if name not in dropped}
        other = type(self)(**kept | self.named_threshold(threshold))
        return other.asking(self.ask_every, self.ask_exits).deciding_for(self.unit, self.window)

    def __repr__(self) -> str:
        return f"make_policy({', '.join(f'{key}={value!r}' for key, value in self.to_dict().items())})"


def check_unit(policy: Any, classifies_tokens: bool) -> None:
    """Whether a policy's unit has a meaning for a model.

    Raises:
        ValueError: it is for the tokens of a token classifier, and this is none.
    """
    unit = getattr(policy, "unit", None)  # a class of a user's own may have none
    if unit == "token" and not classifies_tokens:
        raise ValueError(
            'unit="token" lets single tokens of a token classifier halt, and this model classifies whole'
            " texts: leave unit and window out."
        )


def settings_of_exits(settings: Mapping[str, Any], had: Sequence[int], has: Sequence[int]) -> dict[str, Any]:
    """The settings of a policy for a model that has kept some of its exits: their thresholds, and asking
    those alone. Where none of the exits to ask is left, the last one is, which all rows reach.

    Args:
        had, has: the layers that the exits are after, before and now.

    Example:
        >>> settings_of_exits({"name": "entropy", "thresholds": [0.1, 0.2, 0.3]}, [2, 4, 6], [2, 6])
        {'name': 'entropy', 'thresholds': [0.1, 0.3]}
        >>> settings_of_exits({"name": "vote", "threshold": 0.7, "ask_exits": [2, 4]}, [2, 4, 6], [4, 6])
        {'name': 'vote', 'threshold': 0.7, 'ask_exits': [4]}
        >>> settings_of_exits({"name": "vote", "threshold": 0.7, "ask_every": 2}, [2, 4, 6, 8], [4, 8])
        {'name': 'vote', 'threshold': 0.7, 'ask_exits': [4, 8]}
    """
    kept = dict(settings)
    if (every := kept.pop("ask_every", None)) is not None:  # which counts the exits that there were
        kept["ask_exits"] = [*had[every - 1 :: every]]
    if (thresholds := kept.get("thresholds")) is not None and len(thresholds) == len(had):
        of_layer = dict(zip(had, thresholds, strict=True))
        kept["thresholds"] = [of_layer.get(layer, thresholds[-1]) for layer in has]
    if kept.get("ask_exits") is not None:
        kept["ask_exits"] = [layer for layer in kept["ask_exits"] if layer in has] or [has[-1]]
    return kept


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
