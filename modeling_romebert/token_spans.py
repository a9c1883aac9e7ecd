"""Which tokens leave together: what an exit policy says of single tokens -> which of them halt.

A word is as sure as its first piece, the one that is trained and scored; its other pieces, and special
tokens, have no say, and go with a word. A row leaves as one when all its words are sure (SENTEE,
sentence_exits.py); or a token halts when all words in a window around it are sure, and all pieces of its word
with it (TOKEE; both Li et al., arXiv 2105.13878). There the window's largest uncertainty is held against the
threshold: the same as to ask whether every token in it is below. Rows, windows and words are spans of tokens,
and one function answers for all of them.

Everything is on the host: n tokens of b rows lie end to end, a few thousand at most.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NO_WORD = -1  # the word of a special token


class Spans(NamedTuple):
    """A span of neighbouring tokens for each of n tokens."""

    first: Tensor  # (n,)
    stop: Tensor  # (n,): behind the last one


def rows_of(counts: Sequence[int]) -> Tensor:
    """Tokens of each of b rows, n in all -> (n,): the row of each token."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long))


def rows_with(flags: Tensor, counts: Sequence[int]) -> Tensor:
    """flags (n,) bool, tokens of each of b rows -> (b,) bool: whether any is set in the row.

    Example:
        >>> rows_with(torch.tensor([True, False, False]), [2, 0, 1]).tolist()
        [True, False, False]
    """
    found = torch.zeros(len(counts), dtype=torch.bool)
    found[rows_of(counts)[flags]] = True
    return found


def row_spans(counts: Sequence[int]) -> Spans:
    """Tokens of each row -> the span of its row, for each token.

    Example:
        >>> first, stop = row_spans([2, 3])
        >>> first.tolist(), stop.tolist()
        ([0, 0, 2, 2, 2], [2, 2, 5, 5, 5])
    """
    lengths = torch.tensor(counts, dtype=torch.long)
    stops = lengths.cumsum(0)  # (b,)
    rows = rows_of(counts)
    return Spans((stops - lengths)[rows], stops[rows])


def window_spans(counts: Sequence[int], window: int | Tensor) -> Spans:
    """Tokens of each row -> the `window` tokens around each token, as far as its row goes. A tensor (n,)
    gives each token its own window.

    Example:
        >>> first, stop = window_spans([2, 3], 3)
        >>> first.tolist(), stop.tolist()
        ([0, 0, 2, 2, 3], [2, 2, 4, 5, 5])
    """
    row, places, side = row_spans(counts), torch.arange(sum(counts)), window // 2
    return Spans(torch.maximum(places - side, row.first), torch.minimum(places + side + 1, row.stop))


def word_spans(words: Tensor, counts: Sequence[int]) -> Spans:
    """Word of each token (n,), `NO_WORD` for none -> the pieces of its word. Special tokens go with the word
    before them, and with the first one at the start of a row.

    Example:
        >>> first, stop = word_spans(torch.tensor([-1, 0, 0, 1, -1]), [5])
        >>> first.tolist(), stop.tolist()
        ([0, 0, 0, 3, 3], [3, 3, 3, 5, 5])
    """
    begins, row = have_a_say(words, counts), row_spans(counts).first
    total = F.pad(begins.long().cumsum(0), (1, 0))  # (n + 1,): words before each token
    begins = begins & (total[1:] - total[row] > 1)  # the first word of a row begins with the row
    begins[row] = True
    number = begins.cumsum(0) - 1  # (n,)
    sizes = torch.bincount(number)
    stops = sizes.cumsum(0)
    return Spans((stops - sizes)[number], stops[number])


def have_a_say(words: Tensor, counts: Sequence[int]) -> Tensor:
    """Word of each token (n,) -> (n,) bool: the first piece of each word.

    Example:
        >>> have_a_say(torch.tensor([-1, 0, 0, 1, -1]), [5]).tolist()
        [False, True, False, True, False]
    """
    begins = torch.ones(len(words), dtype=torch.bool)
    begins[1:] = words[1:] != words[:-1]
    begins[row_spans(counts).first] = True
    return begins & (words != NO_WORD)


def any_within(flags: Tensor, spans: Spans) -> Tensor:
    """flags (n,) bool -> (n,) bool: whether any is set in each token's span.

    Example:
        >>> any_within(torch.tensor([True, False, False, False]), window_spans([4], 3)).tolist()
        [True, True, False, False]
    """
    total = F.pad(flags.long().cumsum(0), (1, 0))  # (n + 1,)
    return total[spans.stop] > total[spans.first]


def halting(
    sure: Tensor,
    active: Tensor,
    words: Tensor,
    counts: Sequence[int],
    window: int | Tensor | None,
) -> Tensor:
    """Which tokens halt one by one.

    Args:
        sure (n,): bool, what the policy says of the active tokens. One that has halted stays sure: it had to
            be.
        active (n,): bool, which have not halted.
        words (n,): of each token, counted within its row; `NO_WORD` for special tokens.
        counts: tokens of each row.
        window: of the policy, see `ExitPolicy.deciding_for`.

    Returns: (n,) bool, some of the active ones.

    Example:
        >>> words, sure = torch.tensor([-1, 0, 1, 2, -1]), torch.tensor([False, True, True, False, False])
        >>> halting(sure, torch.ones(5, dtype=torch.bool), words, [5], 3).tolist()
        [True, True, False, False, False]
    """
    unsure = have_a_say(words, counts) & active & ~sure
    unsure = any_within(unsure, window_spans(counts, 1 if window is None else window))
    return active & ~any_within(unsure, word_spans(words, counts))
