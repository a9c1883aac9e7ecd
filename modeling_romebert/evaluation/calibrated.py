"""What a calibration found: the policy, what it promises, and what that rests on."""

import os
from dataclasses import dataclass, field, fields
from typing import Any

from ..certificate import sentence
from ..configuration_romebert import plain
from ..exit_policies import ExitPolicy
from .fixed_sequence import Tested
from .risk_curve import plot_risk, risk_curve


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found, and what it promises. `to_dict` is the certificate in `config.calibration`."""

    policy: ExitPolicy  # one that lets nobody out where nothing could be certified
    certified: bool
    risk: str
    max_drop: float | None  # what the risk is promised to stay below; None with a budget
    confidence: float
    num_examples: int
    observed: float  # the risk on the examples
    bound: float | None  # upper bound of the risk at this confidence, at the chosen threshold alone
    cost: float  # layers run / layers, on the examples
    metric: str
    full_depth: float | None  # the metric; None without labels
    with_exits: float | None
    exit_layers: list[int]  # after which a text could leave
    exit_shares: list[float]  # of the examples, by exit
    disagreement: float  # share of answers that differ from full depth
    disagreement_bound: float  # its upper bound at this confidence: what a monitor holds traffic to
    tolerance: float | None = None  # of regression, in units of the label
    reason: str | None = None  # why nothing could be certified, and what would help
    budget: float | None = None  # cost that was allowed, where a budget was asked for
    drop_interval: tuple[float, float] | None = None  # of the drop, cross-fitted, with a budget
    per: str | None = None  # of a token classifier: whether an answer is a whole row or each token
    digest: str | None = None  # of the examples
    weights: str | None = None  # digest of those that it is of
    precision: str | None = None
    device: str | None = None
    versions: dict[str, str] | None = None
    curve: tuple[Tested, ...] = field(default=(), repr=False, compare=False)  # for `plot`; stays here

    def to_dict(self) -> dict[str, Any]:
        """All fields but `curve` as plain data, for JSON."""
        found = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "curve"}
        interval = None if self.drop_interval is None else list(self.drop_interval)
        return {**found, "policy": plain(self.policy.to_dict()), "drop_interval": interval}

    def __str__(self) -> str:
        return sentence(self.to_dict())

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the risk and its upper bound over cost, and what was chosen.

        Raises:
            ImportError: matplotlib is not installed.
        """
        plot_risk(risk_curve(self.curve, self.risk, self.confidence), self.to_dict(), path)
