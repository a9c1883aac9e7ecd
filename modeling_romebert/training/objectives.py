"""Objectives: which loss terms each training step minimises, as data.

The terms themselves are in losses.py.
"""

from typing import NamedTuple


class Terms(NamedTuple):
    """Which of the two loss terms a step minimises."""

    last: bool
    exits: bool


LAST, EXITS, BOTH = Terms(True, False), Terms(False, True), Terms(True, True)


class Objective(NamedTuple):
    """A way to train the exits.

    `stages` are trained one after the other, each for `num_train_epochs` with a schedule of its own; a stage
    is a cycle of terms that its steps go through. Steps without the last term freeze the backbone and the
    last exit, steps without the exits' term the other exits.
    """

    stages: tuple[tuple[Terms, ...], ...]
    distills: bool = False
    regularizes: bool = False

    @property
    def terms(self) -> Terms:
        """All terms that any step minimises: what the evaluation loss adds up."""
        steps = [terms for cycle in self.stages for terms in cycle]
        return Terms(any(terms.last for terms in steps), any(terms.exits for terms in steps))

    @property
    def trains_exits_alone(self) -> bool:
        """Whether steps minimise the exits' term without the last one, so that there is nothing to weigh it
        against.
        """
        return any(EXITS in cycle for cycle in self.stages)


OBJECTIVES: dict[str, Objective] = {
    "romebert": Objective(stages=((BOTH,),), distills=True, regularizes=True),
    "joint": Objective(stages=((BOTH,),)),
    "last": Objective(stages=((LAST,),)),
    "deebert": Objective(
        stages=((LAST,), (EXITS,))
    ),  # ACL 2020: fine-tune, then the other exits on the frozen backbone
    "mixed": Objective(
        stages=((LAST,), (BOTH,)), distills=True, regularizes=True
    ),  # ICML 2025: fine-tune, then all exits with the backbone
    "alternating": Objective(
        stages=((LAST, BOTH),)
    ),  # BERxiT, EACL 2021: odd steps the last exit, even steps all
}
