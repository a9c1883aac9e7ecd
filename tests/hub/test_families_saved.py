"""Every family from and to disk: stock checkpoints of every head load exactly, and so do saved models."""

import pytest
import torch
from families import FAMILIES, families
from safetensors.torch import load_file
from saved_and_loaded import assert_same_weights, told
from support.portability_checks import TASK
from tiny import CLASSES, LAYERS, build, padded_batch, tiny_texts
from torch import nn
from transformers import AutoModel, pipeline

from modeling_romebert import RomeBertForSequenceClassification, RomeBertModel, evaluate_exits

pytestmark = pytest.mark.slow

POLICY = {"name": "entropy", "threshold": 0.6}
HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification")


def save_plain(family, kind, folder) -> dict[str, torch.Tensor]:
    """A checkpoint of random weights, biases too, by a class of the family's own -> what it holds."""
    torch.manual_seed(1)
    model = family.class_of(kind)(family.backbone())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


# ---- stock checkpoints


@pytest.mark.parametrize("kind", HEADS)
@families
@torch.no_grad()
def test_stock_checkpoint_loads_exactly_and_quietly(family, kind, tmp_path):
    weights = save_plain(family, kind, tmp_path)
    with told() as said:
        model = RomeBertForSequenceClassification.from_pretrained(tmp_path, num_labels=CLASSES)
    assert said == []
    prefix = "" if kind == "Model" else family.prefix
    trunk = model.backbone.state_dict()
    of_pooler = f"{prefix}{family.pooler}." if family.pooler else None
    stored = {name.removeprefix(prefix) for name in weights if name.startswith(prefix)}
    if kind == "Model":
        assert {name for name in stored if not name.startswith("pooler.")} == trunk.keys()
    assert all(torch.equal(weight, weights[prefix + name]) for name, weight in trunk.items())
    ids, mask = padded_batch()
    expected = AutoModel.from_pretrained(tmp_path)(ids, attention_mask=mask).last_hidden_state
    assert torch.equal(model(ids, mask, output_hidden_states=True).hidden_states[-1], expected)
    assert torch.equal(
        RomeBertModel.from_pretrained(tmp_path)(ids, attention_mask=mask).last_hidden_state, expected
    )

    started = [head.pooler.dense for head in model.exits.values()]
    assert len(started) == LAYERS
    if of_pooler and f"{of_pooler}weight" in weights:
        for linear in started:
            assert torch.equal(linear.weight, weights[f"{of_pooler}weight"]) and torch.equal(
                linear.bias, weights[f"{of_pooler}bias"]
            )
    else:  # each its own: nothing of a head of another task
        assert not any(linear.bias.any() for linear in started) and not torch.equal(
            started[0].weight, started[1].weight
        )
        assert all(0.05 < linear.weight.std() < 0.2 for linear in started)  # initializer_range is 0.1


def test_poolers_are_found_where_the_family_has_one(tmp_path):
    """The row of a family tells whether it has one; this is what transformers tells."""
    for family in FAMILIES:
        stock = dict(family.class_of("Model")(family.backbone()).named_modules())
        assert isinstance(stock.get(family.pooler or "pooler"), nn.Linear) == (family.pooler is not None), (
            family.name
        )


@families
@torch.no_grad()
def test_round_trip_of_ours(family, tmp_path):
    model, (ids, mask) = (
        build(backbone=family.backbone(), exit_layers=[1, 3], exit_pooling="mean", exit_policy=POLICY),
        padded_batch(),
    )
    model.save_pretrained(tmp_path)
    with told() as said:
        loaded = RomeBertForSequenceClassification.from_pretrained(tmp_path)
    assert said == []
    assert_same_weights(loaded, model)
    assert torch.equal(loaded(ids, mask).exit_logits, model(ids, mask).exit_logits)
    assert f"`{family.class_of('Config').model_type}`" in (tmp_path / "README.md").read_text()


# ---- tokenizers


@families
def test_pipeline_and_evaluation_with_the_family_s_own_tokenizer(family, tmp_path):
    build(backbone=family.backbone(), exit_policy=POLICY).save_pretrained(tmp_path)
    family.tokenizer().save_pretrained(tmp_path)
    classify = pipeline(TASK, model=str(tmp_path), device="cpu")
    tokenizer, texts = classify.tokenizer, tiny_texts(12, longest=8)
    model = RomeBertForSequenceClassification.from_pretrained(tmp_path)  # whose linear layers are not packed
    results = classify(texts, batch_size=4)
    for text, result in zip(texts, results, strict=True):
        with torch.no_grad():
            alone = model(**tokenizer(text, return_tensors="pt"), exit_policy=POLICY)
        assert result["exit_layer"] == alone.exit_layer.item()
        assert result["score"] == pytest.approx(alone.logits.softmax(-1).max().item(), abs=1e-5)
    assert len({result["score"] for result in results}) > 6  # the texts do differ for the tokenizer
    report = evaluate_exits(
        model, [{"text": text, "label": number % 2} for number, text in enumerate(texts)], tokenizer
    )
    assert (report.num_examples, report.num_layers, report.exit_layers) == (12, LAYERS, [1, 2, 3, 4])


def test_tokenizers_with_and_without_token_types_are_among_them():
    gives = {family.name: "token_type_ids" in family.tokenizer()("good film") for family in FAMILIES}
    assert gives["bert"] and gives["electra"] and gives["deberta-v2"]
    assert not any(gives[name] for name in ("roberta", "distilbert", "mpnet", "modernbert", "albert"))


@torch.no_grad()
@pytest.mark.parametrize("name", ["distilbert", "mpnet", "modernbert"])
def test_token_types_of_any_tokenizer_are_ignored_where_the_stock_model_ignores_them(name, tmp_path):
    family = next(family for family in FAMILIES if family.name == name)
    model, bert = build(backbone=family.backbone()), FAMILIES[0].tokenizer()
    inputs = bert(["good film", "never"], ["bad", "a long plot"], padding=True, return_tensors="pt")
    assert inputs["token_type_ids"].any()
    without = {key: value for key, value in inputs.items() if key != "token_type_ids"}
    for policy in (None, POLICY):
        assert torch.equal(
            model(**inputs, exit_policy=policy).logits, model(**without, exit_policy=policy).logits
        )
