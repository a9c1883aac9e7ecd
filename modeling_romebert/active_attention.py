"""Attention of the tokens that are still active over all tokens of their packed texts.

A halted token keeps its state; the layers above read keys and values from it, and compute nothing else of it.
So the library's layer runs on the active tokens alone. What it is given in the place of a mask hands over to
us in `F.scaled_dot_product_attention`, as `BlockDiagonalMask` does (batch_layout.py), and brings the keys and
values of the halted tokens.
"""

from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch_layout import BlockDiagonalMask


class _Run(NamedTuple):
    """Neighbouring texts of the same length."""

    tokens: slice  # of all
    texts: int
    length: int
    active: slice  # of the active tokens
    queries: Tensor  # (texts * q,): of each text its queries, as places among `active`; filled up to the most
    kept: Tensor | None  # (a,): which of these are its active tokens; None where all are


def _runs(lengths: Sequence[int], active: Tensor) -> list[_Run]:
    """Lengths of texts, and (n,) bool which of their tokens are active -> runs of equal length."""
    bounds = [0, *accumulate(lengths)]
    total = [0, *active.long().cumsum(0).tolist()]  # active tokens before each token
    counts = [total[stop] - total[start] for start, stop in pairwise(bounds)]
    runs, row = [], 0
    for length, same in groupby(lengths):
        texts = len(list(same))
        own, start = counts[row : row + texts], total[bounds[row]]
        most = max(own)
        numbers = torch.arange(most)  # (q,)
        starts = torch.tensor([0, *accumulate(own)][:-1])  # (texts,)
        within = numbers < torch.tensor(own)[:, None]  # (texts, q)
        queries = torch.where(within, starts[:, None] + numbers, 0).flatten()
        kept = None if min(own) == most else within.flatten().nonzero().squeeze(1)
        tokens, of_run = slice(bounds[row], bounds[row + texts]), slice(start, start + sum(own))
        runs.append(_Run(tokens, texts, length, of_run, queries, kept))
        row += texts
    return runs


class ActiveQueries(BlockDiagonalMask):
    """Stands for the attention mask of a packed batch whose active tokens alone go through a layer.

    Before each layer `halted` is set to its keys and values of the halted tokens.

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
    active: Tensor  # (m,): places of the active tokens
    inactive: Tensor  # (n - m,)
    halted: tuple[Tensor, Tensor]  # (n - m, heads, D) each

    @classmethod
    def of_active(cls, lengths: Sequence[int], active: Tensor) -> "ActiveQueries":
        """Lengths of the texts, n tokens in all, and (n,) bool which are active, some of each text."""
        mask = torch.empty(0).as_subclass(cls)
        mask.runs_of_active = _runs(lengths, active)
        mask.active, mask.inactive = (where.nonzero().squeeze(1) for where in (active, ~active))
        return mask

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})


def _attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: ActiveQueries, **settings: Any) -> Tensor:
    """query, key, value (1, heads, m + filler, D) of the active tokens -> (1, heads, m + filler, D)"""
    _, heads, tokens, size = query.shape
    count = len(attn_mask.active)
    keys, values = (
        _all_tokens(states[0, :, :count].transpose(0, 1), halted, attn_mask)  # (n, heads, D)
        for states, halted in zip((key, value), attn_mask.halted, strict=True)
    )
    queries = query[0].transpose(0, 1)  # (m + filler, heads, D)
    attended = query.new_zeros(tokens, heads, size)
    for run in attn_mask.runs_of_active:
        of_run = queries[run.active][run.queries].view(run.texts, -1, heads, size)
        of_all = [x[run.tokens].view(run.texts, run.length, heads, size) for x in (keys, values)]
        found = F.scaled_dot_product_attention(
            *(states.transpose(1, 2) for states in (of_run, *of_all)), **settings
        )  # (texts, heads, q, D)
        found = found.transpose(1, 2).flatten(0, 1)  # (texts * q, heads, D)
        attended[run.active] = found if run.kept is None else found[run.kept]
    return attended.transpose(0, 1).unsqueeze(0)


def _all_tokens(active: Tensor, halted: Tensor, mask: ActiveQueries) -> Tensor:
    """(m, heads, D) and (n - m, heads, D) -> (n, heads, D), in the order of the tokens."""
    states = active.new_empty(len(active) + len(halted), *active.shape[1:])
    states[mask.active] = active
    states[mask.inactive] = halted
    return states
