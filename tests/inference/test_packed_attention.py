"""Attention among texts that lie end to end is that of a block-diagonal mask written out, and of each text
alone.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_romebert.packed_attention import BlockDiagonalMask

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
    scale=st.sampled_from([None, 0.7]),
)
def test_is_the_mask_written_out(lengths, scale):
    lengths = [length for count, length in lengths for _ in range(count)]
    query, key, value = states(lengths)
    found = F.scaled_dot_product_attention(
        query, key, value, attn_mask=BlockDiagonalMask.of(lengths), scale=scale
    )
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=written_out(lengths), scale=scale)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.bfloat16, 0.03), (torch.float16, 0.004), (torch.float64, 1e-12)]
)
def test_other_precisions(dtype, bound):
    lengths = [7, 7, 3, 1, 9]
    query, key, value = states(lengths, dtype)
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=BlockDiagonalMask.of(lengths))
    expected = F.scaled_dot_product_attention(
        query.double(), key.double(), value.double(), attn_mask=written_out(lengths)
    )
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_text_that_is_not_finite_is_alone_with_that(bad, dtype):
    lengths = [4, 4, 4, 6, 40]
    query, key, value = states(lengths, dtype)
    mask = BlockDiagonalMask.of(lengths)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    value[:, :, 5], key[:, :, 6] = bad, bad
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert not found[:, :, 4:8].isfinite().all()
    assert torch.equal(found[:, :, :4], expected[:, :, :4]) and torch.equal(
        found[:, :, 8:], expected[:, :, 8:]
    )


def test_dropout_is_torch_s_own():
    query, key, value = states([5, 5, 2])
    torch.manual_seed(1)
    found = F.scaled_dot_product_attention(
        query, key, value, attn_mask=BlockDiagonalMask.of([5, 5, 2]), dropout_p=0.5
    )
    plain = F.scaled_dot_product_attention(query, key, value, attn_mask=BlockDiagonalMask.of([5, 5, 2]))
    torch.manual_seed(1)
    first = [x[0, :, :10].unflatten(1, (2, 5)).transpose(0, 1) for x in (query, key, value)]
    expected = F.scaled_dot_product_attention(*first, dropout_p=0.5)  # (2, heads, 5, D)
    torch.testing.assert_close(found[0, :, :10], expected.transpose(0, 1).flatten(1, 2))
    assert not torch.allclose(found, plain)


def test_neighbours_of_one_length_are_one_run():
    assert BlockDiagonalMask.of([3, 3, 2, 3]).runs == [(2, 3), (1, 2), (1, 3)]
