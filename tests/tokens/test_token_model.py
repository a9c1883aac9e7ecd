"""RomeBertForTokenClassification: the stock token classifier is the oracle of its last exit and of its loss;
loading, saving, and what is refused.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, families
from rebatched import run_tokens
from tiny import LAYERS, build, padded_batch, tiny_backbone
from tiny_tokens import TAGS, build_tokens
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForTokenClassification,
    BertModel,
)

from modeling_romebert import (
    ContinuousBatcher,
    ExitLoss,
    RomeBertConfig,
    RomeBertForSequenceClassification,
    RomeBertForTokenClassification,
    RomeBertModel,
    score,
)

# Their stock token classifiers have a dropout and one linear layer, as ours.
LINEAR = [family for family in FAMILIES if family.stem not in ("ModernBert",)]


def stock_with(model, family):
    """The library's token classifier with the weights of our encoder and our last exit."""
    config = model.config.backbone_config
    config.num_labels = len(TAGS)
    stock = family.class_of("ForTokenClassification")(config).eval()
    base = getattr(stock, stock.base_model_prefix)
    base.load_state_dict(model.backbone.state_dict())
    stock.classifier.load_state_dict(model.exits[str(LAYERS)].classifier.state_dict())
    return stock


@pytest.mark.parametrize("family", LINEAR, ids=lambda family: family.name)
@torch.no_grad()
def test_the_last_exit_is_the_stock_classifier(family):
    model, (ids, mask) = build_tokens(family.backbone()), padded_batch(8, 20)
    expected = stock_with(model, family)(ids, attention_mask=mask).logits
    output = model(ids, mask)
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=1e-5)
    assert output.exit_logits.shape == (8, LAYERS, 20, len(TAGS))
    assert torch.equal(output.exit_logits[:, -1], output.logits)
    assert output.exit_layer.shape == (8, 20) and (output.exit_layer == LAYERS).all()


@families
@torch.no_grad()
def test_every_exit_reads_its_layer_token_by_token(family):
    model, (ids, mask) = build_tokens(family.backbone()), padded_batch(6, 12)
    output = model(ids, mask, output_hidden_states=True)
    for index, layer in enumerate(model.exit_layers):
        state, head = output.hidden_states[layer], model.exits[str(layer)].classifier
        if family.norm is not None and layer < LAYERS:
            state = getattr(model.backbone, family.norm)(state)
        expected = state @ head.weight.T + head.bias
        torch.testing.assert_close(output.exit_logits[:, index], expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_attentions_come_from_the_stock_forward():
    model, (ids, mask) = build_tokens(tiny_backbone(attention="eager")), padded_batch(3, 9)
    output = model(ids, mask, output_attentions=True)
    assert len(output.attentions) == LAYERS and output.attentions[0].shape == (3, 4, 9, 9)
    torch.testing.assert_close(output.exit_logits, model(ids, mask).exit_logits, rtol=0, atol=1e-5)


# ---- the loss


def labels_for(ids, mask):
    """(B, T): classes, and -100 for padding, for every fifth token, and for all of row 2."""
    labels = (ids % len(TAGS)).where((mask == 1) & (ids % 5 != 0), -100)
    labels[2] = -100
    return labels


def test_one_exit_has_the_stock_loss():
    model, (ids, mask) = build_tokens(exit_layers=[LAYERS]), padded_batch(8, 20)
    labels = labels_for(ids, mask)
    (family,) = (family for family in FAMILIES if family.name == "bert")
    expected = stock_with(model, family)(ids, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(model(ids, mask, labels=labels).loss, expected)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 1.0, 3.0]])
def test_the_joint_loss_is_that_of_the_labelled_tokens_as_rows(weights):
    model, (ids, mask) = build_tokens(class_weights=weights), padded_batch(8, 20)
    labels = labels_for(ids, mask)
    output = model(ids, mask, labels=labels)
    kept = labels != -100
    rows = output.exit_logits.transpose(1, 2)[kept]  # (n, E, C)
    terms = ExitLoss(class_weights=weights)(
        rows,
        labels[kept],
        exit_layers=model.exit_layers,
        problem_type="single_label_classification",
    )
    torch.testing.assert_close(output.loss, terms.last + terms.exits)


