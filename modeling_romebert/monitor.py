"""Does the promise still hold? A share of the traffic is run to full depth as well, and disagreements are
counted; no labels, constant memory.

    answers that differ   a bet against "no more of them than promised"; while that is true, its capital ever
                          reaches 1 / (1 - confidence) with probability at most 1 - confidence, however often
                          one looks (Ville; Waudby-Smith and Ramdas, arXiv 2010.09686)
    shares per exit       compared with those of the calibration, of all texts

The full-depth runs are made by scoring.py. Travels with the model.
"""

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from .certificate import certificate_of
from .configuration_romebert import ProblemType
from .exit_policies import ExitPolicy, as_policy

logger = logging.get_logger(__name__)

BETS = 12  # fractions of the largest bet, by halves: large ones for large changes
DRIFT = 0.1  # total variation of the shares per exit, beyond chance, that is worth a sentence
LEAST_TEXTS = 200  # before shares are compared


class ExitMonitor:
    """Watches whether texts still leave as they did at calibration. Made by the pipeline's `monitor=`, or by
    hand.

    Args:
        limit: share of answers that may differ from full depth: what was promised where disagreement is
            certified, else the upper bound that calibration found.
        share: of the texts, to run to full depth as well, in (0, 1].
        confidence: false alarms ever happen with probability at most 1 - this.
        exit_shares: of the texts of the calibration, by exit; `None` does not look at them.
        num_examples: how many texts those were.
        tolerance: for regression, how far an answer may be off and still agree.
        policy: settings of the one that the limit is about; texts that another one decides are not looked at.
            `None` looks at all.
        seed: of the choice of texts, which is by chance so that nobody can arrange to be left out.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> monitor = ExitMonitor(limit=0.01)
        >>> monitor.observe([0.0] * 500)
        >>> monitor.holds, monitor.compared
        (True, 500)
        >>> monitor.observe([1.0] * 20)
        >>> monitor.holds
        False
    """

    def __init__(
        self,
        limit: float,
        share: float = 0.01,
        confidence: float = 0.95,
        exit_shares: Sequence[float] | None = None,
        num_examples: int | None = None,
        tolerance: float | None = None,
        policy: dict[str, Any] | None = None,
        seed: int | None = None,
    ):
        for name, value, high in (
            ("limit", limit, 1.0),
            ("confidence", confidence, 1.0),
            ("share", share, 1.0),
        ):
            closed = name == "share"
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not (0 < value < high or (closed and value == high)):
                allowed = "(0, 1]" if closed else "(0, 1)"
                raise ValueError(f"{name}={value!r} is not in {allowed}.")
        self.limit, self.share, self.confidence = float(limit), float(share), float(confidence)
        self.exit_shares = None if exit_shares is None else list(exit_shares)
        self.num_examples, self.tolerance = num_examples, tolerance
        self.policy = None if policy is None else as_policy(policy).to_dict()
        self.compared = 0  # texts run to full depth
        self.differed = 0.0  # of these; for several labels the mean share of labels
        self.texts = 0
        self.exits = [0] * len(self.exit_shares or ())
        self._bets = [0.75 * 0.5**step / self.limit for step in range(BETS)]
        self._capital = [0.0] * BETS  # logarithms
        self._most = 0.0  # the largest logarithm of the mean capital so far
        self._chance = random.Random(seed)
        self._said: set[str] = set()

    @classmethod
    def from_config(cls, config: Any, share: float = 0.01, **settings: Any) -> "ExitMonitor":
        """The monitor of what a config's certificate promises.

        Raises:
            ValueError: there is no certificate of the present policy.
        """
        certificate = certificate_of(config)
        if certificate is None:
            raise ValueError(
                "monitor: config.calibration holds no certificate of the exit policy in use, so there is no"
                " promise to watch. Call modeling_romebert.calibrate, or give an ExitMonitor(limit=...)."
            )
        promised = certificate["risk"] == "disagreement" and certificate["certified"]
        limit = certificate["max_drop"] if promised else certificate["disagreement_bound"]
        given = {"confidence": certificate["confidence"], "exit_shares": certificate["exit_shares"]}
        given |= {"num_examples": certificate["num_examples"], "tolerance": certificate.get("tolerance")}
        given["policy"] = certificate["policy"]
        return cls(min(limit, 0.999), share, **{**given, **settings})

    # ---- what scoring tells it

    def watches(self, policy: ExitPolicy) -> bool:
        """Whether texts that a policy decides are what the limit is about. Says once that they are not."""
        if self.policy is None or policy.to_dict() == self.policy:
            return True
        if "policy" not in self._said:
            self._said.add("policy")
            logger.warning(
                f"monitor: texts are scored with {policy}, and the promise is of {as_policy(self.policy)}:"
                " they are not looked at. Give an ExitMonitor(limit=...) to watch another policy."
            )
        return False

    def choose(self, count: int) -> list[int]:
        """Which of so many texts to run to full depth as well."""
        return [index for index in range(count) if self._chance.random() < self.share]

    def count_exits(self, exit_indices: Sequence[int]) -> None:
        """Note at which exits (0, 1, ...) texts left."""
        self.texts += len(exit_indices)
        if self.exit_shares is not None:
            for index in exit_indices:
                self.exits[index] += 1

    def compare(self, logits: Tensor, at_full_depth: Tensor, problem_type: str) -> None:
        """logits (n, C) of the same texts, early and at full depth."""
        early, full = logits.float(), at_full_depth.float()
        if problem_type == ProblemType.REGRESSION:
            differs = ((early - full).abs() > (self.tolerance or 0.0)).float().mean(dim=-1)
        elif problem_type == ProblemType.MULTI_LABEL:
            differs = ((early > 0) != (full > 0)).float().mean(dim=-1)
        else:
            differs = (early.argmax(dim=-1) != full.argmax(dim=-1)).float()
        self.observe(differs.tolist())

    def observe(self, differs: Sequence[float]) -> None:
        """Shares in 0..1, one per compared text: 1 where the answer differs from full depth."""
        for value in differs:
            self.compared, self.differed = self.compared + 1, self.differed + value
            for index, bet in enumerate(self._bets):
                self._capital[index] += math.log1p(bet * (value - self.limit))
            highest = max(self._capital)
            total = sum(math.exp(one - highest) for one in self._capital)
            self._most = max(self._most, highest + math.log(total / BETS))

    # ---- what it has to say

    @property
    def holds(self) -> bool:
        """False as soon as the texts so far speak against the promise at the confidence asked for; it then
        stays False.
        """
        return self._most < math.log(1 / (1 - self.confidence))

    @property
    def drift(self) -> float | None:
        """Total variation between the shares per exit now and at calibration, 0..1, less what chance gives;
        `None` before there are enough texts.
        """
        if self.exit_shares is None or self.texts < LEAST_TEXTS:
            return None
        pairs = [
            (count / self.texts, share) for count, share in zip(self.exits, self.exit_shares, strict=True)
        ]
        distance = sum(abs(now - before) for now, before in pairs) / 2
        rows = 1 / self.texts + 1 / max(self.num_examples or self.texts, 1)
        chance = sum(math.sqrt(share * (1 - share) * rows) for _, share in pairs) / 2
        return max(0.0, distance - chance)

    def report(self) -> str:
        """What the texts so far say, in one or two sentences."""
        return " ".join(filter(None, [self._of_the_promise(), self._of_the_exits()]))

    def _of_the_promise(self) -> str:
        rate = f"{self.differed / self.compared:.2%}" if self.compared else "none"
        seen = f"{rate} of {self.compared:,} answers compared with full depth differ; {self.limit:.2%} may"
        if self.holds:
            return f"Nothing speaks against the promise: {seen}."
        return (
            f"The promise does not hold for these texts ({self.confidence:.4g} confidence): {seen}. Calibrate"
            " on texts like these, or run every layer (exit_policy=False)."
        )

    def _of_the_exits(self) -> str | None:
        if (drift := self.drift) is None or drift <= DRIFT:
            return None
        return f"Texts leave at other exits than at calibration: {drift:.0%} of them moved, beyond chance."

    def speak(self) -> None:
        """Warn once when the promise is broken, and once when the shares per exit have drifted."""
        news = {"promise": None if self.holds else self._of_the_promise(), "exits": self._of_the_exits()}
        for what, sentence in news.items():
            if sentence and what not in self._said:
                self._said.add(what)
                logger.warning(f"After {self.texts:,} texts: {sentence}")


def as_monitor(monitor: Any, config: Any) -> ExitMonitor | None:
    """What a caller gives as `monitor`: none, a monitor, or the share of texts that one compares.

    Raises:
        ValueError: it is none of these, or there is no promise to watch.
    """
    if monitor is None or monitor is False:
        return None
    if isinstance(monitor, ExitMonitor):
        return monitor
    if isinstance(monitor, bool) or not isinstance(monitor, (int, float)):
        raise ValueError(
            f"monitor={monitor!r}: give the share of texts to compare, such as 0.01, or an ExitMonitor."
        )
    return ExitMonitor.from_config(config, monitor)


def exit_indices(exit_layer: Tensor, exit_layers: Sequence[int]) -> list[int]:
    """Layers run (n,) -> the index of each one's exit."""
    return torch.searchsorted(torch.tensor(list(exit_layers)), exit_layer.cpu()).tolist()
