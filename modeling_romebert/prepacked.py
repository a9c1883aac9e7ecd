"""Layers with prepacked weights: what few tokens need on a CPU, for as long as one scoring pass takes.

torch reorders the weights of a matrix product in every call. For a full batch that is lost in the noise; for the few tokens that
are left after rows have exited it costs as much as the product. oneDNN, which torch carries, takes weights that were reordered
beforehand. A reordered copy would go stale whenever somebody writes to the weight, and not every way of writing can be seen
(fused optimizers and `.data` leave no trace). So the model itself never holds one: copies of its layers do, which share all else
with it, are made anew for each pass, and are gone when it ends.
"""

import copy
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

# Where this was measured to pay. With AVX2 alone, torch's own product is as fast for the full batches of bulk scoring.
PAYS_ON = ("AVX512",)
# Tokens of a pass from which on reordering all weights, which takes about as long as 100 tokens, is lost in the noise.
PREPACKING_TOKENS = 2048


class PrepackedLinear(nn.Module):
    """The product of an `nn.Linear` with a copy of its weight in oneDNN's order, without gradients. (..., I) -> (..., O)"""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.bias = linear.bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, input: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(input, self._weight, self.bias, "none", [], "")


def prepacked(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Layers of a model -> layers that compute the same, up to rounding, with prepacked weights.

    Modules are copied, not parameters: hooks of the layers run as before, and the model stays as it is. A module that occurs
    several times is copied once. Subclasses of `nn.Linear` stay as they are.

    Example:
        >>> layer = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> (copy,) = prepacked([layer])
        >>> type(copy[0]).__name__, type(layer[0]).__name__
        ('PrepackedLinear', 'Linear')
    """
    copies: dict[nn.Module, nn.Module] = {}
    return [_copy(layer, copies) for layer in layers]


def _copy(module: nn.Module, copies: dict[nn.Module, nn.Module]) -> nn.Module:
    if module not in copies:
        if type(module) is nn.Linear and not _has_hooks(module):
            copies[module] = PrepackedLinear(module)
        else:
            copies[module] = copy.copy(module)
            copies[module]._modules = {
                name: None if child is None else _copy(child, copies) for name, child in module._modules.items()
            }
    return copies[module]


def _has_hooks(module: nn.Module) -> bool:
    """Whether somebody watches this very module, or computes its weight anew."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def pays(model: nn.Module) -> bool:
    """Whether to prepack: on a processor where it was measured to pay, for a dtype that oneDNN multiplies there."""
    weight = next(model.parameters())
    return (
        weight.is_cpu
        and torch.backends.cpu.get_cpu_capability() in PAYS_ON
        and not torch.is_autocast_enabled("cpu")
        and can_prepack(weight.dtype)
    )


@cache
def can_prepack(dtype: torch.dtype) -> bool:
    """Whether this build of torch and this processor can: fp32 always, half precision where the processor multiplies it.

    The two operators are those that torch's own compiler uses; they have no public name.
    """
    operators = ("_reorder_linear_weight", "_linear_pointwise")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in operators):
        return False
    asks = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if dtype in asks:
        return hasattr(torch.ops.mkldnn, asks[dtype]) and getattr(torch.ops.mkldnn, asks[dtype])()
    return dtype == torch.float32
