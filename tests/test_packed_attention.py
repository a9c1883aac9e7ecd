"""Attention among texts that lie end to end is that of a block-diagonal mask written out, and of each text alone."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from modeling_romebert.attention import BlockDiagonalMask

from modeling_romebert import attention

HEADS, SIZE = 3, 8


def states(lengths, dtype=torch.float32, seed=0):
    """query, key, value (1, heads, T, D), laid out in memory as a layer's projections are."""
    projections = torch.randn(3, 1, sum(lengths), HEADS, SIZE, generator=torch.Generator().manual_seed(seed))
    return projections.transpose(2, 3).to(dtype)


def written_out(lengths):
    """(1, 1, T, T): whether a token sees another."""
    text = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return (text[:, None] == text)[None, None]


@settings(derandomize=True, deadline=None, max_examples=100, database=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 40)), min_size=1, max_size=6),
    scores=st.sampled_from([0, 300, 5000, 2**18]),
    scale=st.sampled_from([None, 0.7]),
)
def test_is_the_mask_written_out(lengths, scores, scale):
    lengths = [length for count, length in lengths for _ in range(count)]
    query, key, value = states(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SCORES", scores)  # so many at once: none, some texts, all
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=BlockDiagonalMask.of(lengths), scale=scale)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=written_out(lengths), scale=scale)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.03), (torch.float16, 0.004), (torch.float64, 1e-12)])
def test_other_precisions(dtype, bound):
    lengths = [7, 7, 3, 1, 9]
    query, key, value = states(lengths, dtype)
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=BlockDiagonalMask.of(lengths))
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), attn_mask=written_out(lengths))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize(("scores", "dtype"), [(0, torch.float32), (2**18, torch.float32), (0, torch.bfloat16)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_text_that_is_not_finite_is_alone_with_that(bad, scores, dtype, monkeypatch):
    monkeypatch.setattr(attention, "SCORES", scores)
    lengths = [4, 4, 4, 6, 40]  # so many that keys are filled up with what lies there
    query, key, value = states(lengths, dtype)
    mask = BlockDiagonalMask.of(lengths)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    value[:, :, 5], key[:, :, 6] = bad, bad
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert not found[:, :, 4:8].isfinite().all()
    assert torch.equal(found[:, :, :4], expected[:, :, :4]) and torch.equal(found[:, :, 8:], expected[:, :, 8:])


@settings(derandomize=True, deadline=None, max_examples=60, database=None)
@given(
    length=st.integers(1, 40),
    texts=st.integers(1, 4),
    behind=st.lists(st.integers(1, 20), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_what_lies_behind_texts_changes_no_bit_of_them(length, texts, behind, dtype):
    """Keys are filled up with what lies there, which may be another text, less than a vector of it, or nothing."""
    lengths = [*[length] * texts, *[other for other in behind if other != length]]  # another run
    all_states = states(lengths, dtype)
    here = length * texts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SCORES", 0)
        among_others = F.scaled_dot_product_attention(*all_states, attn_mask=BlockDiagonalMask.of(lengths))
        first = [x[:, :, :here].contiguous() for x in all_states]
        alone = F.scaled_dot_product_attention(*first, attn_mask=BlockDiagonalMask.of([length] * texts))
    assert torch.equal(among_others[:, :, :here], alone)


def test_dropout_is_torch_s_own():
    query, key, value = states([5, 5, 2])
    torch.manual_seed(1)
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=BlockDiagonalMask.of([5, 5, 2]), dropout_p=0.5)
    plain = F.scaled_dot_product_attention(query, key, value, attn_mask=BlockDiagonalMask.of([5, 5, 2]))
    torch.manual_seed(1)
    first = [x[0, :, :10].unflatten(1, (2, 5)).transpose(0, 1) for x in (query, key, value)]
    expected = F.scaled_dot_product_attention(*first, dropout_p=0.5)  # (2, heads, 5, D)
    torch.testing.assert_close(found[0, :, :10], expected.transpose(0, 1).flatten(1, 2))
    assert not torch.allclose(found, plain)


def test_neighbours_of_one_length_are_one_run():
    assert BlockDiagonalMask.of([3, 3, 2, 3]).runs == [(2, 3), (1, 2), (1, 3)]
