"""Attention among the tokens of each text when several texts lie end to end, without padding."""

from collections.abc import Iterable
from functools import cache
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# torch's attention takes exponentials in vectors of so many keys, and one by one what is over. With the keys of each text filled up
# it takes 0.4 to 1 of its time, measured with AVX-512 in bfloat16 and fp32, for texts of 6 to 128 tokens and more.
VECTOR = 16
# Of short texts in fp32, a processor with AVX2 alone computes all scores in two products of matrices faster than torch's attention,
# which goes block by block: in 0.4 to 0.95 of its time for texts of 10 to 128 tokens, as long as no more scores than these are made
# at once (1 MiB). With AVX-512 torch's attention is the faster one.
SCORES = 2**18 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 0


class BlockDiagonalMask(Tensor):
    """A mask by which each token sees those of its own text: block diagonal, and never written out.

    For `F.scaled_dot_product_attention`, which hands over to it, as to torch's own `CausalBias` (torch.nn.attention.bias).
    Neighbours of the same length are attended to in one call. The mask holds no values of its own.

    Example:
        >>> query, key, value = torch.randn(3, 1, 2, 5, 8)  # each (1, heads, T, D)
        >>> together = F.scaled_dot_product_attention(query, key, value, attn_mask=BlockDiagonalMask.of([2, 3]))
        >>> alone = F.scaled_dot_product_attention(query[:, :, :2], key[:, :, :2], value[:, :, :2])
        >>> torch.allclose(together[:, :, :2], alone)
        True
    """

    runs: list[tuple[int, int]]  # texts in a row that have the same length, and that length

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
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: BlockDiagonalMask,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **settings: Any,
) -> Tensor:
    """query, key, value (1, heads, T, D) -> (1, heads, T, D); for settings see `F.scaled_dot_product_attention`."""
    _, heads, tokens, size = query.shape
    found = query.new_empty(tokens, heads, size)  # as the layer wants it, so that nobody has to turn it round
    plain = not (dropout_p or is_causal or any(settings.values()))
    by_products = plain and SCORES > 0 and query.dtype == torch.float32 and query.is_cpu
    in_vectors = plain and not by_products
    finite = in_vectors and bool((key.sum() + value.sum()).isfinite())
    start = 0
    for texts, length in attn_mask.runs:
        at_once = min(texts, SCORES // (heads * length**2)) if by_products else 0  # texts; none where it does not pay
        for first in range(0, texts, at_once or texts):
            here = min(at_once or texts, texts - first)
            stop = start + here * length
            ahead = -length % VECTOR if in_vectors else 0
            q = _of_texts(query, start, here, length)  # (here, heads, length, D)
            k, v = (_filled_up(x, start, here, length, ahead, finite) for x in (key, value))  # (here, heads, S, D)
            if at_once:
                attended = _by_products(q, k, v, size**-0.5 if scale is None else scale)  # (here, heads, length, D)
            else:
                mask = _only_first(length, length + ahead, q.dtype) if ahead else None  # (1, 1, 1, S)
                attended = F.scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal, scale=scale, **settings)
            found[start:stop].view(here, length, heads, size).copy_(attended.transpose(1, 2))
            start = stop
    return found.transpose(0, 1).unsqueeze(0)


def _of_texts(states: Tensor, start: int, texts: int, length: int, ahead: int = 0) -> Tensor:
    """states (1, heads, T, D) -> of texts of one length, with so many tokens behind each, (texts, heads, S, D). A view."""
    stop = start + texts * length + ahead
    return states[0, :, start:stop].unfold(1, length + ahead, length).permute(1, 0, 3, 2)


def _filled_up(states: Tensor, start: int, texts: int, length: int, ahead: int, finite: bool) -> Tensor:
    """`_of_texts` with `ahead` more of what a mask leaves out.

    It is what lies there, which needs no copy, or zeros: where the tokens end, or some are not finite, as 0 times those is not 0.
    """
    if not ahead or (finite and start + texts * length + ahead <= states.shape[2]):
        return _of_texts(states, start, texts, length, ahead)
    tokens_first = _of_texts(states, start, texts, length).transpose(1, 2)  # as in memory: results are then the same bit for bit
    return F.pad(tokens_first, (0, 0, 0, 0, 0, ahead)).transpose(1, 2)


@cache
def _only_first(length: int, keys: int, dtype: torch.dtype) -> Tensor:
    """A mask (1, 1, 1, keys) by which all see the first `length` keys and no other; made once for each length."""
    with torch.inference_mode(False):
        mask = torch.zeros(1, 1, 1, keys, dtype=dtype)
        mask[..., length:] = float("-inf")
        return mask


def _by_products(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """query, key, value (b, heads, t, D) -> softmax(scale * query key^T) value, (b, heads, t, D)."""
    rows, heads, tokens, size = query.shape
    query, key, value = (x.reshape(rows * heads, tokens, size) for x in (query, key, value))
    scores = torch.baddbmm(query.new_empty(1), query, key.transpose(1, 2), beta=0, alpha=scale)  # (b * heads, t, t)
    return torch.bmm(torch.softmax(scores, dim=-1), value).view(rows, heads, tokens, size)