def test_the_loss_with_a_policy_is_that_of_its_logits():
    model, (ids, mask) = build_tokens(), padded_batch(8, 20)
    labels = labels_for(ids, mask)
    policy = {"name": "entropy", "threshold": 0.6, "unit": "token"}
    output = model(ids, mask, labels=labels, exit_policy=policy)
    expected = F.cross_entropy(output.logits.transpose(1, 2), labels)
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert all(head.classifier.weight.grad.isfinite().all() for head in model.exits.values())


def test_a_batch_without_labels_has_a_loss_of_zero():
    model, (ids, mask) = build_tokens(), padded_batch(3, 6)
    loss = model(ids, mask, labels=torch.full_like(ids, -100)).loss
    loss.backward()
    assert loss.item() == 0 and not model.exits["1"].classifier.weight.grad.any()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((3, 6), 5), r"labels hold 5; .* takes class ids 0\.\.4, or -100"),
        (torch.full((3, 6), -1), r"labels hold -1"),
        (
            torch.zeros(3, dtype=torch.long),
            r"labels have shape \(3,\), and a token classifier needs \(B, T\)",
        ),
        (
            torch.zeros(3, 5, dtype=torch.long),
            r"labels have shape \(3, 5\), and a token .* per token, \(3, 6\)",
        ),
        (torch.zeros(3, 6), r"dtype torch.float32"),
    ],
)
def test_labels_are_refused(labels, message):
    model, (ids, mask) = build_tokens(), padded_batch(3, 6)
    with pytest.raises(ValueError, match=message):
        model(ids, mask, labels=labels)


def test_inputs_that_do_not_go_together_are_refused():
    model, (ids, mask) = build_tokens(), padded_batch(3, 6)
    policy = {"name": "entropy", "threshold": 0.5}
    with pytest.raises(ValueError, match=r"word_ids have shape \(3, 5\); give one per token, \(3, 6\)"):
        model(ids, mask, word_ids=torch.zeros(3, 5), exit_policy=policy)
    with pytest.raises(ValueError, match="halt_layers is given with exit_policy"):
        model(ids, mask, halt_layers=torch.ones(3, 6), exit_policy=policy)
    with pytest.raises(ValueError, match='unit="token" lets single tokens of a token classifier halt'):
        build()(ids, mask, exit_policy={**policy, "unit": "token"})
    with pytest.raises(ValueError, match=r"model classifies tokens: call modeling_romebert\.score_tokens"):
        score(model, None, ["a"])


# ---- loading and saving


def test_it_loads_from_a_plain_encoder(tmp_path):
    torch.manual_seed(0)
    BertModel(tiny_backbone()).save_pretrained(tmp_path)
    model = RomeBertForTokenClassification.from_pretrained(tmp_path, num_labels=5, exit_layers=[2])
    assert model.exit_layers == [2, LAYERS] and model.config.exit_pooling == "token"
    stock = BertModel.from_pretrained(tmp_path).eval()
    ids, mask = padded_batch(2, 6)
    expected = stock(ids, attention_mask=mask).last_hidden_state
    states = model(ids, mask, output_hidden_states=True).hidden_states
    torch.testing.assert_close(states[-1], expected)


def test_it_loads_from_a_stock_token_classifier(tmp_path):
    BertForTokenClassification(tiny_backbone(num_labels=3)).save_pretrained(tmp_path)
    model = RomeBertForTokenClassification.from_pretrained(tmp_path)
    assert model.num_labels == 3  # with heads of its own


@torch.no_grad()
def test_it_comes_back_as_it_was_saved(tmp_path):
    model, (ids, mask) = build_tokens(exit_layers=[1, 4]), padded_batch(3, 6)
    model.config.exit_policy = {"name": "entropy", "threshold": 0.3, "unit": "token", "window": 5}
    model.save_pretrained(tmp_path)
    for auto in (AutoModelForTokenClassification, RomeBertForTokenClassification):
        again = auto.from_pretrained(tmp_path).eval()
        assert type(again) is RomeBertForTokenClassification
        assert again.config.exit_policy == model.config.exit_policy
        assert torch.equal(again(ids, mask).exit_logits, model(ids, mask).exit_logits)
    assert type(AutoModel.from_pretrained(tmp_path)) is RomeBertModel
    config = json.loads((tmp_path / "config.json").read_text())
    assert list(config["custom_pipelines"]) == ["early-exit-token-classification"]
    card = (tmp_path / "README.md").read_text()
    assert (
        'pipeline_tag: "token-classification"' in card
        and "gives every word of a text one of 5 labels" in card
    )
    assert "AutoModelForTokenClassification" in card and "AutoModelForSequenceClassification" not in card


