"""Stages of a training: which terms a step minimises, which weights that leaves frozen, and a schedule that
starts anew.
"""

from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers.trainer_utils import SchedulerType

from .objectives import Objective, Terms


class Stages:
    """Goes through the stages of an objective, freezing what a step does not train.

    Args:
        model: with `exits`.
        objective: whose stages; each takes the same number of steps.
    """

    def __init__(self, model: Any, objective: Objective):
        self.model, self.objective = model, objective
        self.steps = 0  # of a stage; 0 while unknown
        self._frozen: list[nn.Parameter] = []
        self._terms: Terms | None = None

    def enter(self, step: int) -> Terms:
        """Terms of a step, counted from 0; freezes the weights that it does not train, until another step
        trains them.
        """
        stages = self.objective.stages
        cycle = stages[min(step // self.steps, len(stages) - 1) if self.steps else 0]
        terms = cycle[step % len(cycle)]
        if terms != self._terms:
            self.unfreeze()
            early = {
                id(p)
                for layer in self.model.config.exit_layers[:-1]
                for p in self.model.exits[str(layer)].parameters()
            }
            for parameter in self.model.parameters():
                trained = terms.exits if id(parameter) in early else terms.last
                if parameter.requires_grad and not trained:
                    parameter.requires_grad_(False)
                    self._frozen.append(parameter)
            self._terms = terms
        return terms

    def unfreeze(self) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen, self._terms = [], None


def restarting(schedule: Any, kind: Any, steps: int, stages: int, optimizer: Any) -> LambdaLR:
    """A schedule of one stage of so many steps, warm-up included -> one that starts anew at each stage.

    One optimizer serves all stages: weights that a stage does not train have no gradient, so it leaves them
    alone.

    Raises:
        ValueError: a schedule, of this kind by `lr_scheduler_type`, that is no function of the step.
    """
    if not isinstance(schedule, LambdaLR):
        raise ValueError(
            f"lr_scheduler_type={SchedulerType(kind).value} cannot start anew at a stage; use linear or"
            " cosine."
        )
    of_stage = schedule.lr_lambdas[0]
    return LambdaLR(optimizer, lambda step: of_stage(step % steps if step < steps * stages else steps))
