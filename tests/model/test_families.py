"""Every family behind the early-exit loop: as the stock model layer by layer, and early exit in batches."""

import copy
import re

import pytest
import torch
from families import FAMILIES, families, with_attentions, with_attentions_and_poolings
from rebatched import run, texts_of
from rows_alone import LayerLog, assert_same, one_by_one
from tiny import LAYERS, PAD, ROWS, TOKENS, build, padded_batch
from torch import Tensor
from transformers import AutoModel

from modeling_romebert import RomeBertConfig, RomeBertForSequenceClassification, RomeBertModel
from modeling_romebert.backbones import ADAPTERS, check_layout
from modeling_romebert.cpu import prepacked
from modeling_romebert.early_exit import all_exits
from modeling_romebert.encoder import INPUTS, TorchEncoder

poolings = pytest.mark.parametrize("pooling", ["cls", "mean"])


def stock_of(model, attention=None):
    """The library's own model with a copy of our model's encoder."""
    config = copy.deepcopy(model.config.backbone_config)
    oracle = AutoModel.from_config(
        config, attn_implementation=attention or config._attn_implementation
    ).eval()
    missing, unexpected = oracle.load_state_dict(model.backbone.state_dict(), strict=False)
    assert unexpected == [] and all(name.startswith("pooler.") for name in missing)
    return oracle


def stock_states(family, model, ids, mask, **inputs) -> list[Tensor]:
    """Embeddings and one state per layer, as the stock model tells them: the last one is its
    last_hidden_state.
    """
    output = stock_of(model)(ids, attention_mask=mask, output_hidden_states=True, **inputs)
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    return list(output.hidden_states[:: family.states_per_layer])


