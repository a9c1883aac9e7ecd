"""What transformers' common tests ask of every model: loading options, sizes, initialisation, compilers, and
no pickles.
"""

import inspect
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_and_loaded import told
from tiny import CLASSES, LAYERS, build, padded_batch, tiny_backbone
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, RobertaConfig

from modeling_romebert import RomeBertConfig, RomeBertForSequenceClassification, RomeBertModel

families = pytest.mark.parametrize(
    "family", [BertConfig, RobertaConfig], ids=lambda family: family.model_type
)
of_ours = pytest.mark.parametrize("of_ours", [True, False], ids=["ours", "plain"])
POLICY = {"name": "entropy", "threshold": 0.6}


@pytest.fixture
def saved(tmp_path):
    """A model and the folder that it was saved in."""
    model = build()
    model.save_pretrained(tmp_path / "ours")
    return model, tmp_path / "ours"


def load(folder, **settings):
    return RomeBertForSequenceClassification.from_pretrained(folder, **settings)


def save_plain(folder):
    torch.manual_seed(1)
    BertModel(tiny_backbone()).save_pretrained(folder)
    return folder


@torch.no_grad()
def exit_logits(model):
    return model(*padded_batch()).exit_logits


def same_weights(one, other, names=lambda name: True):
    theirs = other.state_dict()
    return all(torch.equal(weight, theirs[name]) for name, weight in one.state_dict().items() if names(name))


def is_trunk(name):
    return name.startswith("backbone.")


# ---- options of loading


def test_bfloat16_at_load_is_the_model_converted(saved):
    model, folder = saved
    half = load(folder, dtype="bfloat16")
    assert torch.equal(exit_logits(half), exit_logits(model.to(torch.bfloat16)))
    half.save_pretrained(folder / "half")
    assert load(folder / "half").dtype == torch.bfloat16  # as saved, without asking
    assert torch.equal(exit_logits(load(folder / "half")), exit_logits(half))


