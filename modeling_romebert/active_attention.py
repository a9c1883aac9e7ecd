"""Attention of the tokens that are still active over all tokens of their packed texts.

A halted token keeps its state; the layers above read keys and values from it, and compute nothing else of it.
So the library's layer runs on the active tokens alone. What it is given in the place of a mask hands over to
us in `F.scaled_dot_product_attention`, as `BlockDiagonalMask` does (batch_layout.py), and brings the keys and
values of the halted tokens. Texts of the same length are attended to in one call, wherever they lie: keys and
values are put together anew in any case.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .packed_attention import BlockDiagonalMask


class _Run(NamedTuple):
    """Texts of the same length."""

    tokens: slice  # of all, in the order by length
    texts: int
    length: int
    queries: Tensor  # (texts * q,): places of each text's active tokens among all active ones, filled up to q
    kept: Tensor | None  # (a,): which of these are its active tokens; None where all are


class ActiveQueries(BlockDiagonalMask):
    """Stands for the attention mask of a packed batch whose active tokens alone go through a layer.

    Before each layer `halted` is set to its keys and values of the halted tokens, and of what is behind them.

    Example:
        >>> query, key, value = torch.randn(3, 1, 2, 5, 8)  # each (1, heads, T, D)
        >>> active = torch.tensor([True, False, True, True, True])
        >>> mask = ActiveQueries.of_active([2, 3], active)
        >>> mask.halted = key[0, :, ~active].transpose(0, 1), value[0, :, ~active].transpose(0, 1)
        >>> some = [states[:, :, active] for states in (query, key, value)]
        >>> found = F.scaled_dot_product_attention(*some, attn_mask=mask)
        >>> alone = F.scaled_dot_product_attention(query[:, :, :1], key[:, :, :2], value[:, :, :2])
        >>> torch.allclose(found[:, :, :1], alone, atol=1e-6)
        True
    """

    runs_of_active: list[_Run]
    active: Tensor  # (m,): places of the active tokens in the order by length
    inactive: Tensor  # (n - m,)
    halted: tuple[Tensor, Tensor]  # (n - m or more, heads, D) each

    @classmethod
    def of_active(cls, lengths: Sequence[int], active: Tensor) -> "ActiveQueries":
        """Lengths of the texts, n tokens in all, and (n,) bool which are active, some of each text."""
        sizes = torch.tensor(lengths)  # (b,)
        stops = sizes.cumsum(0)
        rows = torch.arange(len(sizes)).repeat_interleave(sizes)  # (n,): the text of each token
        order = sizes.argsort(stable=True)  # (b,): texts by length
        starts = torch.empty_like(sizes)
        starts[order] = sizes[order].cumsum(0) - sizes[order]
        places = (starts - stops + sizes)[rows] + torch.arange(len(rows))  # (n,): where each token goes
        counts = torch.bincount(rows[active], minlength=len(sizes))  # (b,): active tokens of each text
        mask = torch.empty(0).as_subclass(cls)
        mask.active, mask.inactive = places[active], places[~active]
        mask.runs_of_active = _runs(sizes[order], counts[order], (counts.cumsum(0) - counts)[order])
        return mask

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})


def _runs(lengths: Tensor, counts: Tensor, firsts: Tensor) -> list[_Run]:
    """Of texts by length (b,) each: their lengths, active tokens, and where these begin among all active ones
    -> runs of equal length.
    """
    runs, text, token = [], 0, 0
    for length, texts in zip(*(found.tolist() for found in lengths.unique(return_counts=True)), strict=True):
        own, first = counts[text : text + texts, None], firsts[text : text + texts, None]  # (texts, 1)
        numbers = torch.arange(int(own.max()))  # (q,)
        within = numbers < own  # (texts, q)
        queries = torch.where(within, first + numbers, first).flatten()
        kept = None if bool(within.all()) else within.flatten().nonzero().squeeze(1)
        runs.append(_Run(slice(token, token + texts * length), texts, length, queries, kept))
        text, token = text + texts, token + texts * length
    return runs


def _attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: ActiveQueries, **settings: Any) -> Tensor:
    """query, key, value (1, heads, m + filler, D) of the active tokens -> (1, heads, m + filler, D)"""
    _, heads, tokens, size = query.shape
    keys, values = (
        _all_tokens(states[0].transpose(0, 1), halted, attn_mask)  # (n, heads, D)
        for states, halted in zip((key, value), attn_mask.halted, strict=True)
    )
    queries = query[0].transpose(0, 1)  # (m + filler, heads, D)
    attended = query.new_zeros(tokens, heads, size)
    for run in attn_mask.runs_of_active:
        of_run = queries[run.queries].view(run.texts, -1, heads, size)
        of_all = [x[run.tokens].view(run.texts, run.length, heads, size) for x in (keys, values)]
        q, k, v = (states.transpose(1, 2) for states in (of_run, *of_all))  # (texts, heads, q or length, D)
        found = F.scaled_dot_product_attention(q, k, v, **settings)  # (texts, heads, q, D)
        found = found.transpose(1, 2).flatten(0, 1)  # (texts * q, heads, D)
        if run.kept is None:
            attended[run.queries] = found
        else:
            attended[run.queries[run.kept]] = found[run.kept]
    return attended.transpose(0, 1).unsqueeze(0)


def _all_tokens(active: Tensor, halted: Tensor, mask: ActiveQueries) -> Tensor:
    """(m or more, heads, D) and (n - m or more, heads, D) -> (n, heads, D), in the order by length."""
    states = active.new_empty(len(mask.active) + len(mask.inactive), *active.shape[1:])
    states[mask.active] = active[: len(mask.active)]
    states[mask.inactive] = halted[: len(mask.inactive)]
    return states
