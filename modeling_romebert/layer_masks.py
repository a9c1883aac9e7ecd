"""The rows that layers run on, and their attention mask as the attention backend wants it."""

import inspect
from typing import Any, NamedTuple

import transformers
from torch import Tensor
from transformers import PreTrainedModel

from .packed_attention import BlockDiagonalMask

TESTED_TRANSFORMERS = "5.19.0 to 5.24.0"  # what setup.cfg allows; docs/versions.md has the runs

try:  # a part of the library that moves between versions
    from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask
except ImportError as error:
    raise ImportError(
        f"transformers {transformers.__version__} makes masks in another way than the early-exit loop"
        f" expects ({error}). Install a version that this package was tested with: {TESTED_TRANSFORMERS}."
    ) from error

_CAN_BE_TOLD = "allow_is_bidirectional_skip" in inspect.signature(create_bidirectional_mask).parameters


class LayerRows(NamedTuple):
    """The rows that layers are prepared for.

    Attributes:
        hidden: (B, T, H), of which the shape, the type and the device count.
        attention_mask: (B, T), or made already: (B, 1, T, T) or that of packed texts; `None` masks nothing.
        position_ids: (B, T); `None` where the backbone counts them itself.
        padded: the mask is known to mask something, so that nobody has to look, which would wait for the
            device.
    """

    hidden: Tensor
    attention_mask: Any = None
    position_ids: Tensor | None = None
    padded: bool = False


def bidirectional_mask(backbone: PreTrainedModel, rows: LayerRows) -> Any:
    """The mask of some rows as the attention backend wants it.

    For torch's own attention what the library would make is made directly: (B, 1, T, T), or none where
    nothing is padded. After rows have left it is made anew, and the library's way takes as long as an exit.
    Texts that lie end to end bring their mask.
    """
    mask = rows.attention_mask
    if isinstance(mask, BlockDiagonalMask) or (mask is not None and mask.dim() == 4):
        return mask
    if backbone.config._attn_implementation == "sdpa":
        if mask is None:
            return None
        if rows.padded and mask.dim() == 2:
            count, tokens = mask.shape
            return mask.bool()[:, None, None, :].expand(count, 1, tokens, tokens)
    no_look = (
        {"allow_is_bidirectional_skip": False} if rows.padded and mask is not None and _CAN_BE_TOLD else {}
    )
    return create_bidirectional_mask(backbone.config, rows.hidden, mask, **no_look)


def sliding_window_mask(backbone: PreTrainedModel, rows: LayerRows) -> Any:
    """The same for layers whose tokens see their neighbourhood."""
    return create_bidirectional_sliding_window_mask(backbone.config, rows.hidden, rows.attention_mask)
