"""Gradient regularization: two losses, one set of shared weights, and gradients that may pull against each other.

    b' = b - min(0, <b, a> / <a, a>) a          a: the protected gradient, b: the other one

b loses its component against a, and only when they conflict; the shared weights then move along a + b' (RomeBERT, arXiv
2101.09755, section 3.3). The geometry is on lists of tensors, read as one flat vector. It knows no model and no loss;
`GradientRegularizer` makes it part of an ordinary backward pass.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as distributed
from torch import Tensor

PROTECTED = ("protect_exits", "protect_last")


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """<a, b> of two lists of tensors of equal shapes, as one flat vector -> scalar, in fp32."""
    return torch.stack([torch.dot(x.flatten().float(), y.flatten().float()) for x, y in zip(a, b, strict=True)]).sum()


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
        b' = b - min(0, <b, a> / <a, a>) a, the cosine of a and b (0 where either is zero), and 1.0 where b' differs from b.

    Example:
        >>> project([torch.tensor([1.0, 0.0])], [torch.tensor([-2.0, 3.0])]).other
        [tensor([0., 3.])]
    """
    ab, aa, bb = dot(protected, other), dot(protected, protected), dot(other, other)
    share = conflict(ab, aa)
    return Projection(
        [b - share.to(b.dtype) * a for a, b in zip(protected, other, strict=True)], _cosine(ab, aa, bb), (share < 0).float()
    )


def _cosine(ab: Tensor, aa: Tensor, bb: Tensor) -> Tensor:
    norms = aa.sqrt() * bb.sqrt()  # not the root of the product, which leaves the range of fp32 sooner
    return torch.where(norms > 0, ab / torch.where(norms > 0, norms, 1), 0)


class GradientRegularizer:
    """Turns the two loss terms into one loss whose backward hands out the projected gradient.

    The loss is an ordinary scalar: the stock training step scales, accumulates, clips and steps as always. When its backward
    runs, two passes over the graph give a (protected term, shared weights) and a + b (both terms, all weights), under whatever
    scale the caller applied to the loss. With gradient accumulation the protected gradients are summed, and the projection is
    done once, in the last backward of the group, on the gradient of the whole group:

        a + b' = (a + b) - min(0, <a + b, a> / <a, a> - 1) a

    Under `DistributedDataParallel` it is the gradient averaged over processes that is projected, not each process's own: a is
    averaged, and so is <a + b, a>; what DDP then averages is the projected gradient.

    Args:
        parameters: all weights that are trained.
        shared: those of them that receive both gradients.
        protect: `"protect_exits"` or `"protect_last"`: whose gradient is a.
    """

    def __init__(self, parameters: Sequence[Tensor], shared: Sequence[Tensor], protect: str):
        self.parameters = list(parameters)
        self.shared = list(shared)
        self.protect = protect
        positions = {id(parameter): index for index, parameter in enumerate(self.parameters)}
        self._shared_positions = [positions[id(parameter)] for parameter in self.shared]
        self._protected_sum: list[Tensor] | None = None
        self._met: tuple[Tensor, Tensor, Tensor] | None = None  # <a + b, a>, <a, a> and the share, of the last group

    @property
    def projected(self) -> Tensor | None:
        """Whether the gradients of the last group conflicted, 0.0 or 1.0; on the device, so reading it is the caller's sync."""
        return None if self._met is None else (self._met[2] < 0).float()

    @property
    def cosine(self) -> Tensor | None:
        """Cosine of the two gradients of the last group. It reads the weights' `.grad`: ask before they are clipped or cleared."""
        if self._met is None:
            return None
        ga, aa, share = self._met
        moved = [_present(weight.grad, weight) for weight in self.shared]  # a + b' = (a + b) - share a
        gg = dot(moved, moved) + 2 * share * (ga - share * aa) + share**2 * aa
        return _cosine(ga - aa, aa, (gg - 2 * ga + aa).clamp(min=0))

    def loss(self, last: Tensor, exits: Tensor, end_of_group: bool = True) -> Tensor:
        """The two terms (scalars) -> their sum, whose backward is regularized; `end_of_group`: the weights move after it."""
        return _Regularized.apply(self, (last, exits), end_of_group, *self.parameters)

    def _gradients(self, last: Tensor, exits: Tensor, end_of_group: bool, scale: Tensor) -> list[Tensor | None]:
        term = exits if self.protect == "protect_exits" else last
        of_term = _gradient([term], self.shared, scale, retain_graph=True)
        joint = _gradient([last, exits], self.parameters, scale)
        protected = [_present(a, weight) for a, weight in zip(of_term, self.shared, strict=True)]
        if self._protected_sum is not None:
            protected = [a + earlier for a, earlier in zip(protected, self._protected_sum, strict=True)]
        if not end_of_group:
            self._protected_sum = protected
            return joint
        self._protected_sum = None
        # The gradient of the group: what earlier backward passes left in .grad, and this one's.
        now = [_present(joint[position], weight) for position, weight in zip(self._shared_positions, self.shared, strict=True)]
        total = [g if weight.grad is None else g + weight.grad for g, weight in zip(now, self.shared, strict=True)]
        protected = _average(protected)
        (ga,) = _average([dot(total, protected)])
        aa = dot(protected, protected)
        share = conflict(ga - aa, aa)
        self._met = ga, aa, share
        for position, g, a in zip(self._shared_positions, now, protected, strict=True):
            joint[position] = g - share.to(a.dtype) * a
        return joint


def _average(tensors: list[Tensor]) -> list[Tensor]:
    """The mean of each tensor over all processes, in one exchange; the tensors themselves where there is one process."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def _present(gradient: Tensor | None, weight: Tensor) -> Tensor:
    """A gradient; zeros for a weight that did not matter."""
    return torch.zeros_like(weight) if gradient is None else gradient


def _gradient(terms: list[Tensor], weights: list[Tensor], scale: Tensor, retain_graph: bool = False) -> list[Tensor | None]:
    """d(scale * sum of terms) / d(weights); None where a weight does not matter."""
    return list(torch.autograd.grad(terms, weights, [scale.to(t.dtype) for t in terms], retain_graph, allow_unused=True))


class _Regularized(torch.autograd.Function):
    """last + exits on the way forward; on the way back, what the regularizer says.

    The terms come in a tuple, where autograd does not see them: the engine is to reach the weights through this node alone.
    """

    @staticmethod
    def forward(
        ctx: Any, regularizer: GradientRegularizer, terms: tuple[Tensor, Tensor], end_of_group: bool, *parameters: Tensor
    ) -> Any:
        ctx.arguments = (regularizer, terms, end_of_group)
        last, exits = terms
        return last.detach() + exits.detach()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        regularizer, (last, exits), end_of_group = ctx.arguments
        return (None, None, None, *regularizer._gradients(last, exits, end_of_group, scale))
