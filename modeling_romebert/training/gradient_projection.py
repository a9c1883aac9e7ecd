"""Gradient regularization: two losses, one set of shared weights, and gradients that may pull against each
other.

    b' = b - min(0, <b, a> / <a, a>) a          a: the protected gradient, b: the other one

b loses its component against a, and only when they conflict; the shared weights then move along a + b'
(RomeBERT, arXiv 2101.09755, section 3.3). The geometry is on lists of tensors, read as one flat vector. It
knows no model and no loss; `GradientRegularizer` makes it part of an ordinary backward pass.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as distributed
from torch import Tensor

PROTECTED = ("protect_exits", "protect_last")


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """<a, b> of two lists of tensors of equal shapes, as one flat vector -> scalar, in fp32.

    `torch.dot` and norms add up one product after the other on a CPU, which on 768 x 3072 loses all but five
    digits; `sum` adds by halves. One product at a time, not a foreach of them all: those would be a copy of
    the weights.
    """
    return torch.stack([(x.float() * y.float()).sum() for x, y in zip(a, b, strict=True)]).sum()


def conflict(protected_other: Tensor, protected_protected: Tensor) -> Tensor:
    """<b, a>, <a, a> -> min(0, <b, a> / <a, a>): how much of a to take from b. 0 where a is zero."""
    safe = torch.where(protected_protected > 0, protected_protected, 1)
    return torch.where(protected_protected > 0, protected_other / safe, 0).clamp(max=0)


class Projection(NamedTuple):
    """b' and how the gradients met: their cosine, and whether anything was taken from b (0 or 1)."""

    other: list[Tensor]
    cosine: Tensor
    projected: Tensor


def project(protected: Sequence[Tensor], other: Sequence[Tensor]) -> Projection:
    """Take from `other` its component against `protected`.

    Args:
        protected: a, one tensor per weight.
        other: b, the same shapes.

    Returns:
        b' = b - min(0, <b, a> / <a, a>) a, the cosine of a and b (0 where either is zero), and 1.0 where
        b' differs from b.

    Example:
        >>> project([torch.tensor([1.0, 0.0])], [torch.tensor([-2.0, 3.0])]).other
        [tensor([0., 3.])]
    """
    ab, aa, bb = dot(protected, other), dot(protected, protected), dot(other, other)
    share = conflict(ab, aa)
    return Projection(
        [b - share.to(b.dtype) * a for a, b in zip(protected, other, strict=True)],
        _cosine(ab, aa, bb),
        (share < 0).float(),
    )


def _cosine(ab: Tensor, aa: Tensor, bb: Tensor) -> Tensor:
    norms = aa.sqrt() * bb.sqrt()  # not the root of the product, which leaves the range of fp32 sooner
    return torch.where(norms > 0, ab / torch.where(norms > 0, norms, 1), 0)