@torch.no_grad()
def test_half_precision_of_a_plain_checkpoint_is_the_stock_model_s(tmp_path):
    folder, (ids, mask) = save_plain(tmp_path), padded_batch()
    ours = load(folder, dtype="bfloat16")(ids, mask, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(
        ours, BertModel.from_pretrained(folder, dtype="bfloat16")(ids, attention_mask=mask).last_hidden_state
    )


@of_ours
@torch.no_grad()
def test_device_map_auto(tmp_path, saved, of_ours):
    """With accelerate, on the processor where there is no GPU."""
    folder = saved[1] if of_ours else save_plain(tmp_path / "plain")
    torch.manual_seed(0)
    placed = load(folder, device_map="auto")
    torch.manual_seed(0)
    model, (ids, mask) = load(folder), padded_batch()
    assert {parameter.device.type for parameter in placed.parameters()} == {
        "cuda" if torch.cuda.is_available() else "cpu"
    }
    ids, mask = ids.to(placed.device), mask.to(placed.device)
    found = placed(ids, mask, output_hidden_states=True).hidden_states[-1].cpu()
    expected = model(*padded_batch(), output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 if torch.cuda.is_available() else 0)


@of_ours
def test_attention_named_at_load_is_the_stock_model_s(tmp_path, saved, of_ours):
    folder, (ids, mask) = saved[1] if of_ours else save_plain(tmp_path / "plain"), padded_batch()
    for attention in ("eager", "sdpa"):
        model = load(folder, attn_implementation=attention)
        assert model.config._attn_implementation == model.backbone.config._attn_implementation == attention
        stock = BertModel(tiny_backbone(attention=attention), add_pooling_layer=False).eval()
        stock.load_state_dict(model.backbone.state_dict())
        with torch.no_grad():
            states = model(ids, mask, output_hidden_states=True).hidden_states[-1]
            assert torch.equal(states, stock(ids, attention_mask=mask).last_hidden_state)


@pytest.mark.parametrize("loader", [RomeBertForSequenceClassification, AutoModelForSequenceClassification])
def test_shards(tmp_path, loader):
    model = build()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(path.name for path in tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 5 and not (tmp_path / "model.safetensors").exists()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert (
        set(index["weight_map"].values()) == set(shards)
        and index["weight_map"].keys() == model.state_dict().keys()
    )
    assert torch.equal(exit_logits(loader.from_pretrained(tmp_path)), exit_logits(model))


def test_shards_of_a_plain_checkpoint(tmp_path):
    torch.manual_seed(1)
    stock = BertModel(tiny_backbone())
    stock.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 5
    model = load(tmp_path)
    expected = stock.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.backbone.state_dict().items())
    assert torch.equal(model.exits["1"].pooler.dense.weight, expected["pooler.dense.weight"])


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("first", ["in shards", "whole"])
def test_what_was_saved_before_in_another_form_is_left_behind_by_none(tmp_path, first, variant):
    """Loading prefers the one file to shards; uploading takes all there is."""
    forms = {"in shards": {"max_shard_size": "20KB"}, "whole": {}}
    other, model = build(), build()
    other.exits["1"].classifier.bias.data += 1
    other.save_pretrained(tmp_path, variant=variant, **forms.pop(first))
    (then,) = forms.values()
    model.save_pretrained(tmp_path, variant=variant, **then)
    weights = [path.name for path in tmp_path.iterdir() if "safetensors" in path.name]
    assert (len(weights) == 1) is (first == "in shards") and len(weights) != 2
    assert any("index" in name for name in weights) is (first == "whole")
    assert same_weights(load(tmp_path, variant=variant), model)


# ---- another number of labels


@pytest.mark.parametrize("num_labels", [1, 2, 5])
def test_other_num_labels_keeps_all_but_the_classifiers(saved, num_labels):
    model, folder = saved
    other, info = load(folder, num_labels=num_labels, ignore_mismatched_sizes=True, output_loading_info=True)
    assert exit_logits(other).shape[1:] == (LAYERS, num_labels)
    assert other.config.num_labels == len(other.config.id2label) == num_labels
    assert {key for key, *_ in info["mismatched_keys"]} == {
        name for name in model.state_dict() if "classifier" in name
    }
    assert same_weights(other, model, lambda name: "classifier" not in name)
    weights = torch.stack([head.classifier.weight for head in other.exits.values()])
    assert 0.05 < weights.std() < 0.2 and not any(head.classifier.bias.any() for head in other.exits.values())
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == LAYERS
    other.save_pretrained(folder / "other")
    assert same_weights(load(folder / "other"), other)


def test_other_num_labels_is_refused_unless_asked_for(saved):
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(saved[1], num_labels=5)


# ---- output


@torch.no_grad()
def test_tuple_and_dict_hold_the_same(saved):
    model, (ids, mask) = load(saved[1], attn_implementation="eager"), padded_batch()
    labels = torch.zeros(len(ids), dtype=torch.long)
    for settings in ({}, {"labels": labels}, {"output_hidden_states": True, "output_attentions": True}):
        named = model(ids, mask, **settings)
        ordered = model(ids, mask, **settings, return_dict=False)
        assert isinstance(ordered, tuple) and len(ordered) == len(named.keys())
        for (name, value), again in zip(named.items(), ordered, strict=True):
            values, others = (value, again) if isinstance(value, tuple) else ((value,), (again,))
            assert all(torch.equal(one, other) for one, other in zip(values, others, strict=True)), name
    model.config.return_dict = False
    assert isinstance(model(ids, mask), tuple)
    alone = RomeBertModel.from_pretrained(saved[1])
    assert torch.equal(
        alone(ids, attention_mask=mask, return_dict=False)[0],
        alone(ids, attention_mask=mask).last_hidden_state,
    )


@torch.no_grad()
def test_the_encoder_names_its_inputs_as_stock_ones_do():
    """A Trainer passes on what the signature names; a config that asks for all states gives them."""
    stock = inspect.signature(BertModel.forward).parameters
    ours = inspect.signature(RomeBertModel.forward).parameters
    assert {
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "position_ids",
        "inputs_embeds",
    } <= ours.keys() & stock.keys()
    encoder, (ids, mask) = RomeBertModel(RomeBertConfig(tiny_backbone())).eval(), padded_batch()
    embedded = encoder(inputs_embeds=encoder.get_input_embeddings()(ids), attention_mask=mask)
    assert torch.equal(embedded.last_hidden_state, encoder(ids, mask).last_hidden_state)
    wholly = encoder(ids, mask, torch.ones_like(ids), output_hidden_states=True)
    expected = encoder.backbone(
        ids, attention_mask=mask, token_type_ids=torch.ones_like(ids)
    ).last_hidden_state
    assert torch.equal(wholly.hidden_states[-1], expected)


# ---- vocabulary


@torch.no_grad()
def test_resized_embeddings_are_saved(saved):
    model, folder = saved
    before = exit_logits(model)
    model.resize_token_embeddings(110)
    new = model(torch.full((1, 3), 109)).exit_logits
    model.save_pretrained(folder)
    again = load(folder)
    assert again.config.vocab_size == again.get_input_embeddings().num_embeddings == 110
    assert same_weights(again, model) and torch.equal(exit_logits(again), before)
    torch.testing.assert_close(again(torch.full((1, 3), 109)).exit_logits, new, rtol=0, atol=1e-6)


# ---- initialisation


@families
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_initialisation(family, pooling):
    """As in the stock model, matrices are drawn from N(0, initializer_range), biases are 0 and norms the
    identity.
    """
    torch.manual_seed(0)
    config = RomeBertConfig(
        tiny_backbone(family, initializer_range=0.05), num_labels=CLASSES, exit_pooling=pooling
    )
    model = RomeBertForSequenceClassification(config)
    matrices = [module.weight for module in model.modules() if isinstance(module, (nn.Linear, nn.Embedding))]
    assert len(matrices) == 3 + 6 * LAYERS + LAYERS * (2 if pooling == "cls" else 1)
    assert {id(weight) for weight in matrices} == {
        id(weight) for weight in model.parameters() if weight.dim() > 1
    }
    for weight in matrices:
        assert weight.isfinite().all() and 0.04 < weight.std() < 0.06 and abs(weight.mean()) < 0.02
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert not module.bias.any()
        if isinstance(module, nn.LayerNorm):
            assert torch.equal(module.weight, torch.ones(32)) and not module.bias.any()


def test_no_two_exits_start_alike_and_the_seed_decides():
    def new(seed):
        torch.manual_seed(seed)
        return RomeBertForSequenceClassification(RomeBertConfig(tiny_backbone(), num_labels=CLASSES))

    first, again, other = new(3), new(3), new(4)
    assert same_weights(first, again) and not same_weights(first, other)
    for one in range(1, LAYERS):
        for two in range(one + 1, LAYERS + 1):
            ours, theirs = first.exits[str(one)], first.exits[str(two)]
            assert not torch.equal(ours.classifier.weight, theirs.classifier.weight)
            assert not torch.equal(ours.pooler.dense.weight, theirs.pooler.dense.weight)


# ---- trunk and heads from each other


def test_encoder_from_a_classifier_and_back(saved):
    model, folder = saved
    encoder = RomeBertModel.from_pretrained(folder)
    assert same_weights(encoder, model) and not any("exits" in name for name in encoder.state_dict())
    encoder.save_pretrained(folder / "encoder")
    assert same_weights(RomeBertModel.from_pretrained(folder / "encoder"), encoder)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_classifier_from_an_encoder_gets_new_exits_and_says_so(tmp_path, pooling):
    """As a stock classifier from a stock encoder."""
    torch.manual_seed(0)
    encoder = RomeBertModel(RomeBertConfig(tiny_backbone(), exit_pooling=pooling))
    encoder.save_pretrained(tmp_path)
    with told() as said:
        model = load(tmp_path, num_labels=5, exit_layers=[2, 4])
    assert "exits.{2, 4}.classifier.weight" in "".join(said) and "newly initialized" in "".join(said)
    assert same_weights(model, encoder, is_trunk) and list(model.exits) == ["2", "4"]
    classifiers = torch.stack([head.classifier.weight for head in model.exits.values()])
    assert (
        classifiers.shape == (2, 5, 32) and 0.05 < classifiers.std() < 0.2 and not torch.equal(*classifiers)
    )
    assert all(
        head.pooler is None or 0.05 < head.pooler.dense.weight.std() < 0.2 for head in model.exits.values()
    )
    model.save_pretrained(tmp_path / "classifier")
    assert same_weights(load(tmp_path / "classifier"), model)


def test_exits_at_other_layers_than_those_saved_are_still_refused(tmp_path):
    """A checkpoint that has exits, none of them where the config puts them, is no encoder without exits."""
    build(exit_layers=[4]).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"no weights for exits\.2\.classifier\.bias.*Leave them out to load the exits it has",
    ):
        load(tmp_path, num_hidden_layers=2, exit_layers=[2])


