"""Keeps a step whose loss or gradient is not finite from moving the weights, and says which term and exit are
at fault.

Between the gradients of a group of micro-batches and the optimizer. What a run does about such a step is
`non_finite` of `RomeBertTrainingArguments`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .objectives import Terms

NON_FINITE = ("stop", "skip")
GRADIENT = "gradient"


class Fault(NamedTuple):
    """A step whose loss or gradient was not finite: its number from 1, the terms, and the layers of the exits
    at fault.
    """

    step: int
    terms: list[str]
    layers: list[int]

    def __str__(self) -> str:
        return (
            f"step {self.step}: {' and '.join(self.terms)} not finite, at the exits of layers {self.layers}"
        )


class StepGuard:
    """Judges each step by the norm of its gradient, after clipping and before the optimizer.

    A loss that is not finite is given a gradient of NaN. Accumulation carries it to the end of the group, and
    what averages
    gradients over processes carries it to all of them: the norm, which the stock step computes anyway, then
    tells every process the same, without an exchange of its own.

    A step at fault leaves weights, momentum, decay and the optimizer's count of steps as they were; the
    trainer's count, the data and the schedule go on. Fused optimizers on an accelerator are told on the
    device (`found_inf`, as `GradScaler` does it), so no step waits; after a fault, `"stop"` holds the weights
    until the host reads the record, which it does when it logs or saves. For other optimizers the host reads
    the norm, and drops the gradients. Under a `GradScaler` an overflow of the gradient alone is the scaler's
    business: it skips the step, which is counted, and never stops the run.

    Args:
        model: with `exits` and `layers`.
        policy: `"stop"` or `"skip"`.
        reduce: adds up a tensor over all processes.
    """

    def __init__(self, model: Any, policy: str, reduce: Callable[[Tensor], Tensor]):
        self.exit_layers: list[int] = list(model.config.exit_layers)
        self.policy = policy
        self._reduce = reduce
        self._witnesses, self._layers = _witnesses(model)
        self._group: Tensor | None = (
            None  # (2 + E,) bool: loss_last, loss_exits and each exit's loss, of the present group
        )
        self._flow: Tensor | None = None  # (W,) bool: the gradients of the witnesses, of the present group
        self._record: Tensor | None = (
            None  # (1 + 2 + E + W,): the first step at fault, or 0, and what was not finite in it
        )
        self._skipped: Tensor | None = None
        self._told: Any = None  # the optimizer that was told on the device

    def loss(self, loss: Tensor, values: Tensor, terms: Terms) -> Tensor:
        """The loss of a micro-batch -> itself; NaN, and so is its gradient, where it is not finite.

        Args:
            loss: what is minimised, a scalar.
            values: loss_last, loss_exits and each exit's loss (2 + E,).
            terms: which of them `loss` is made of.
        """
        early = len(self.exit_layers) - 1
        minimised = torch.tensor([terms.last, terms.exits, *[terms.exits] * early, terms.last])
        wrong = ~values.isfinite() & minimised.to(values.device, non_blocking=True)
        self._group = wrong if self._group is None else self._group | wrong
        return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)

    def drop_group(self) -> None:
        """Forget the micro-batches of a group that did not come to its end."""
        self._group = self._flow = None

    def watch_gradients(self) -> None:
        """Note where gradients are not finite, after the last backward pass of a group: clipping spreads NaN
        over all of them.
        """
        if self._group is not None:
            none = self._group.new_zeros((), dtype=torch.float32)
            norms = torch._foreach_norm(
                [none if weight.grad is None else weight.grad for weight in self._witnesses]
            )
            self._flow = ~torch.stack([none, *norms])[1:].isfinite()

    def judge(self, norm: Tensor, step: int, optimizer: Any) -> None:
        """Let the optimizer's step pass, or not.

        Args:
            norm: of the gradient of the whole group, the same in every process.
            step: counted from 1.
            optimizer: as accelerate prepared it.

        Raises:
            FloatingPointError: under `"stop"`, where the host knows.
        """
        group, flow, self._group, self._flow = self._group, self._flow, None, None
        wrong = ~norm.detach().isfinite()
        on_device = self._can_be_told(optimizer, norm)
        if group is None or flow is None or not (on_device or wrong):
            return
        found = torch.cat([wrong.new_ones(1), group, flow]) & wrong
        # The step, and what was not finite in it: (1 + 2 + E + W,) int64.
        found = torch.cat([found[:1] * step, found[1:]])
        self._record = (
            found if self._record is None else torch.where(self._record[0] > 0, self._record, found)
        )
        self._skipped = wrong.long() if self._skipped is None else self._skipped + wrong
        if on_device:
            self._told = optimizer.optimizer
            self._told.found_inf = (self._record[0] > 0 if self.policy == "stop" else wrong).float()
        else:
            self.check(overflow_stops=optimizer.scaler is None)
            if optimizer.scaler is None:
                for weights in optimizer.param_groups:
                    for weight in weights["params"]:
                        weight.grad = None  # no optimizer moves a weight without one

    def check(self, overflow_stops: bool = True) -> None:
        """Read the record, under `"stop"`.

        Raises:
            FloatingPointError: a step was at fault.
        """
        fault = self.read_fault() if self.policy == "stop" else None
        if fault is not None and (overflow_stops or fault.terms != [GRADIENT]):
            raise FloatingPointError(
                f"{fault}. The weights are those before that step. Look at the batch and the learning rate,"
                " or leave such steps out with non_finite='skip'."
            )

    def read_fault(self) -> Fault | None:
        """The first step at fault since this was last read, in whichever process; `None` where there was
        none.
        """
        if self._record is None or not (step := int(self._record[0])):
            return None
        last, exits, *found = self._reduce(self._record[1:]).tolist()
        self._record = None
        of_exits, of_weights = found[: len(self.exit_layers)], found[len(self.exit_layers) :]
        if last or exits:
            terms = [name for name, wrong in (("loss_last", last), ("loss_exits", exits)) if wrong]
            layers = [layer for layer, wrong in zip(self.exit_layers, of_exits, strict=True) if wrong]
            return Fault(step, terms, layers or self.exit_layers[:-1])  # none by itself: their distillation
        # What flows back is not finite from some layer on downwards, and it entered at that layer's exit, or
        # the next above it.
        deepest = max(
            (layer for layer, wrong in zip(self._layers, of_weights, strict=True) if wrong), default=0
        )
        return Fault(step, [GRADIENT], [next(layer for layer in self.exit_layers if layer >= deepest)])

    def read_skipped(self) -> int:
        """How many steps were left out since this was last read."""
        skipped, self._skipped = self._skipped, None
        return 0 if skipped is None else int(skipped)

    def close(self) -> None:
        """Leave the optimizer as it was found."""
        if self._told is not None:
            del self._told.found_inf
            self._told = None

    @staticmethod
    def _can_be_told(optimizer: Any, norm: Tensor) -> bool:
        """Whether the step can be held on the device; reading costs nothing on the CPU, and under a scaler it
        is done anyway.
        """
        fused = getattr(optimizer.optimizer, "_step_supports_amp_scaling", False)  # what GradScaler asks
        return fused and optimizer.scaler is None and norm.device.type != "cpu"


def _witnesses(model: Any) -> tuple[list[nn.Parameter], list[int]]:
    """A few weights of each layer and exit whose gradients tell whether what flows back through it is finite,
    and their layers.

    Vectors, where there are some: their gradients sum over all tokens, are small, and the projection leaves
    them alone.
    """
    parts = [(layer, part) for layer, part in enumerate(model.layers, start=1)]
    parts += [(layer, model.exits[str(layer)]) for layer in model.config.exit_layers]
    weights, layers = [], []
    for layer, part in parts:
        trained = [weight for weight in part.parameters() if weight.requires_grad]
        of_part = [weight for weight in trained if weight.ndim < 2] or trained
        weights += of_part
        layers += [layer] * len(of_part)
    return weights, layers