class GradientRegularizer:
    """Turns the two loss terms into one loss whose backward hands out the projected gradient.

    The loss is an ordinary scalar: the stock training step scales, accumulates, clips and steps as always.
    When its backward runs, two passes over the graph give a (protected term, shared weights) and a + b (both
    terms, all weights), under whatever scale the caller applied to the loss. With gradient accumulation the
    protected gradients are summed, and the projection is done once, in the last backward of the group, on the
    gradient of the whole group:

        a + b' = (a + b) - min(0, <a + b, a> / <a, a> - 1) a

    Under `DistributedDataParallel` it is the gradient averaged over processes that is projected, not each
    process's own: a is averaged, and so is <a + b, a>; what DDP then averages is the projected gradient.

    Args:
        parameters: all weights that are trained.
        shared: those of them that receive both gradients, each once; where there are none, the gradient is
            the plain sum.
        protect: `"protect_exits"` or `"protect_last"`: whose gradient is a.
    """

    def __init__(self, parameters: Sequence[Tensor], shared: Sequence[Tensor], protect: str):
        self.parameters = list(parameters)
        self.shared = list(shared)
        self.protect = protect
        positions = {id(parameter): index for index, parameter in enumerate(self.parameters)}
        self._shared_positions = [positions[id(parameter)] for parameter in self.shared]
        self._protected_sum: list[Tensor] = []  # of the group's backward passes so far
        # <a + b, a>, <a, a> and the share, of the last group.
        self._met: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def projected(self) -> Tensor | None:
        """Whether the gradients of the last group conflicted, 0.0 or 1.0; on the device, so reading it is the
        caller's sync.
        """
        return None if self._met is None else (self._met[2] < 0).float()

    @property
    def cosine(self) -> Tensor | None:
        """Cosine of the two gradients of the last group. It reads the weights' `.grad`: ask before they are
        clipped or cleared.
        """
        if self._met is None:
            return None
        ga, aa, share = self._met
        moved = [_present(weight.grad, weight) for weight in self.shared]  # a + b' = (a + b) - share a
        gg = dot(moved, moved) + 2 * share * (ga - share * aa) + share**2 * aa
        return _cosine(ga - aa, aa, (gg - 2 * ga + aa).clamp(min=0))

    def drop_group(self) -> None:
        """Forget the backward passes of a group that did not come to its end."""
        self._protected_sum, self._met = [], None

    def loss(self, last: Tensor, exits: Tensor, end_of_group: bool = True) -> Tensor:
        """The two terms (scalars) -> their sum, whose backward is regularized; `end_of_group`: the weights
        move after it.
        """
        return _Regularized.apply(self, (last, exits), end_of_group, *self.parameters)

    def _gradients(
        self, last: Tensor, exits: Tensor, end_of_group: bool, scale: Tensor
    ) -> list[Tensor | None]:
        if not self.shared:
            return _gradient([last, exits], self.parameters, scale)
        term = exits if self.protect == "protect_exits" else last
        self._add_protected(_gradient([term], self.shared, scale, retain_graph=True), scale)
        if not end_of_group:
            return _gradient([last, exits], self.parameters, scale)
        averaging, self._protected_sum = _Averaging(self._protected_sum), []  # goes on during the second pass
        joint = _gradient([last, exits], self.parameters, scale)
        protected = averaging.result()
        # The gradient of the group is what earlier backward passes left in .grad, and this one's.
        now = [
            _present(joint[position], weight)
            for position, weight in zip(self._shared_positions, self.shared, strict=True)
        ]
        (ga,) = _Averaging([dot(now, protected) + self._earlier(protected)]).result()
        aa = dot(protected, protected)
        share = conflict(ga - aa, aa)
        self._met = ga, aa, share
        torch._foreach_mul_(protected, -share)  # in the memory of a, which is read no more
        torch._foreach_add_(protected, now)
        for position, weight, moved in zip(self._shared_positions, self.shared, protected, strict=True):
            if joint[position] is not None or weight.grad is not None:  # else no loss of the group reached it
                joint[position] = moved
        return joint

    def _add_protected(self, gradients: list[Tensor | None], scale: Tensor) -> None:
        present = [
            _present(gradient, weight) for gradient, weight in zip(gradients, self.shared, strict=True)
        ]
        if self._protected_sum:
            torch._foreach_add_(self._protected_sum, present)
        else:
            self._protected_sum = _writable(present, scale)

    def _earlier(self, protected: list[Tensor]) -> Tensor | float:
        """<.grad, a>: the share in <a + b, a> of the group's earlier backward passes."""
        before = [
            (weight.grad, a)
            for weight, a in zip(self.shared, protected, strict=True)
            if weight.grad is not None
        ]
        return dot(*zip(*before, strict=True)) if before else 0.0


class _Averaging:
    """The mean of each tensor over all processes, in one exchange; the tensors themselves where there is one
    process.
    """

    def __init__(self, tensors: list[Tensor]):
        self.tensors = tensors
        self.processes = (
            distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        )
        if self.processes > 1:
            self.flat = torch.cat([tensor.flatten() for tensor in tensors])
            self.tensors = [
                p.view_as(t)
                for p, t in zip(self.flat.split([t.numel() for t in tensors]), tensors, strict=True)
            ]
            self.exchange = distributed.all_reduce(self.flat, async_op=True)

    def result(self) -> list[Tensor]:
        """Wait for the exchange -> the means; they share no memory with what was given."""
        if self.processes > 1:
            self.exchange.wait()
            self.flat /= self.processes
        return self.tensors


def _present(gradient: Tensor | None, weight: Tensor) -> Tensor:
    """A gradient; zeros for a weight that did not matter."""
    return torch.zeros_like(weight) if gradient is None else gradient


def _writable(gradients: list[Tensor], scale: Tensor) -> list[Tensor]:
    """Gradients that can be written to: autograd may give two weights (of a sum) one tensor, or an expanded
    one, or `scale`.
    """
    memory = {tensor.untyped_storage().data_ptr() for tensor in (scale, *gradients)}
    own = len(memory) == len(gradients) + 1 and all(tensor.is_contiguous() for tensor in gradients)
    return gradients if own else [tensor.clone(memory_format=torch.contiguous_format) for tensor in gradients]


def _gradient(
    terms: list[Tensor], weights: list[Tensor], scale: Tensor, retain_graph: bool = False
) -> list[Tensor | None]:
    """d(scale * sum of terms) / d(weights); None where a weight does not matter."""
    return list(
        torch.autograd.grad(
            terms, weights, [scale.to(t.dtype) for t in terms], retain_graph, allow_unused=True
        )
    )


class _Regularized(torch.autograd.Function):
    """last + exits on the way forward; on the way back, what the regularizer says.

    The terms come in a tuple, where autograd does not see them: the engine is to reach the weights through
    this node alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        regularizer: GradientRegularizer,
        terms: tuple[Tensor, Tensor],
        end_of_group: bool,
        *parameters: Tensor,
    ) -> Any:
        ctx.arguments = (regularizer, terms, end_of_group)
        last, exits = terms
        return last.detach() + exits.detach()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        regularizer, (last, exits), end_of_group = ctx.arguments
        return (None, None, None, *regularizer._gradients(last, exits, end_of_group, scale))
