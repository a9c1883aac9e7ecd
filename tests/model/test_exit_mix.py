"""Exits that read a learned mix of the layers so far, against the mix of pooled hidden states written out."""

import pytest
import torch
from rows_alone import assert_same, one_by_one
from saved_and_loaded import assert_same_weights
from tiny import LAYERS, build, padded_batch, tiny_rows, tiny_tokenizer
from transformers import BertModel, ModernBertConfig

from modeling_romebert import (
    RomeBertConfig,
    RomeBertForSequenceClassification,
    RomeBertModel,
    RomeBertTrainer,
    RomeBertTrainingArguments,
)

POLICY = {"name": "entropy", "threshold": 0.8}


def written_out(model, ids, mask):
    """(B, E, C) of hidden states, one exit and one layer after the other."""
    states = model(ids, mask, output_hidden_states=True).hidden_states
    exits = []
    for layer, head in zip(model.exit_layers, model.exits.values(), strict=True):
        shares = head.mix.weights.exp() / head.mix.weights.exp().sum()
        mixed = 0
        for number in range(1, layer + 1):
            if model.pools_mean:
                pooled = (states[number] * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            else:
                pooled = states[number][:, 0]
            mixed = mixed + head.mix.scale * shares[number - 1] * pooled
        pooled = mixed if head.pooler is None else torch.tanh(head.pooler.dense(mixed))
        exits.append(head.classifier(pooled))
    return torch.stack(exits, dim=1)


@pytest.mark.parametrize("exit_layers", [None, [2, 4]])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@torch.no_grad()
def test_an_exit_reads_the_mix_of_all_pooled_states(pooling, exit_layers):
    model = build(exit_pooling=pooling, exit_mix=True, exit_layers=exit_layers)
    ids, mask = padded_batch()
    expected = written_out(model, ids, mask)
    torch.testing.assert_close(model(ids, mask).exit_logits, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_mix_of_normalised_states_where_the_family_ends_with_a_norm():
    """Attentions are recorded by the backbone's own forward, which gives the states in another way."""
    model = build(ModernBertConfig, "eager", exit_pooling="mean", exit_mix=True)
    ids, mask = padded_batch()
    of_loop, of_stock = model(ids, mask).exit_logits, model(ids, mask, output_attentions=True).exit_logits
    torch.testing.assert_close(of_loop, of_stock, rtol=0, atol=1e-4)


@pytest.mark.parametrize("exit_layers", [None, [1, 3, 4]])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_batch_equals_row_by_row(pooling, exit_layers):
    model, (ids, mask) = build(exit_pooling=pooling, exit_mix=True, exit_layers=exit_layers), padded_batch()
    with torch.no_grad():
        batch = model(ids, mask, exit_policy=POLICY)
    assert len(batch.exit_layer.unique()) > 2
    assert_same(batch, *one_by_one(model, ids, mask, POLICY))


def test_starts_as_the_mean_of_the_layers():
    config = RomeBertConfig(num_hidden_layers=LAYERS, hidden_size=32, num_attention_heads=4, exit_mix=True)
    head = RomeBertForSequenceClassification(config).exits["3"]
    pooled = torch.randn(5, 3, 32)
    torch.testing.assert_close(head.mix(pooled), pooled.mean(dim=1))


def test_off_is_the_default_and_costs_no_weights():
    model = build(exit_pooling="mean")
    assert not any(".mix." in name for name in model.state_dict())
    assert RomeBertConfig().exit_mix is False and model.mixes_layers is False


def test_half_precision_stays_near():
    model, (ids, mask) = build(exit_pooling="mean", exit_mix=True), padded_batch()
    with torch.no_grad():
        full, half = model(ids, mask).exit_logits, model.bfloat16()(ids, mask).exit_logits
    assert half.dtype == torch.bfloat16 and (full - half).abs().max() < 0.5


def test_mix_is_trained_and_travels(tmp_path):
    model = build(num_labels=2, exit_pooling="mean", exit_mix=True)
    before = {name: weight.clone() for name, weight in model.state_dict().items() if ".mix." in name}
    arguments = RomeBertTrainingArguments(
        str(tmp_path / "run"), max_steps=2, learning_rate=1e-2, report_to="none", use_cpu=True
    )
    RomeBertTrainer(model, arguments, train_dataset=tiny_rows(16), processing_class=tiny_tokenizer()).train()
    moved = {name for name, weight in before.items() if not torch.equal(weight, model.state_dict()[name])}
    # the first exit has one layer to read, so its share is 1 whatever the weight
    assert before.keys() - moved == {"exits.1.mix.weights"}
    model.save_pretrained(tmp_path / "model")
    assert_same_weights(RomeBertForSequenceClassification.from_pretrained(tmp_path / "model"), model)


def test_a_checkpoint_has_a_mix_or_has_not(tmp_path):
    build(exit_pooling="mean", exit_mix=True).save_pretrained(tmp_path / "mixes")
    build(exit_pooling="mean").save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="mixes mix layers, but exit_mix=False is asked for"):
        RomeBertForSequenceClassification.from_pretrained(tmp_path / "mixes", exit_mix=False)
    with pytest.raises(ValueError, match=r"no weights for exits\.1\.mix.* exit_mix=True ask for them"):
        RomeBertForSequenceClassification.from_pretrained(tmp_path / "plain", exit_mix=True)
    with pytest.raises(ValueError, match="exit_mix='yes': give True or False"):
        RomeBertConfig(exit_mix="yes")


@pytest.mark.parametrize("fewer", [{"num_hidden_layers": 2}, {"exit_layers": [1, 4]}], ids=str)
@torch.no_grad()
def test_some_of_the_exits_load_alone(fewer, tmp_path):
    model, (ids, mask) = build(exit_pooling="mean", exit_mix=True), padded_batch()
    model.save_pretrained(tmp_path)
    some = RomeBertForSequenceClassification.from_pretrained(tmp_path, **fewer)
    expected = model(ids, mask).exit_logits[:, [layer - 1 for layer in some.exit_layers]]
    assert len(some.exit_layers) == 2
    torch.testing.assert_close(some(ids, mask).exit_logits, expected)


@pytest.mark.parametrize("kind", [RomeBertModel, BertModel])
def test_starts_from_an_encoder_without_exits(kind, tmp_path):
    encoder = RomeBertModel(build(exit_pooling="mean").config)
    (encoder if kind is RomeBertModel else encoder.backbone).save_pretrained(tmp_path)
    model = RomeBertForSequenceClassification.from_pretrained(tmp_path, exit_pooling="mean", exit_mix=True)
    assert model.exits["4"].mix.weights.tolist() == [0.0] * 4 and model.exits["4"].mix.scale.tolist() == [1.0]
