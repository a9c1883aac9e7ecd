"""An exit pools the tokens that count, as BERT does or by a mean, then drops out and classifies."""

import pytest
import torch
from tiny import build, padded_batch, tiny_backbone
from transformers import AlbertConfig, BertConfig, DebertaV2Config, DistilBertConfig, ModernBertConfig
from transformers.models.bert.modeling_bert import BertPooler

from modeling_romebert import RomeBertConfig
from modeling_romebert.batch_layout import PaddedBatch
from modeling_romebert.exit_heads import ExitHead, Pooler, mean_weights


def states(rows=6, tokens=9, hidden=32):
    """hidden_states (B, T, H) and mask (B, T): padding left, right, in the middle, nowhere and everywhere."""
    hidden_states = torch.randn(rows, tokens, hidden, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(rows, tokens, dtype=torch.long)
    mask[0, :4] = mask[1, 5:] = mask[2] = mask[3, :2] = mask[3, 6:] = mask[4, 0] = (
        1  # row 5 attends to nothing
    )
    return hidden_states, mask


def masked_mean(hidden_states, mask):
    return torch.bmm(mean_weights(hidden_states, mask), hidden_states).squeeze(1)


def pooled_for(head, hidden_states, mask):
    """What the head is given of (B, T, H): (B, H)."""
    batch = PaddedBatch(hidden_states, mask)
    return batch.means(hidden_states) if head.pooler is None else batch.first_tokens(hidden_states)


def run(head, hidden_states, mask):
    return head(pooled_for(head, hidden_states, mask))


def head_config(**settings):
    return RomeBertConfig(tiny_backbone(hidden_dropout_prob=0.25), num_labels=3, **settings)


# ---- pooling


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
def test_masked_mean_is_a_mean_over_the_attended_tokens(dtype):
    hidden_states, mask = states()
    pooled = masked_mean(hidden_states, mask.to(dtype))
    assert pooled.shape == (6, 32)
    for row in range(5):
        tokens = [hidden_states[row, token] for token in range(9) if mask[row, token]]
        torch.testing.assert_close(pooled[row], sum(tokens) / len(tokens))


def test_row_that_attends_to_nothing_gives_zeros():
    hidden_states, mask = states()
    assert torch.equal(masked_mean(hidden_states, mask)[5], torch.zeros(32))


def test_no_mask_is_a_mask_of_ones():
    hidden_states, mask = states()
    torch.testing.assert_close(
        masked_mean(hidden_states, None), masked_mean(hidden_states, torch.ones_like(mask))
    )


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_what_stands_in_the_padding_is_ignored(pooling):
    hidden_states, mask = states()
    mask[5] = mask[0]
    other = torch.where(mask.unsqueeze(-1) == 1, hidden_states, 1e4)
    head = ExitHead(head_config(exit_pooling=pooling), layer=1).eval()
    assert torch.equal(run(head, hidden_states, mask), run(head, other, mask))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_masked_mean_in_half_precision(dtype, tolerance):
    hidden_states, mask = states()
    pooled = masked_mean(hidden_states.to(dtype), mask)
    assert pooled.dtype == dtype
    torch.testing.assert_close(
        pooled.float(), masked_mean(hidden_states, mask), rtol=tolerance, atol=tolerance
    )


def test_masked_mean_of_long_rows_stays_in_the_range_of_fp16():
    hidden_states = torch.full((1, 512, 4), 200, dtype=torch.float16)  # their sum, 102400, does not
    torch.testing.assert_close(
        masked_mean(hidden_states, torch.ones(1, 512)),
        torch.full((1, 4), 200, dtype=torch.float16),
        rtol=1e-3,
        atol=0,
    )


def test_pooler_is_the_stock_one():
    hidden_states, _ = states()
    torch.manual_seed(0)
    stock, ours = BertPooler(tiny_backbone()), Pooler(32)
    ours.load_state_dict(stock.state_dict())
    assert torch.equal(ours(hidden_states[:, 0]), stock(hidden_states))


# ---- the head


def test_cls_head_is_pooler_then_classifier():
    hidden_states, mask = states()
    head = ExitHead(head_config(exit_pooling="cls"), layer=1).eval()
    first = torch.stack(
        [row[int(of_row.argmax())] for row, of_row in zip(hidden_states, mask, strict=True)]
    )  # that is attended to
    pooled = torch.tanh(first @ head.pooler.dense.weight.T + head.pooler.dense.bias)
    torch.testing.assert_close(
        run(head, hidden_states, mask), pooled @ head.classifier.weight.T + head.classifier.bias
    )
    assert torch.equal(run(head, hidden_states, torch.ones_like(mask)), run(head, hidden_states, None))


def test_mean_head_is_mean_then_classifier_without_a_pooler():
    hidden_states, mask = states()
    head = ExitHead(head_config(exit_pooling="mean"), layer=1).eval()
    assert sorted(name for name, _ in head.named_parameters()) == ["classifier.bias", "classifier.weight"]
    pooled = masked_mean(hidden_states, mask)
    torch.testing.assert_close(
        run(head, hidden_states, mask), pooled @ head.classifier.weight.T + head.classifier.bias
    )


@pytest.mark.parametrize(
    ("family", "dropouts", "expected"),
    [
        (BertConfig, {"classifier_dropout": 0.5, "hidden_dropout_prob": 0.25}, 0.5),
        (BertConfig, {"classifier_dropout": 0.0, "hidden_dropout_prob": 0.25}, 0.0),
        (BertConfig, {"classifier_dropout": None, "hidden_dropout_prob": 0.25}, 0.25),
        (AlbertConfig, {"classifier_dropout_prob": 0.5, "hidden_dropout_prob": 0.25}, 0.5),
        (DistilBertConfig, {"seq_classif_dropout": 0.5, "dropout": 0.25}, 0.5),
        (DebertaV2Config, {"cls_dropout": 0.5, "hidden_dropout_prob": 0.25}, 0.5),
        (DebertaV2Config, {"hidden_dropout_prob": 0.25}, 0.25),
        (ModernBertConfig, {"classifier_dropout": 0.5, "mlp_dropout": 0.25}, 0.5),
    ],
)
def test_dropout_is_the_classifier_s_or_else_the_hidden_one(family, dropouts, expected):
    """... by the names of the family's config, as its stock classifier reads them."""
    assert ExitHead(RomeBertConfig(tiny_backbone(family, **dropouts)), layer=1).dropout.p == expected


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_dropout_comes_between_pooling_and_classifier_in_training_only(pooling):
    hidden_states, mask = states()
    head = ExitHead(head_config(exit_pooling=pooling), layer=1)
    pooled = pooled_for(head, hidden_states, mask)
    pooled = pooled if pooling == "mean" else head.pooler(pooled)
    torch.manual_seed(1)
    expected = head.classifier(torch.dropout(pooled, 0.25, train=True))
    torch.manual_seed(1)
    assert torch.equal(run(head.train(), hidden_states, mask), expected)
    assert not torch.equal(run(head, hidden_states, mask), expected)
    assert torch.equal(run(head.eval(), hidden_states, mask), head.classifier(pooled))


@torch.no_grad()
def test_a_model_has_one_head_per_exit_and_each_reads_its_own_layer():
    model, (ids, mask) = build(exit_layers=[2, 4]), padded_batch(8)
    assert list(model.exits) == ["2", "4"]
    output = model(ids, mask, output_hidden_states=True)
    for index, layer in enumerate((2, 4)):
        alone = run(model.exits[str(layer)], output.hidden_states[layer], mask)
        assert torch.equal(output.exit_logits[:, index], alone)
