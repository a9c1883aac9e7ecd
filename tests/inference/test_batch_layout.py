"""Packed and padded batches hold the same rows: which can be packed, what fills them up, and that each row is
its own.
"""

import pytest
import torch
from tiny import PAD, build, padded_batch
from transformers import BertConfig, ModernBertConfig, RobertaConfig

from modeling_romebert.batch_layout import PackedBatch, PaddedBatch, rounded_up

LENGTHS = [9, 9, 4, 1, 6]


def padded(lengths=LENGTHS):
    """A batch of rows of these lengths; the value of a token tells its row and place."""
    tokens = max(lengths)
    place = torch.arange(tokens)
    mask = torch.stack([place < n for n in lengths]).long()
    hidden = (
        100.0 * torch.arange(len(lengths))[:, None, None] + place[:, None] + torch.linspace(0, 0.5, 32)
    )  # (b, t, 32)
    return PaddedBatch(hidden.contiguous(), mask)


def packed(lengths=LENGTHS):
    batch = padded(lengths)
    rows = [row[None, :length] for row, length in zip(batch.hidden, lengths, strict=True)]
    tokens = sum(lengths)
    filler = torch.zeros(1, rounded_up(tokens) - tokens, 32)
    return PackedBatch(torch.cat([*rows, filler], dim=1), list(lengths))


def texts_of(batch):
    """States (t, 32) of each row."""
    if isinstance(batch, PackedBatch):
        return batch.hidden[0].split([*batch.lengths, batch.filler])[: len(batch)]
    return [row[:length] for row, length in zip(batch.hidden, batch.lengths, strict=True)]


# ---- token ids -> batches


@pytest.mark.parametrize("family", [BertConfig, RobertaConfig])
@torch.no_grad()
def test_packed_texts_are_embedded_as_each_alone(family):
    model, (ids, mask) = build(family, exit_pooling="mean"), padded_batch(12, 30)
    ids[3, 1] = PAD  # within a text, where RoBERTa does not count it
    rows = [row[:length].tolist() for row, length in zip(ids, mask.sum(dim=1), strict=True)]
    types = [[place % 2 if family is BertConfig else 0 for place, _ in enumerate(row)] for row in rows]
    texts = [{"input_ids": row, "token_type_ids": of_row} for row, of_row in zip(rows, types, strict=True)]
    encoder = model.encoder()
    batch = encoder.embed_texts(texts)
    assert isinstance(batch, PackedBatch) and batch.lengths == [len(row) for row in rows]
    assert batch.tokens == rounded_up(sum(batch.lengths))
    for text, found in zip(texts, texts_of(batch), strict=True):
        assert torch.equal(
            found, model.backbone.embeddings(**{name: torch.tensor([row]) for name, row in text.items()})[0]
        )


def test_what_cannot_be_packed_is_padded_on_the_right():
    texts = [{"input_ids": [7] * length} for length in (3, 1)]
    for model in (build(attention="eager"), build(ModernBertConfig)):
        batch = model.encoder(pad_token_id=PAD).embed_texts(texts)
        assert isinstance(batch, PaddedBatch) and batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert model.encoder().embed_texts(texts[:1]).attention_mask is None  # nothing to pad
    with pytest.raises(ValueError, match=r"no padding token; set tokenizer\.pad_token, or give batch_size=1"):
        model.encoder().embed_texts(texts)


# ---- rows


@pytest.mark.parametrize("batch", [packed, padded])
@pytest.mark.parametrize("rows", [[0, 3, 4], [4], [1, 2, 3]], ids=str)
def test_some_rows(rows, batch):
    some = batch().select(rows)
    assert some.lengths == [LENGTHS[row] for row in rows]
    for found, row in zip(texts_of(some), rows, strict=True):
        assert torch.equal(found, texts_of(padded())[row])
    if rows == [1, 2, 3]:
        assert [row.tolist() for row in texts_of(batch().view(range(1, 4)))] == [
            row.tolist() for row in texts_of(some)
        ]


@pytest.mark.parametrize("batch", [packed, padded])
def test_joined_rows_are_those_of_each(batch):
    both = batch().concat([batch([3, 2])])
    assert both.lengths == [*LENGTHS, 3, 2]
    for found, length, value in zip(
        texts_of(both), both.lengths, [0, 100, 200, 300, 400, 0, 100], strict=True
    ):
        assert found[:, 0].tolist() == [value + place for place in range(length)]


@pytest.mark.parametrize(
    ("tokens", "rounded"), [(57, 64), (64, 64), (65, 80), (512, 512), (513, 576), (2030, 2048)]
)
def test_few_sizes_occur(tokens, rounded):
    batch = packed([tokens])
    assert batch.tokens == rounded == rounded_up(rounded)
    joined = batch.concat([batch])  # what filled up is not taken along
    assert joined.lengths == [tokens, tokens] and torch.equal(
        joined.hidden[0, tokens : 2 * tokens], batch.hidden[0, :tokens]
    )
    assert len({rounded_up(number) for number in range(1, 2049)}) == 8 + 28 + 24


def test_a_view_is_not_copied_before_it_is_joined():
    batch = packed([30, 20, 7])
    part = batch.view(range(1, 3))
    assert part.tokens == 27 and part.hidden.data_ptr() == batch.hidden[:, 30:].data_ptr()
    joined = part.concat([])
    assert (
        joined.tokens == 32
        and torch.equal(joined.hidden[:, :27], part.hidden)
        and not joined.hidden[:, 27:].any()
    )
    assert batch.concat([]) is batch and joined.concat([]) is joined


def test_a_mask_that_masks_nothing_is_dropped():
    whole = PaddedBatch(torch.ones(2, 3, 4), torch.ones(2, 3))
    assert whole.measure().attention_mask is None
    ragged = padded([5, 5, 2])
    assert ragged.select([0, 1]).attention_mask is None and ragged.select([0, 2]).attention_mask is not None
    assert ragged.select([0, 1]).concat([padded([5])]).attention_mask is None


# ---- what exits see


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("what", ["first_tokens", "means"])
def test_exits_see_each_row_alone_whatever_the_others_hold(what, side):
    ragged, joined = padded(), packed()
    expected = torch.stack(
        [row[0] if what == "first_tokens" else row.mean(dim=0) for row in texts_of(ragged)]
    )
    if side == "left":
        rolled = [row.roll(9 - length, 0) for row, length in zip(ragged.hidden, LENGTHS, strict=True)]
        ragged = PaddedBatch(torch.stack(rolled), ragged.attention_mask.flip(1))
    torch.testing.assert_close(getattr(ragged, what)(ragged.hidden), expected)
    joined.hidden[:, : LENGTHS[0]] = float("nan")
    found = getattr(joined, what)(joined.hidden)
    assert found[0].isnan().all()
    torch.testing.assert_close(found[1:], expected[1:])
