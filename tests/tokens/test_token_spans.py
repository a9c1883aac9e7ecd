"""token_spans.py: which tokens halt together, against the formula of the paper, token by token."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_romebert.token_spans import (
    NO_WORD,
    any_within,
    halting,
    have_a_say,
    row_spans,
    rows_with,
    window_spans,
    word_spans,
)

PIECES = st.lists(st.integers(1, 5), max_size=8)  # of each word of a row
ROWS = st.lists(PIECES, min_size=1, max_size=4)


def words_of(rows: list[list[int]]) -> tuple[torch.Tensor, list[int]]:
    """Pieces of each word of each row -> the word of each token, with a special token at both ends, and
    tokens of each row.
    """
    words = [[NO_WORD, *(w for w, count in enumerate(row) for _ in range(count)), NO_WORD] for row in rows]
    return torch.tensor([word for row in words for word in row]), [len(row) for row in words]


def restated(
    u: list[float], halted: list[bool], words: list[int], window: int, threshold: float
) -> list[bool]:
    """One row by the paper: max-pooling of the uncertainties, below the threshold, whole words together."""
    first = [w != NO_WORD and (i == 0 or words[i - 1] != w) for i, w in enumerate(words)]
    says = [value if says and not done else -1.0 for value, says, done in zip(u, first, halted, strict=True)]
    pooled = F.max_pool1d(torch.tensor([[says]]), window, stride=1, padding=window // 2)[0, 0]
    sure = (pooled < threshold).tolist()
    for i in range(1, len(words)):  # special tokens go with the word before them,
        words[i] = words[i - 1] if words[i] == NO_WORD else words[i]
    for i in reversed(range(len(words) - 1)):  # or behind them
        words[i] = words[i + 1] if words[i] == NO_WORD else words[i]
    return [
        not halted[i] and all(sure[j] for j in range(len(words)) if words[j] == words[i])
        for i in range(len(words))
    ]


@settings(derandomize=True, deadline=None, max_examples=200, database=None)
@given(rows=ROWS, window=st.sampled_from([1, 3, 5, 15]), seed=st.integers(0, 10**6), share=st.floats(0, 0.9))
def test_tokens_halt_as_the_paper_has_it(rows, window, seed, share):
    words, counts = words_of(rows)
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(len(words), generator=generator)
    # Words halt whole, so what has halted are whole words.
    halted = any_within(torch.rand(len(words), generator=generator) < share, word_spans(words, counts))
    found = halting(u < 0.5, ~halted, words, counts, window)
    parts = zip(*(x.split(counts) for x in (u, halted, words)), strict=True)
    expected = [restated(*(part.tolist() for part in row), window, 0.5) for row in parts]
    assert found.tolist() == [one for row in expected for one in row]


@settings(derandomize=True, deadline=None, max_examples=100, database=None)
@given(rows=ROWS, seed=st.integers(0, 10**6))
def test_rows_leave_when_their_least_sure_word_is_sure(rows, seed):
    words, counts = words_of(rows)
    u = torch.rand(len(words), generator=torch.Generator().manual_seed(seed))
    stays = rows_with(have_a_say(words, counts) & ~(u < 0.7), counts)
    for stays_here, own, uncertainty in zip(stays, words.split(counts), u.split(counts), strict=True):
        first = [i for i, w in enumerate(own.tolist()) if w != NO_WORD and own[i - 1] != w]
        leaves = all(uncertainty[i] < 0.7 for i in first)
        assert stays_here.item() == (not leaves)


def test_each_row_may_have_its_own_window():
    own = window_spans([3, 3], torch.tensor([1, 1, 1, 3, 3, 3]))
    assert own.first.tolist() == [0, 1, 2, 3, 3, 4] and own.stop.tolist() == [1, 2, 3, 5, 6, 6]


def test_a_row_of_no_tokens_has_no_span():
    assert row_spans([2, 0, 1]).first.tolist() == [0, 0, 2]
    assert any_within(torch.tensor([False, False, True]), row_spans([2, 0, 1])).tolist() == [
        False,
        False,
        True,
    ]