def test_exits_of_another_task_are_refused(tmp_path):
    build_tokens().save_pretrained(tmp_path / "tokens")
    with pytest.raises(ValueError, match='exit_pooling="token" is that of a token classifier'):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "tokens")
    for pooling in ("cls", "mean"):
        build(exit_pooling=pooling).save_pretrained(tmp_path / pooling)
        with pytest.raises(
            ValueError, match=r"the exits of checkpoint .* classify whole texts: load it with"
        ):
            AutoModelForTokenClassification.from_pretrained(tmp_path / pooling)
    with pytest.raises(ValueError, match="classify tokens: load it with AutoModelForTokenClassification"):
        RomeBertForSequenceClassification.from_pretrained(tmp_path / "tokens", exit_pooling="cls")
    # A saved encoder has no exits, and gets new ones.
    RomeBertModel(RomeBertConfig(tiny_backbone())).save_pretrained(tmp_path / "encoder")
    assert AutoModelForTokenClassification.from_pretrained(tmp_path / "encoder").config.classifies_tokens


@torch.no_grad()
def test_halt_layers_say_how_many_layers_each_token_runs():
    model, (ids, mask) = build_tokens(), padded_batch(4, 8)
    halts = torch.randint(1, LAYERS + 1, (4, 8), generator=torch.Generator().manual_seed(0))
    states = model(ids, mask, halt_layers=halts, output_hidden_states=True).hidden_states
    for number in range(1, LAYERS + 1):
        kept = halts < number
        assert torch.equal(states[number][kept], states[number - 1][kept])
        assert (states[number] != states[number - 1]).any(-1)[~kept].all()
    everything = model(ids, mask, halt_layers=torch.full((4, 8), LAYERS)).exit_logits
    assert torch.equal(everything, model(ids, mask).exit_logits)


def test_tokens_are_not_served():
    with pytest.raises(ValueError, match="model classifies tokens, and continuous batching is of whole"):
        ContinuousBatcher(build_tokens(), None)


def test_gradient_checkpointing_changes_no_gradient():
    (ids, mask), gradients = padded_batch(4, 8), []
    halts = torch.randint(1, LAYERS + 1, (4, 8), generator=torch.Generator().manual_seed(0))
    for checkpoints in (False, True):
        model = build_tokens(tiny_backbone(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).train()
        if checkpoints:
            model.gradient_checkpointing_enable()
        model(ids, mask, labels=labels_for(ids, mask), halt_layers=halts).loss.backward()
        gradients.append([p.grad for p in model.backbone.encoder.layer.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@torch.no_grad()
def test_half_precision_and_tuples():
    model, (ids, mask) = build_tokens().bfloat16(), padded_batch(4, 8)
    for unit in ("row", "token"):
        policy = {"name": "entropy", "threshold": 0.5, "unit": unit}
        output = model(ids, mask, exit_policy=policy)
        assert output.logits.dtype == torch.bfloat16 and output.logits.isfinite().all()
        texts = [{"input_ids": row[own == 1].tolist()} for row, own in zip(ids, mask, strict=True)]
        assert all(logits.isfinite().all() for logits, _ in run_tokens(model, texts, policy, 20))
    logits, exit_layer = model(ids, mask, exit_policy=policy, return_dict=False)
    assert torch.equal(logits, output.logits) and torch.equal(exit_layer, output.exit_layer)


@pytest.mark.slow
@torch.no_grad()
def test_full_depth_compiles_as_one_graph():
    model, (ids, mask) = build_tokens(), padded_batch(4, 8)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(ids, mask).exit_logits, model(ids, mask).exit_logits)
