"""Linear layers whose weights are reordered once: what few tokens need on a CPU.

torch reorders the weights of a multiplication in every call: in fp32 its BLAS does, in half precision oneDNN. For a full batch that
is lost in the noise; for the few tokens that are left after rows have left it costs as much as the multiplication, so that saved
rows would not show on the clock. oneDNN, which torch carries, takes weights that were reordered beforehand.
"""

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rows up to which packed weights are used. On a processor with AVX2 alone torch's BLAS was measured to be faster beyond, by up to a
# seventh; it also needs no code for each number of rows.
PAYS_UP_TO: float = 512 if torch.backends.cpu.get_cpu_capability() == "AVX2" else math.inf


class PackedLinear(nn.Linear):
    """An `nn.Linear` with a second copy of its weight, in oneDNN's order. (..., I) -> (..., O)

    The copy is used where no gradient is wanted, on a CPU, in fp32 and in the half precisions that the processor has, for up to
    `PAYS_UP_TO` rows; anywhere else this is the `nn.Linear` that it was made from. It follows changes of the weight, takes its
    memory once more, and is not in the state dict. Results differ from those of `nn.Linear` by rounding.
    """

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)  # nn.Linear's own would make new weights
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.train(linear.training)
        # Of which weight, the copy, and that weight: while it is kept, no other gets its address.
        self._packed: tuple[tuple[int, int], Tensor, Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias  # looked up once: for a single text the lookups show
        rows = input.numel() // self.in_features  # N
        if rows > PAYS_UP_TO or not self._packs(input, weight):
            return F.linear(input, weight, bias)
        state = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if self._packed is None or self._packed[0] != state:
            weight = weight.detach()
            self._packed = (state, torch.ops.mkldnn._reorder_linear_weight(weight), weight)
        packed = self._packed[1]
        more = rounded_up(rows) - rows
        if not more:
            return torch.ops.mkldnn._linear_pointwise(input, packed, bias, "none", [], "")
        flat = input.reshape(rows, self.in_features)
        flat = torch.cat((flat, flat[:more]))  # any rows do
        output = torch.ops.mkldnn._linear_pointwise(flat, packed, bias, "none", [], "")
        return output[:rows].view(*input.shape[:-1], self.out_features)

    def _packs(self, input: Tensor, weight: Tensor) -> bool:
        return (
            not torch.is_grad_enabled()
            and input.is_cpu
            and weight.is_cpu
            and input.dtype == weight.dtype
            and packs(input.dtype)
            and input.numel() > 0
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_packed": None}  # the copy cannot be copied or pickled, and need not be


def rounded_up(rows: int) -> int:
    """Rows of a multiplication -> rows that it is run with, a few more, so that few numbers of rows occur.

    oneDNN compiles code for each number of rows, which takes longer than a small multiplication, and keeps up to a thousand of
    them. Rows that leave make ever new numbers: time and memory would go into code that is hardly used again.
    """
    step = 1 if rows <= 64 else 8 if rows <= 512 else 16
    return -(-rows // step) * step


def can_pack() -> bool:
    """Whether this build of torch has what `PackedLinear` calls: two operators that its compiler uses, without a public name."""
    operators = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in operators)


@cache
def packs(dtype: torch.dtype) -> bool:
    """Whether this machine multiplies packed weights of a type: fp32 always, half precision where the processor can."""
    asks = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if dtype in asks:
        return hasattr(torch.ops.mkldnn, asks[dtype]) and getattr(torch.ops.mkldnn, asks[dtype])()
    return dtype == torch.float32


def pack_linears(model: nn.Module) -> nn.Module:
    """Replace every `nn.Linear` of `model` by a `PackedLinear` with the same parameters, in place; subclasses stay as they are.

    For inference on a CPU. The model can be trained, saved and moved as before. Where torch cannot pack, nothing happens.

    Example:
        >>> model = pack_linears(torch.nn.Sequential(torch.nn.Linear(4, 2)))
        >>> type(model[0]).__name__, sorted(model.state_dict())
        ('PackedLinear', ['0.bias', '0.weight'])
    """
    if can_pack():
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear:
                    setattr(parent, name, PackedLinear(child))
    return model