# ---- compilers: a graph has all layers written out, so two of them tell what four would


TWO_LAYERS = tiny_backbone(num_hidden_layers=2)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "pooling"), [("eager", "cls"), ("aot_eager", "mean")])
@torch.no_grad()
def test_full_depth_compiles_as_one_graph(backend, pooling):
    model, (ids, mask) = build(backbone=TWO_LAYERS, exit_pooling=pooling), padded_batch()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert torch.equal(compiled(ids, mask).exit_logits, model(ids, mask).exit_logits)
    assert torch.equal(compiled(ids[:9], mask[:9]).exit_logits, model(ids[:9], mask[:9]).exit_logits)


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_model_still_lets_rows_leave():
    """Which rows leave is known at run time only, so the graph is cut there; the result is the same."""
    model, (ids, mask) = build(backbone=TWO_LAYERS), padded_batch()
    torch._dynamo.reset()
    expected, found = (
        model(ids, mask, exit_policy=POLICY),
        torch.compile(model, backend="eager")(ids, mask, exit_policy=POLICY),
    )
    assert torch.equal(found.exit_layer, expected.exit_layer) and expected.exit_layer.unique().numel() == 2
    assert torch.equal(found.logits, expected.logits)


class Exits(nn.Module):
    """ids, mask (B, T) -> exit_logits (B, E, C): tensors in, a tensor out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, mask):
        return self.model(ids, mask).exit_logits


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@torch.no_grad()
def test_full_depth_exports_for_any_batch_and_length(tmp_path, pooling):
    model, (ids, mask) = build(backbone=TWO_LAYERS, exit_pooling=pooling), padded_batch()
    batch, tokens = torch.export.Dim("batch", min=2, max=512), torch.export.Dim("tokens", min=2, max=64)
    shapes = {0: batch, 1: tokens}
    program = torch.export.export(Exits(model), (ids, mask), dynamic_shapes=(shapes, shapes))
    torch.export.save(program, tmp_path / "exits.pt2")
    exported = torch.export.load(tmp_path / "exits.pt2").module()
    assert torch.equal(exported(ids, mask), model(ids, mask).exit_logits)
    for few in ((ids[:7], mask[:7]), (ids[:3, :11], mask[:3, :11])):
        torch.testing.assert_close(exported(*few), model(*few).exit_logits, rtol=0, atol=1e-6)


# ---- safetensors only


def turn_into_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    os.remove(folder / "model.safetensors")


@of_ours
@pytest.mark.parametrize("settings", [{}, {"use_safetensors": False}, {"use_safetensors": None}], ids=str)
def test_a_pickle_is_refused_with_the_way_out(tmp_path, saved, of_ours, settings):
    folder = saved[1] if of_ours else save_plain(tmp_path / "plain")
    turn_into_pickle(folder)
    for loader in (RomeBertForSequenceClassification, RomeBertModel):
        with pytest.raises(
            OSError, match=r"no weights as safetensors.*pytorch_model\.bin.*Convert them once"
        ) as refused:
            loader.from_pretrained(folder, **settings)
        assert str(folder) in str(refused.value)


def test_a_pickle_is_never_opened(saved, monkeypatch):
    turn_into_pickle(saved[1])
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    with pytest.raises(OSError, match="no weights as safetensors"):
        AutoModelForSequenceClassification.from_pretrained(saved[1])


def test_a_pickle_beside_safetensors_is_left_alone(saved):
    model, folder = saved
    (folder / "pytorch_model.bin").write_bytes(b"no pickle at all")
    assert same_weights(load(folder, use_safetensors=False), model)


def test_the_way_out_works(saved, monkeypatch):
    """What the message says, to the letter."""
    model, folder = saved
    turn_into_pickle(folder)
    with pytest.raises(OSError, match="Convert them once") as refused:
        load(folder)
    recipe = str(refused.value).partition("in their folder: ")[2]
    monkeypatch.chdir(folder)
    exec("import torch, safetensors.torch\n" + recipe)
    assert same_weights(load(folder), model)


def test_a_folder_that_is_not_there_is_told_as_it_is(tmp_path):
    with pytest.raises(OSError, match="nowhere") as missing:
        load(tmp_path / "nowhere")
    assert "pickle" not in str(missing.value)


def test_a_truncated_file_is_no_model(saved):
    model, folder = saved
    shutil.copy(folder / "model.safetensors", folder / "whole")
    (folder / "model.safetensors").write_bytes((folder / "whole").read_bytes()[:-100])
    with pytest.raises(Exception, match=r"(?i)incomplete|invalid|header|size"):
        load(folder)
    save_file(dict(model.state_dict()), folder / "model.safetensors", {"format": "pt"})
    assert same_weights(load(folder), model)
