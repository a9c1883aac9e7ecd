"""Rows that lie end to end are the same rows: which can, what fills them up, and that each is its own."""

import pytest
import torch
from tiny import build, padded_batch
from transformers import ModernBertConfig

from modeling_romebert.layouts import Padded, Unpadded, end_to_end, join, without_padding
from modeling_romebert.packing import rounded_up

MODEL = build(exit_pooling="mean")
LENGTHS = [9, 9, 4, 1, 6]


def padded_rows(lengths=LENGTHS, left=False):
    """Hidden states and mask of rows of these lengths; the value of a token tells its row and place."""
    tokens = max(lengths)
    place = torch.arange(tokens)
    mask = torch.stack([(place >= tokens - n) if left else (place < n) for n in lengths]).long()
    hidden = 100.0 * torch.arange(len(lengths))[:, None, None] + place[:, None] + torch.linspace(0, 0.5, 32)  # (b, t, 32)
    return hidden.contiguous(), mask


def texts_of(batch):
    return batch.hidden[0].split([*batch.lengths, batch.hidden.shape[1] - sum(batch.lengths)])[: len(batch.lengths)]


def test_rows_lie_end_to_end_in_their_order():
    hidden, mask = padded_rows()
    batch = without_padding(MODEL, Padded(hidden, mask))
    assert isinstance(batch, Unpadded) and batch.lengths == LENGTHS and batch.cells == sum(LENGTHS)
    assert all(torch.equal(text, row[:length]) for text, row, length in zip(texts_of(batch), hidden, LENGTHS, strict=True))
    whole = without_padding(MODEL, Padded(hidden))
    assert whole.lengths == [9] * 5 and torch.equal(whole.hidden[0], hidden.flatten(0, 1))


def test_what_needs_padding_keeps_it():
    hidden, mask = padded_rows()
    nothing, hole = mask.clone(), mask.clone()
    nothing[2], hole[0, 3] = 0, 0
    for kept in (nothing, hole, padded_rows(left=True)[1]):
        batch = Padded(hidden, kept)
        assert without_padding(MODEL, batch) is batch
    for model in (build(attention="eager"), build(ModernBertConfig)):
        batch = Padded(hidden, mask)
        assert without_padding(model, batch) is batch
    none = Padded(hidden[:0], mask[:0])
    assert without_padding(MODEL, none) is none


def test_padding_and_back():
    hidden, mask = padded_rows()
    there = without_padding(MODEL, Padded(hidden, mask))
    back = there.padded()
    assert torch.equal(back.attention_mask, mask) and back.lengths == LENGTHS
    assert torch.equal(back.hidden, hidden * mask[:, :, None])


@pytest.mark.parametrize("stay", [slice(1, 4), torch.tensor([0, 3, 4]), torch.tensor([4])], ids=str)
def test_some_rows(stay):
    hidden, mask = padded_rows()
    batch = without_padding(MODEL, Padded(hidden, mask))
    some, expected = batch.select(stay, stay), Padded(hidden, mask).select(stay, stay)
    assert some.lengths == expected.lengths
    for text, row, length in zip(texts_of(some), expected.hidden, expected.lengths, strict=True):
        assert torch.equal(text, row[:length])


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True), (False, False)])
def test_joined_rows_are_those_of_each(first, second):
    parts = [Padded(*padded_rows()), Padded(*padded_rows([3, 2]))]
    parts = [without_padding(MODEL, part) if unpad else part for part, unpad in zip(parts, (first, second), strict=True)]
    both = join(parts)
    assert isinstance(both, Unpadded) == (first and second) and both.lengths == [*LENGTHS, 3, 2]
    rows = both.padded().hidden
    for row, length, value in zip(rows, both.lengths, [0, 100, 200, 300, 400, 0, 100], strict=True):
        assert row[:length, 0].tolist() == [value + place for place in range(length)]


@pytest.mark.parametrize(("tokens", "cells"), [(63, 63), (64, 64), (70, 72), (512, 512), (513, 576), (2030, 2048), (2048, 2048)])
def test_few_sizes_occur(tokens, cells):
    batch = end_to_end([torch.ones(1, tokens, 32)], [tokens])
    assert batch.cells == cells == rounded_up(cells)  # packed layers need not fill up again
    assert batch.hidden.sum() == 32 * tokens
    assert join([batch, batch]).lengths == [tokens, tokens]  # what filled up is not taken along
    assert join([batch, batch]).hidden.sum() == 2 * 32 * tokens


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@torch.no_grad()
def test_exits_see_each_row_alone_whatever_the_others_hold(pooling):
    model, (_, mask) = build(exit_pooling=pooling), padded_batch(12, 30)
    hidden = torch.randn(12, 30, 32, generator=torch.Generator().manual_seed(0))
    alone = [Padded(row[None, :length]) for row, length in zip(hidden, mask.sum(dim=1), strict=True)]
    expected = torch.cat([model.exits["1"](*row.prepare(model)[1](row.hidden)) for row in alone])
    hidden[3] = float("nan")
    batch = without_padding(model, Padded(hidden, mask))
    found = model.exits["1"](*batch.prepare(model)[1](batch.hidden))
    assert found[3].isnan().all()
    others = [row for row in range(12) if row != 3]
    torch.testing.assert_close(found[others], expected[others], rtol=0, atol=1e-5)