def halving_policy(model, ids, mask, **inputs) -> dict:
    """Half of the rows are surer than the threshold at each exit."""
    sureness = model(ids, mask, **inputs).exit_logits.softmax(-1).amax(-1).sort(dim=0).values  # (B, E)
    return {"name": "confidence", "thresholds": sureness[ROWS // 2 - 1 : ROWS // 2 + 1].mean(dim=0).tolist()}


def test_every_supported_model_type_has_a_row():
    assert {family.class_of("Config").model_type for family in FAMILIES} == set(ADAPTERS)


# ---- the stock model as the oracle


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
@with_attentions
@torch.no_grad()
def test_every_layer_gives_what_the_stock_model_gives(family, attention, padded):
    model, (ids, mask) = build(backbone=family.backbone(attention)), padded_batch()
    assert model.config._attn_implementation == model.backbone.config._attn_implementation == attention
    mask = mask if padded else None
    states = model(ids, mask, output_hidden_states=True).hidden_states
    expected = stock_states(family, model, ids, mask)
    assert len(states) == len(expected) == LAYERS + 1
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(states, expected, strict=True))
    alone = RomeBertModel(model.config, backbone=model.backbone)(ids, attention_mask=mask).last_hidden_state
    assert torch.equal(alone, expected[-1])


@poolings
@families
@torch.no_grad()
def test_exits_read_the_stock_states_through_the_final_norm(family, pooling):
    model, (ids, mask) = (
        build(backbone=family.backbone(), exit_pooling=pooling, exit_layers=[1, 3, 4]),
        padded_batch(),
    )
    states = stock_states(family, model, ids, mask)
    exit_logits = model(ids, mask).exit_logits
    for index, layer in enumerate([1, 3, 4]):
        state, head = states[layer], model.exits[str(layer)]
        if family.norm is not None and layer < LAYERS:
            state = getattr(model.backbone, family.norm)(state)
        if pooling == "cls":
            pooled = (state[:, 0] @ head.pooler.dense.weight.T + head.pooler.dense.bias).tanh()
        else:
            pooled = torch.stack(
                [tokens[attended == 1].mean(dim=0) for tokens, attended in zip(state, mask, strict=True)]
            )
        expected = pooled @ head.classifier.weight.T + head.classifier.bias
        torch.testing.assert_close(exit_logits[:, index], expected, rtol=0, atol=1e-5)


@families
@torch.no_grad()
def test_attentions_are_the_stock_model_s(family):
    model, (ids, mask) = build(backbone=family.backbone("eager")), padded_batch()
    expected = stock_of(model)(ids, attention_mask=mask, output_attentions=True).attentions
    output = model(ids, mask, output_attentions=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(output.attentions, expected, strict=True))
    assert torch.equal(output.exit_logits, model(ids, mask).exit_logits)


@families
@torch.no_grad()
def test_token_types_and_positions_and_embeddings_are_taken_as_the_stock_model_takes_them(family):
    model, (ids, mask) = build(backbone=family.backbone()), padded_batch()
    types = torch.arange(TOKENS).repeat(ROWS, 1) % 2
    plain = model(ids, mask, output_hidden_states=True).hidden_states[-1]
    typed = model(ids, mask, token_type_ids=types, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(typed, stock_states(family, model, ids, mask, token_type_ids=types)[-1])
    assert torch.equal(typed, plain) == (not family.token_types)
    positions = torch.arange(TOKENS).flip(0)
    for position_ids in (positions[None], positions.repeat(ROWS, 1)):
        moved = model(ids, mask, position_ids=position_ids, output_hidden_states=True).hidden_states[-1]
        assert torch.equal(moved, stock_states(family, model, ids, mask, position_ids=position_ids)[-1])
    embeds = model.get_input_embeddings()(ids)
    by_embeds = model(inputs_embeds=embeds, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(by_embeds, stock_states(family, model, None, mask, inputs_embeds=embeds)[-1])


@families
@torch.no_grad()
def test_longest_input(family):
    model = build(backbone=family.backbone())
    assert model(torch.full((1, family.limit or 200), 7)).logits.isfinite().all()
    if family.limit is None:  # relative positions: the stock model, too, runs any length
        assert stock_of(model)(torch.full((1, 200), 7)).last_hidden_state.isfinite().all()
        return
    with pytest.raises(
        ValueError, match=rf"input of {family.limit + 1} tokens.*positions for {family.limit}"
    ):
        model(torch.full((1, family.limit + 1), 7))
    with pytest.raises((IndexError, RuntimeError)):
        stock_of(model)(torch.full((1, family.limit + 1), 7))


@families
@torch.no_grad()
def test_bfloat16_is_the_stock_model_s(family):
    model, (ids, mask) = build(backbone=family.backbone()).to(torch.bfloat16), padded_batch()
    output = model(ids, mask, output_hidden_states=True)
    expected = stock_of(model).to(torch.bfloat16)(ids, attention_mask=mask).last_hidden_state
    assert output.exit_logits.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(output.hidden_states[-1], expected)


# ---- early exit


@with_attentions_and_poolings
@torch.no_grad()
def test_batch_equals_rows_one_by_one(family, attention, pooling):
    """Masks, position biases and rotary positions follow the rows that stay, and the padding that is cut."""
    model, (ids, mask) = build(backbone=family.backbone(attention), exit_pooling=pooling), padded_batch()
    policy = halving_policy(model, ids, mask)
    log = (
        LayerLog(model) if "albert" not in family.name else None
    )  # which would count a layer once per application
    batch = model(ids, mask, exit_policy=policy)
    assert batch.exit_layer.unique().numel() >= 3
    if log is not None:
        alive = [batch.exit_layer >= depth for depth in range(1, LAYERS + 1)]
        assert log.seen == [
            (int(rows.sum()), int(mask[rows].sum(dim=1).max())) for rows in alive if rows.any()
        ]
    assert_same(batch, *one_by_one(model, ids, mask, policy))
    full = model(ids, mask).exit_logits[torch.arange(ROWS), batch.exit_layer - 1]
    torch.testing.assert_close(batch.logits, full, rtol=0, atol=1e-5)


@with_attentions_and_poolings
@torch.no_grad()
def test_padding_on_the_left_is_padding_on_the_right(family, attention, pooling):
    model, (ids, mask) = build(backbone=family.backbone(attention), exit_pooling=pooling), padded_batch()
    rolls = [TOKENS - int(length) for length in mask.sum(dim=1)]
    left = torch.stack([row.roll(by) for row, by in zip(ids, rolls, strict=True)])
    policy, types = halving_policy(model, ids, mask), (left > 50).long()
    types_alone = torch.stack([row.roll(-by) for row, by in zip(types, rolls, strict=True)])
    expected = model(ids, mask, token_type_ids=types_alone)
    for embedded in (False, True):
        inputs = {"inputs_embeds": model.get_input_embeddings()(left)} if embedded else {"input_ids": left}
        inputs |= {"attention_mask": mask.flip(1), "token_type_ids": types}
        if not embedded or family.stem not in (
            "Roberta",
            "XLMRoberta",
            "Camembert",
            "MPNet",
        ):  # which count positions by ids
            torch.testing.assert_close(model(**inputs).exit_logits, expected.exit_logits, rtol=0, atol=2e-5)
        early = model(**inputs, exit_policy=policy)
        full = model(**inputs).exit_logits[torch.arange(ROWS), early.exit_layer - 1]
        torch.testing.assert_close(early.logits, full, rtol=0, atol=2e-5)


@with_attentions_and_poolings
@torch.no_grad()
def test_rebatching_gives_what_a_batch_gives_packed_where_the_family_allows(family, attention, pooling):
    model, (ids, mask) = build(backbone=family.backbone(attention), exit_pooling=pooling), padded_batch()
    ids[0, 5], ids[0, 7] = PAD, PAD  # within a text, where some families do not count it
    policy = halving_policy(model, ids, mask)
    expected, log = model(ids, mask, exit_policy=policy), LayerLog(model)
    logits, exit_layer = run(model, texts_of(ids, mask), policy, batch_tokens=200)
    assert_same(expected, logits, exit_layer)
    assert all((rows == 1) == (attention == "sdpa" and family.packs) for rows, _ in log.seen[:4])


@families
@torch.no_grad()
def test_positions_of_one_s_own_follow_the_rows(family):
    model, (ids, mask) = build(backbone=family.backbone()), padded_batch()
    positions = torch.stack(
        [torch.randperm(TOKENS, generator=torch.Generator().manual_seed(row)) for row in range(ROWS)]
    )
    policy = halving_policy(model, ids, mask, position_ids=positions)
    batch = model(ids, mask, position_ids=positions, exit_policy=policy)
    assert batch.exit_layer.unique().numel() >= 3
    full = model(ids, mask, position_ids=positions).exit_logits[torch.arange(ROWS), batch.exit_layer - 1]
    torch.testing.assert_close(batch.logits, full, rtol=0, atol=1e-5)
    one_for_all = model(ids, mask, position_ids=positions[:1], exit_policy=policy)
    repeated = model(ids, mask, position_ids=positions[:1].expand(ROWS, -1), exit_policy=policy)
    assert_same(one_for_all, repeated.logits, repeated.exit_layer)


@families
@torch.no_grad()
def test_prepacked_layers_change_nothing(family):
    model, (ids, mask) = build(backbone=family.backbone()), padded_batch()
    encoder = TorchEncoder(model, prepacked(model.layers))
    found = all_exits(
        encoder, encoder.embed({**dict.fromkeys(INPUTS), "input_ids": ids, "attention_mask": mask})
    )
    torch.testing.assert_close(found, model(ids, mask).exit_logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_one_layer_applied_many_times_is_counted_as_often_as_it_runs():
    family = next(family for family in FAMILIES if family.name == "albert")
    model, (ids, mask) = build(backbone=family.backbone(), exit_layers=[2, 3]), padded_batch()
    (group,) = model.backbone.encoder.albert_layer_groups
    assert len(model.layers) == LAYERS and all(layer is group for layer in model.layers)
    policy, runs, depths = halving_policy(model, ids, mask), [], set()
    group.register_forward_hook(lambda *_: runs.append(1))
    for row, attended in zip(ids[:20], mask[:20], strict=True):
        runs.clear()
        assert model(row[attended == 1][None], exit_policy=policy).exit_layer.tolist() == [len(runs)]
        depths.add(len(runs))
    assert depths == {2, 3, 4}


# ---- configs


@families
def test_config_of_a_backbone_answers(family, tmp_path):
    backbone = family.backbone("eager", id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    backbone.save_pretrained(tmp_path)
    assert (backbone.num_hidden_layers, backbone.hidden_size) == (LAYERS, 32)
    for given in (backbone, AutoModel.from_config(backbone)):
        config = RomeBertConfig.from_backbone(given)
        assert config._attn_implementation == config.backbone_config._attn_implementation == "eager"
        assert (config.exit_layers, config.id2label) == ([1, 2, 3, 4], {0: "bad", 1: "good"})
        assert config.backbone_config is not backbone
    for given in (backbone, backbone.to_dict(), AutoModel.from_config(backbone), str(tmp_path), tmp_path):
        config = RomeBertConfig.from_backbone(given, exit_layers=[2], num_labels=5, hidden_size=16)
        assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (LAYERS, 16, 4)
        assert (config.exit_layers, config.num_labels, config.vocab_size, config.initializer_range) == (
            [2, 4],
            5,
            100,
            0.1,
        )
        assert type(config.backbone_config) is family.class_of("Config") and backbone.hidden_size == 32


@families
def test_a_stock_model_that_is_laid_out_differently_is_refused(family):
    backbone = AutoModel.from_config(family.backbone())
    check_layout(backbone)
    parent, _, name = family.layers.rpartition(".")
    delattr(backbone.get_submodule(parent), name)
    with pytest.raises(
        RuntimeError,
        match=rf"{family.stem}Model of transformers .* has no {re.escape(family.layers)}.*backbones\.py",
    ):
        check_layout(backbone)


# ---- the first layers of a model


@families
@torch.no_grad()
def test_the_first_layers_answer_as_the_whole_does_there_and_are_saved_or_are_refused(family, tmp_path):
    whole, (ids, mask) = build(backbone=family.backbone()), padded_batch()
    whole.save_pretrained(tmp_path / "whole")
    whole.backbone.save_pretrained(tmp_path / "plain")
    cut = {"num_hidden_layers": 2}
    if family.settings.get("num_hidden_groups", 1) > 1:
        for source, more in (("whole", {"exit_layers": [2]}), ("plain", {})):
            with pytest.raises(ValueError, match="num_hidden_layers=2: this ALBERT has 2 groups of layers"):
                RomeBertForSequenceClassification.from_pretrained(tmp_path / source, **cut, **more)
        return
    half = RomeBertForSequenceClassification.from_pretrained(tmp_path / "whole", exit_layers=[2], **cut)
    half.save_pretrained(tmp_path / "half")
    half = RomeBertForSequenceClassification.from_pretrained(tmp_path / "half")
    expected = whole(ids, mask).exit_logits[:, 1]
    torch.testing.assert_close(half(ids, mask).logits, expected, rtol=0, atol=1e-6)
    plain = RomeBertForSequenceClassification.from_pretrained(tmp_path / "plain", **cut)
    plain.save_pretrained(tmp_path / "of_plain")  # with a config that says of two layers what it says
