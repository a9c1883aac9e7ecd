"""What one training keeps between its steps, so that nothing of it outlives it: a run that starts anew starts
with another.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..losses import ExitLoss, LossTerms
from .arguments import RomeBertTrainingArguments
from .gradient_projection import GradientRegularizer
from .meters import RunningMeans
from .non_finite import StepGuard
from .objectives import BOTH, Terms
from .stages import Stages

logger = logging.get_logger(__name__)


class TrainingRun:
    """The state of one training, whose settings are those of the arguments when it starts.

    A step is a group of micro-batches: `begin_group`, then for each of them `enter_step` and `loss`, then
    `end_group` after the last backward pass and `judge` before the optimizer. A group that did not come to
    its end leaves nothing to the next one.

    Args:
        model: a `RomeBertForSequenceClassification`.
        wrapper: the model as the trainer was given it, for instance with adapters: whose parameters are
            trained.
        args: read, and checked, now.
        exit_loss: that the run minimises.
        reduce: adds up a tensor over all processes.
    """

    def __init__(
        self,
        model: Any,
        wrapper: nn.Module,
        args: RomeBertTrainingArguments,
        exit_loss: ExitLoss,
        reduce: Callable[[Tensor], Tensor],
    ):
        self.model, self.wrapper, self.exit_loss = model, wrapper, exit_loss
        self.objective = args.training_objective
        self.protects = args.gradient_regularization if args.regularizes and len(model.exits) > 1 else None
        self.non_finite = args.non_finite
        self.means = RunningMeans()
        self.stages = Stages(model, self.objective)
        self.guard: StepGuard | None = None
        self._reduce = reduce
        self._regularizer: GradientRegularizer | None = None
        self._gradients_met: Tensor | None = (
            None  # (2,): their cosine and whether they conflicted, in the present step
        )
        self._labelled: Tensor | None = None  # whether a row of the present step has a label
        self._in_group = False
        model.watches_exits = False  # a step that trains the last exit alone is meant to

    def begin_group(self) -> None:
        """Before the micro-batches of a step: drop what one that did not come to its end has left."""
        if self._in_group:
            self.wrapper.zero_grad()
        if self._regularizer is not None:
            self._regularizer.drop_group()
        if self.guard is not None:
            self.guard.drop_group()
        self._gradients_met, self._labelled, self._in_group = None, None, False

    def enter_step(self, step: int) -> Terms:
        """Terms of the step, counted from 0, that the next micro-batch belongs to."""
        self._in_group = True
        if self.guard is None:  # before a stage freezes anything
            self.guard = StepGuard(self.model, self.non_finite, self._reduce)
        return self.stages.enter(step)

    def loss(self, losses: LossTerms, terms: Terms, any_labelled: Tensor, end_of_group: bool) -> Tensor:
        """The terms of a micro-batch -> what is minimised, a scalar, whose backward hands out the regularized
        gradient.

        Args:
            losses, terms: what there is, and which of it the step minimises.
            any_labelled: whether a row of the micro-batch has a label; else its zeros do not count in the
                logged means.
            end_of_group: whether the weights move after its backward pass.
        """
        assert self.guard is not None
        if terms == BOTH and self.protects is not None:
            loss = self._regularized().loss(losses.last, losses.exits, end_of_group)
        else:
            loss = minimised(losses, terms)
        names = (
            "loss_last",
            "loss_exits",
            *(f"loss_exit_{layer}" for layer in self.model.config.exit_layers),
        )
        values = torch.cat([torch.stack([losses.last, losses.exits]), losses.per_exit]).detach()  # (2 + E,)
        self.means.add(names, values.where(any_labelled, torch.nan))
        self._labelled = any_labelled if self._labelled is None else self._labelled | any_labelled
        return self.guard.loss(loss, values, terms)

    def _regularized(self) -> GradientRegularizer:
        if self._regularizer is None:
            trained = [parameter for parameter in self.wrapper.parameters() if parameter.requires_grad]
            assert self.protects is not None
            self._regularizer = GradientRegularizer(trained, shared_weights(self.model), self.protects)
        return self._regularizer

    def end_group(self) -> None:
        """After the last backward pass of a step: note what only the gradients tell."""
        self._in_group = False
        if self.guard is not None:
            self.guard.watch_gradients()
        if self._regularizer is not None:
            cosine, projected = self._regularizer.cosine, self._regularizer.projected
            if cosine is not None and projected is not None:
                self._gradients_met = torch.stack([cosine, projected])

    def judge(self, norm: Tensor, step: int, optimizer: Any) -> None:
        """Between gradients and optimizer: let the step, counted from 1, pass or not. See `judge`."""
        if self.guard is None:
            return
        if self._gradients_met is not None and self._labelled is not None:
            # A step that is not taken, or that no label has a part in, has no say.
            met = self._gradients_met.where(norm.isfinite() & self._labelled, torch.nan)
            self.means.add(("gradient_cosine", "projected"), met)
            self._gradients_met = None
        self.guard.judge(norm, step, optimizer)

    def figures(self, of_step: bool) -> dict[str, float]:
        """What a log is given besides its own: where it is of training steps, the means since the last one,
        which are read from the device here.

        Raises:
            FloatingPointError: a loss or gradient was not finite, under `non_finite="stop"`.
        """
        if self.guard is None:
            return {}
        self.guard.check()
        if not of_step:
            return {}
        figures = self.means.read(self._reduce)
        skipped, fault = self.guard.read_skipped(), self.guard.read_fault()
        if skipped or self.non_finite == "skip":
            figures["skipped_steps"] = skipped
        if fault is not None:
            logger.warning(f"{fault}. Steps left out since the last log: {skipped}.")
        return figures

    def close(self) -> None:
        """Leave model and optimizer as they were found."""
        self.stages.unfreeze()
        self.model.watches_exits = True
        if self.guard is not None:
            self.guard.close()


def minimised(losses: LossTerms, terms: Terms) -> Tensor:
    """Only what is minimised: a term times zero would still give its weights a gradient, and so decay and
    momentum.
    """
    return torch.stack(
        [loss for loss, wanted in zip((losses.last, losses.exits), terms, strict=True) if wanted]
    ).sum()


def shared_weights(model: Any) -> list[nn.Parameter]:
    """Weight matrices of the layers that both the last exit and another one reach: S in the paper.

    Layers 1 .. the deepest exit before the last; no norms, biases, embeddings or exits, and no frozen
    weights. A matrix that layers share counts once.
    """
    reached = model.config.exit_layers[-2] if len(model.config.exit_layers) > 1 else 0
    layers = nn.ModuleList(model.layers[:reached])
    return [parameter for parameter in layers.parameters() if parameter.ndim == 2 and parameter.requires_grad]
