"""Rows that lie end to end are the same rows: which can, what fills them up, and that each is its own."""

import pytest
import torch
from tiny import build, padded_batch
from transformers import ModernBertConfig

from modeling_romebert.backbones import embed
from modeling_romebert.layouts import Padded, Unpadded, end_to_end, join, lay_out, with_filler
from modeling_romebert.packing import rounded_up

MODEL = build(exit_pooling="mean")
LENGTHS = [9, 9, 4, 1, 6]


def padded_rows(lengths=LENGTHS):
    """Hidden states and mask of rows of these lengths; the value of a token tells its row and place."""
    tokens = max(lengths)
    place = torch.arange(tokens)
    mask = torch.stack([place < n for n in lengths]).long()
    hidden = 100.0 * torch.arange(len(lengths))[:, None, None] + place[:, None] + torch.linspace(0, 0.5, 32)  # (b, t, 32)
    return hidden.contiguous(), mask


def texts_of(batch):
    return batch.hidden[0].split([*batch.lengths, batch.hidden.shape[1] - sum(batch.lengths)])[: len(batch.lengths)]


def unpadded(hidden, mask):
    lengths = mask.sum(dim=1).tolist()
    return end_to_end([row[None, :length] for row, length in zip(hidden, lengths, strict=True)], lengths)


@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_rows_lie_end_to_end_in_their_order(masked):
    ids, mask = padded_batch(12, 30)
    inputs = {"input_ids": ids, "attention_mask": mask} if masked else {"input_ids": ids}
    batch, embedded = lay_out(MODEL, inputs), embed(MODEL, ids, None, None, None, None)
    lengths = mask.sum(dim=1).tolist() if masked else [30] * 12
    assert isinstance(batch, Unpadded) and batch.lengths == lengths and batch.cells == with_filler(sum(lengths))
    for text, row, length in zip(texts_of(batch), embedded, lengths, strict=True):
        assert torch.equal(text, row[:length])


@torch.no_grad()
def test_what_needs_padding_keeps_it():
    ids, mask = padded_batch(12, 30)
    nothing, hole = mask.clone(), mask.clone()
    nothing[2], hole[0, 3] = 0, 0
    for kept in (nothing, hole, mask.flip(1)):
        batch = lay_out(MODEL, {"input_ids": ids, "attention_mask": kept})
        assert isinstance(batch, Padded) and torch.equal(batch.attention_mask, kept)
    for model in (build(attention="eager"), build(ModernBertConfig)):
        assert isinstance(lay_out(model, {"input_ids": ids, "attention_mask": mask}), Padded)
    assert isinstance(lay_out(MODEL, {"inputs_embeds": torch.ones(2, 5, 32)}), Padded)
    assert isinstance(lay_out(MODEL, {"input_ids": ids[:0], "attention_mask": mask[:0]}), Padded)


def test_inputs_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match="input of 65 tokens, but the backbone has positions for 64"):
        lay_out(MODEL, {"input_ids": torch.ones(2, 65, dtype=torch.long)})
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 4\)"):
        lay_out(MODEL, {"input_ids": torch.ones(2, 5, dtype=torch.long), "attention_mask": torch.ones(2, 4)})


def test_padding_and_back():
    hidden, mask = padded_rows()
    there = unpadded(hidden, mask)
    back = there.padded()
    assert torch.equal(back.attention_mask, mask) and back.lengths == LENGTHS
    assert torch.equal(back.hidden, hidden * mask[:, :, None])


@pytest.mark.parametrize("stay", [slice(1, 4), torch.tensor([0, 3, 4]), torch.tensor([4])], ids=str)
def test_some_rows(stay):
    hidden, mask = padded_rows()
    batch = unpadded(hidden, mask)
    some, expected = batch.select(stay, stay), Padded(hidden, mask).select(stay, stay)
    assert some.lengths == expected.lengths
    for text, row, length in zip(texts_of(some), expected.hidden, expected.lengths, strict=True):
        assert torch.equal(text, row[:length])


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True), (False, False)])
def test_joined_rows_are_those_of_each(first, second):
    of_each = [unpadded if first else Padded, unpadded if second else Padded]
    both = join([of_each[0](*padded_rows()), of_each[1](*padded_rows([3, 2]))])
    assert isinstance(both, Unpadded) == (first and second) and both.lengths == [*LENGTHS, 3, 2]
    rows = both.padded().hidden
    for row, length, value in zip(rows, both.lengths, [0, 100, 200, 300, 400, 0, 100], strict=True):
        assert row[:length, 0].tolist() == [value + place for place in range(length)]


@pytest.mark.parametrize(("tokens", "cells"), [(57, 64), (64, 64), (65, 80), (512, 512), (513, 576), (2030, 2048), (2048, 2048)])
def test_few_sizes_occur(tokens, cells):
    batch = end_to_end([torch.ones(1, tokens, 32)], [tokens])
    assert batch.cells == cells == rounded_up(cells)  # packed layers need not fill up again
    assert batch.hidden.sum() == 32 * tokens
    assert join([batch, batch]).lengths == [tokens, tokens]  # what filled up is not taken along
    assert join([batch, batch]).hidden.sum() == 2 * 32 * tokens
    assert len({with_filler(number) for number in range(1, 2049)}) == 8 + 28 + 24


def test_a_slice_is_not_copied_before_it_is_joined():
    batch = end_to_end([torch.randn(1, 57, 32)], [30, 20, 7])
    part = batch.select(slice(1, 3), slice(1, 3))
    assert part.cells == 27 and part.hidden.data_ptr() == batch.hidden[:, 30:].data_ptr()
    joined = join([part])
    assert joined.cells == 32 and torch.equal(joined.hidden[:, :27], part.hidden) and not joined.hidden[:, 27:].any()
    assert join([batch]) is batch and join([joined]) is joined


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@torch.no_grad()
def test_exits_see_each_row_alone_whatever_the_others_hold(pooling):
    model, (_, mask) = build(exit_pooling=pooling), padded_batch(12, 30)
    hidden = torch.randn(12, 30, 32, generator=torch.Generator().manual_seed(0))
    alone = [Padded(row[None, :length]) for row, length in zip(hidden, mask.sum(dim=1), strict=True)]
    expected = torch.cat([model.exits["1"](*row.prepare(model)[1](row.hidden)) for row in alone])
    hidden[3] = float("nan")
    batch = unpadded(hidden, mask)
    found = model.exits["1"](*batch.prepare(model)[1](batch.hidden))
    assert found[3].isnan().all()
    others = [row for row in range(12) if row != 3]
    torch.testing.assert_close(found[others], expected[others], rtol=0, atol=1e-5)
