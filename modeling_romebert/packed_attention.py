"""Attention that keeps the texts of a packed batch apart."""

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class BlockDiagonalMask(Tensor):
    """A block-diagonal attention mask that is never written out.

    For `F.scaled_dot_product_attention`, which hands over to it, as to torch's own `CausalBias`
    (torch.nn.attention.bias). Neighbours of the same length are attended to in one call. The mask holds no
    values of its own.

    Example:
        >>> query, key, value = torch.randn(3, 1, 2, 5, 8)  # each (1, heads, T, D)
        >>> mask = BlockDiagonalMask.of([2, 3])
        >>> together = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        >>> alone = F.scaled_dot_product_attention(query[:, :, :2], key[:, :, :2], value[:, :, :2])
        >>> torch.allclose(together[:, :, :2], alone)
        True
    """

    runs: list[tuple[int, int]]  # neighbours of the same length: how many, and their length

    @classmethod
    def of(cls, lengths: Iterable[int]) -> "BlockDiagonalMask":
        """Lengths of the texts, T tokens in all -> their mask."""
        mask = torch.empty(0).as_subclass(cls)
        mask.runs = [(len(list(texts)), length) for length, texts in groupby(lengths)]
        return mask

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})


def _attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: BlockDiagonalMask, **settings: Any
) -> Tensor:
    """query, key, value (1, heads, T, D) -> (1, heads, T, D); for settings see
    `F.scaled_dot_product_attention`.
    """
    _, heads, tokens, size = query.shape
    # As the layer wants it, so that nobody has to transpose it.
    attended = query.new_empty(tokens, heads, size)
    start = 0
    for texts, length in attn_mask.runs:
        stop = start + texts * length
        of_run = [
            states[0, :, start:stop].unflatten(1, (texts, length)).transpose(0, 1)
            for states in (query, key, value)
        ]
        of_texts = F.scaled_dot_product_attention(*of_run, **settings)  # (texts, heads, length, D)
        attended[start:stop].view(texts, length, heads, size).copy_(of_texts.transpose(1, 2))
        start = stop
    return attended.transpose(0, 1).unsqueeze(0)
