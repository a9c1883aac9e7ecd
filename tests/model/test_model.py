"""At full depth the walk computes what the stock model computes; what does not fit the model is refused."""

import pytest
import torch
import torch.nn.functional as F
from by_version import enable_checkpointing
from tiny import CLASSES, LAYERS, PAPER_LOSS, ROWS, TOKENS, build, padded_batch, tiny_backbone
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    CamembertConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from modeling_romebert import RomeBertConfig, RomeBertForSequenceClassification, RomeBertModel

FAMILIES = [BertConfig, RobertaConfig, XLMRobertaConfig, CamembertConfig]
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
attentions = pytest.mark.parametrize("attention", ["eager", "sdpa"])
poolings = pytest.mark.parametrize("pooling", ["cls", "mean"])


def stock(model):
    """The library's own model with a copy of our model's trunk, unpooled."""
    config = model.config.backbone_config
    oracle = AutoModel.from_config(
        config, add_pooling_layer=False, attn_implementation=config._attn_implementation
    ).eval()
    oracle.load_state_dict(model.backbone.state_dict())
    return oracle


def build_with(family, attention, **settings):
    """`build`, with the attention of the whole model named too."""
    return build(family, attention, attn_implementation=attention, **settings)


def log_states(model):
    """What goes into the first layer and comes out of each, filled by the model's next call."""
    seen = []
    model.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for layer in model.layers:
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    return seen


def labels_for(problem_type, num_labels):
    generator = torch.Generator().manual_seed(3)
    if problem_type == "single_label_classification":
        return torch.randint(num_labels, (ROWS,), generator=generator)
    if problem_type == "multi_label_classification":
        return torch.randint(2, (ROWS, num_labels), generator=generator).float()
    return torch.randn(ROWS, generator=generator)


def pool(head, state, mask):
    """state (B, T, H), mask (B, T) -> (B, H), restated."""
    if head.pooler is not None:
        return (state[:, 0] @ head.pooler.dense.weight.T + head.pooler.dense.bias).tanh()
    return torch.stack(
        [tokens[attended == 1].mean(dim=0) for tokens, attended in zip(state, mask, strict=True)]
    )


# ---- the stock model as the oracle


@pytest.mark.parametrize("padded", [True, False])
@attentions
@families
@torch.no_grad()
def test_every_layer_gives_what_the_stock_model_gives(family, attention, padded):
    model, (ids, mask) = build_with(family, attention), padded_batch()
    mask = mask if padded else None
    expected = stock(model)(ids, attention_mask=mask, output_hidden_states=True)
    seen = log_states(model)
    output = model(ids, mask, output_hidden_states=True)
    assert len(seen) == len(output.hidden_states) == len(expected.hidden_states) == LAYERS + 1
    for walked, returned, state in zip(seen, output.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(walked, state) and torch.equal(returned, state)
    assert torch.equal(output.hidden_states[-1], expected.last_hidden_state)
    assert output.attentions is None


@families
@torch.no_grad()
def test_attentions_are_the_stock_model_s(family):
    model, (ids, mask) = build_with(family, "eager"), padded_batch()
    expected = stock(model)(ids, attention_mask=mask, output_attentions=True, output_hidden_states=True)
    output = model(ids, mask, output_attentions=True)
    assert len(output.attentions) == LAYERS and output.hidden_states is None
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(output.attentions, expected.attentions, strict=True)
    )
    both = model(ids, mask, output_attentions=True, output_hidden_states=True)
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(both.hidden_states, expected.hidden_states, strict=True)
    )
    assert torch.equal(output.exit_logits, model(ids, mask).exit_logits)


@torch.no_grad()
def test_config_asks_for_states_and_attentions_too():
    model, (ids, mask) = build_with(BertConfig, "eager"), padded_batch()
    model.config.output_hidden_states = model.config.output_attentions = True
    output = model(ids, mask)
    assert (len(output.hidden_states), len(output.attentions)) == (LAYERS + 1, LAYERS)
    asked = model(ids, mask, output_hidden_states=False, output_attentions=False)
    assert asked.hidden_states is None and asked.attentions is None


@attentions
def test_attention_of_the_backbone_config_is_kept(attention):
    config = RomeBertConfig(tiny_backbone(attention=attention))
    model = RomeBertForSequenceClassification(config)
    assert (
        model.config.backbone_config._attn_implementation
        == model.backbone.config._attn_implementation
        == attention
    )


@families
@torch.no_grad()
def test_eager_and_sdpa_agree(family):
    ids, mask = padded_batch()
    eager, sdpa = build_with(family, "eager"), build_with(family, "sdpa")
    sdpa.load_state_dict(eager.state_dict())
    torch.testing.assert_close(eager(ids, mask).exit_logits, sdpa(ids, mask).exit_logits, rtol=0, atol=1e-5)


@families
@torch.no_grad()
def test_the_encoder_alone_is_the_stock_model(family):
    torch.manual_seed(0)
    model = RomeBertModel(RomeBertConfig(tiny_backbone(family))).eval()
    ids, mask = padded_batch()
    expected = stock(model)(ids, attention_mask=mask).last_hidden_state
    assert torch.equal(model(ids, attention_mask=mask).last_hidden_state, expected)
    assert torch.equal(
        model(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask)[0].isfinite().all(),
        torch.tensor(True),
    )


@poolings
@families
@torch.no_grad()
def test_exit_logits_are_heads_on_the_stock_states(family, pooling):
    model, (ids, mask) = build(family, exit_pooling=pooling, exit_layers=[1, 3, 4]), padded_batch()
    states = stock(model)(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    output = model(ids, mask)
    assert output.exit_logits.shape == (ROWS, 3, CLASSES)
    for index, layer in enumerate([1, 3, 4]):
        head = model.exits[str(layer)]
        expected = pool(head, states[layer], mask) @ head.classifier.weight.T + head.classifier.bias
        torch.testing.assert_close(output.exit_logits[:, index], expected, rtol=0, atol=1e-5)
    assert torch.equal(output.logits, output.exit_logits[:, -1])
    assert output.exit_layer.tolist() == [LAYERS] * ROWS


@pytest.mark.parametrize(
    ("problem_type", "num_labels"),
    [("single_label_classification", 3), ("multi_label_classification", 3), ("regression", 1)],
)
def test_one_exit_is_stock_sequence_classification(problem_type, num_labels):
    model, (ids, mask) = (
        build(num_labels=num_labels, problem_type=problem_type, exit_layers=[LAYERS]),
        padded_batch(),
    )
    oracle = BertForSequenceClassification(
        tiny_backbone(num_labels=num_labels, problem_type=problem_type)
    ).eval()
    oracle.bert.load_state_dict(model.backbone.state_dict(), strict=False)
    head = model.exits[str(LAYERS)]
    oracle.bert.pooler.load_state_dict(head.pooler.state_dict())
    oracle.classifier.load_state_dict(head.classifier.state_dict())
    labels = labels_for(problem_type, num_labels)
    ours, theirs = model(ids, mask, labels=labels), oracle(ids, attention_mask=mask, labels=labels)
    assert torch.equal(ours.logits, theirs.logits)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-6, atol=0)
    ours.loss.backward()
    theirs.loss.backward()
    gradients = {
        name: parameter.grad for name, parameter in oracle.bert.named_parameters() if "pooler" not in name
    }
    for name, parameter in model.backbone.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-7)


# ---- the loss


def test_loss_is_the_joint_loss():
    model, (ids, mask) = build(**PAPER_LOSS), padded_batch()
    labels = labels_for("single_label_classification", CLASSES)
    output = model(ids, mask, labels=labels)
    *early, last = output.exit_logits.unbind(1)
    expected = F.cross_entropy(last, labels)
    teacher = (last.detach() / 3).softmax(dim=-1)  # T = 3, gamma = 0.9
    for logits in early:
        student = (logits / 3).softmax(dim=-1)
        divergence = (teacher * (teacher / student).log()).sum(dim=-1).mean()
        expected = expected + 0.1 * F.cross_entropy(logits, labels) + 0.9 * 9 * divergence
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=0)


def test_loss_settings_come_from_the_config():
    ids, mask = padded_batch()
    labels = labels_for("single_label_classification", CLASSES)
    output = build(distillation_weight=0.0, exit_weights="depth", exit_scale=1 / 3)(ids, mask, labels=labels)
    tasks = [F.cross_entropy(logits, labels) for logits in output.exit_logits.unbind(1)]
    expected = tasks[3] + (1 * tasks[0] + 2 * tasks[1] + 3 * tasks[2]) / 6  # weights 1/2, 2/2, 3/2, averaged
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("num_labels", "problem_type"),
    [(3, "single_label_classification"), (3, "multi_label_classification"), (1, "regression")],
)
def test_first_labels_settle_the_problem_type(num_labels, problem_type):
    model, (ids, mask) = build(num_labels=num_labels), padded_batch()
    assert model.config.problem_type is None
    model(ids, mask, labels=labels_for(problem_type, num_labels))
    assert model.config.problem_type == problem_type


def test_regression_and_multi_label_losses():
    ids, mask = padded_batch()
    for problem_type, num_labels, task in (
        ("regression", 1, lambda logits, labels: (logits[:, 0] - labels).square().mean()),
        ("multi_label_classification", 3, F.binary_cross_entropy_with_logits),
    ):
        labels = labels_for(problem_type, num_labels)
        settings = {"distillation_weight": 0.0, "exit_scale": 1.0}
        model = build(num_labels=num_labels, problem_type=problem_type, **settings)
        output = model(ids, mask, labels=labels)
        expected = sum(task(logits, labels) for logits in output.exit_logits.unbind(1))
        torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=0)


def test_rows_without_a_label_add_nothing():
    model, (ids, mask) = build(distillation_weight=0.0), padded_batch()
    labels = labels_for("single_label_classification", CLASSES)
    some = labels.clone()
    some[10:] = -100
    torch.testing.assert_close(
        model(ids, mask, labels=some).loss, model(ids[:10], mask[:10], labels=labels[:10]).loss
    )


# ---- what a stock model can do


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    model, (ids, mask) = build(), padded_batch()
    model.train()  # checkpointing is for training; the dropout of both passes is the seed's
    labels = labels_for("single_label_classification", CLASSES)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            enable_checkpointing(model, reentrant)
            assert model.backbone.encoder.layer[0].gradient_checkpointing
        model.zero_grad()
        torch.manual_seed(5)
        model(ids, mask, labels=labels).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert all(
        gradient.any()
        for name, gradient in gradients[0].items()
        if name.endswith(("query.weight", "classifier.weight"))
    )
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_evaluation_is_deterministic_and_training_is_not():
    model, (ids, mask) = build(), padded_batch()
    assert torch.equal(model(ids, mask).exit_logits, model(ids, mask).exit_logits)
    model.train()
    assert not torch.equal(model(ids, mask).exit_logits, model(ids, mask).exit_logits)


@torch.no_grad()
def test_inputs_embeds_and_positions_and_token_types():
    model, (ids, mask) = build(), padded_batch()
    more = {
        "position_ids": torch.arange(TOKENS).flip(0).repeat(ROWS, 1),
        "token_type_ids": torch.arange(TOKENS).repeat(ROWS, 1) % 2,
    }
    output = model(ids, mask, output_hidden_states=True, **more)
    by_embeds = model(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask, **more)
    assert torch.equal(output.exit_logits, by_embeds.exit_logits)
    assert torch.equal(
        output.hidden_states[-1], stock(model)(ids, attention_mask=mask, **more).last_hidden_state
    )
    assert not torch.equal(output.exit_logits, model(ids, mask).exit_logits)


@torch.no_grad()
def test_resize_token_embeddings():
    model, (ids, mask) = build(), padded_batch()
    before = model(ids, mask).exit_logits
    model.resize_token_embeddings(110)
    assert model.get_input_embeddings().weight.shape == (110, 32)
    assert model.config.vocab_size == model.config.backbone_config.vocab_size == 110
    assert torch.equal(model(ids, mask).exit_logits, before)
    assert model(torch.full((1, 3), 109)).logits.isfinite().all()


@families
@torch.no_grad()
def test_bfloat16(family):
    model, (ids, mask) = build(family), padded_batch()
    full = model(ids, mask).exit_logits
    model.to(torch.bfloat16)
    labels = labels_for("single_label_classification", CLASSES)
    half = model(ids, mask, labels=labels)
    assert (half.exit_logits.dtype, half.loss.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(half.exit_logits.float(), full, rtol=0.1, atol=0.15)
    assert torch.equal(
        stock(model).to(torch.bfloat16)(ids, attention_mask=mask)[0],
        model.backbone(ids, attention_mask=mask)[0],
    )


def test_no_head_is_doubled_and_no_weight_unused():
    model, (ids, mask) = build(exit_layers=[2, 4]), padded_batch()
    assert list(model.exits) == ["2", "4"] and model.backbone.pooler is None
    model(ids, mask, labels=labels_for("single_label_classification", CLASSES)).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


# ---- what does not fit


@pytest.mark.parametrize("policy", [None, {"name": "entropy", "threshold": 0.5}], ids=["full", "policy"])
def test_exactly_one_of_ids_and_embeddings(policy):
    model, (ids, mask) = build(), padded_batch()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(attention_mask=mask, exit_policy=policy)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(ids, mask, inputs_embeds=torch.zeros(ROWS, TOKENS, 32), exit_policy=policy)


@pytest.mark.parametrize(
    ("family", "limit"),
    [(BertConfig, 64), (RobertaConfig, 62), (XLMRobertaConfig, 62), (CamembertConfig, 62)],
)
@torch.no_grad()
def test_too_many_tokens_tells_the_limit_and_the_way_out(family, limit):
    """RoBERTa counts positions from pad_token_id + 1, here 2, so that its 64 positions hold 62 tokens."""
    model = build(family)
    assert model(torch.full((1, limit), 7)).logits.isfinite().all()
    message = rf"input of {limit + 1} tokens.*positions for {limit}.*truncation=True and max_length={limit}"
    with pytest.raises(ValueError, match=message):
        model(torch.full((1, limit + 1), 7))
    with pytest.raises(ValueError, match=message):
        model(inputs_embeds=torch.zeros(1, limit + 1, 32), exit_policy={"name": "entropy", "threshold": 0.5})
    with pytest.raises(
        (IndexError, RuntimeError), match="index"
    ):  # the stock model indeed has no position for it
        stock(model)(torch.full((1, limit + 1), 7), position_ids=torch.arange(64 - limit, 65)[None])


@pytest.mark.parametrize(
    "shape", [(ROWS, TOKENS - 1), (ROWS - 1, TOKENS), (ROWS, 1, TOKENS), (TOKENS,)], ids=str
)
def test_wrong_mask_shape(shape):
    model, (ids, _) = build(), padded_batch()
    with pytest.raises(ValueError, match=rf"attention_mask has shape .*\({ROWS}, {TOKENS}\)"):
        model(ids, torch.ones(shape))


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels", "message"),
    [
        ("single_label_classification", 3, torch.full((ROWS,), 3), r"labels hold 3; .*0\.\.2"),
        ("single_label_classification", 3, torch.full((ROWS,), -1), r"labels hold -1; .*0\.\.2, or -100"),
        (
            "single_label_classification",
            3,
            torch.ones(ROWS, 2).long(),
            r"shape \(64, 2\) .*needs \(64,\) class ids",
        ),
        ("single_label_classification", 3, torch.ones(ROWS), r"dtype torch.float32; a single label needs"),
        (
            "multi_label_classification",
            3,
            torch.full((ROWS, 3), 1.5),
            r"labels hold 1.5; .*targets in 0\.\.1",
        ),
        ("multi_label_classification", 3, torch.ones(ROWS, 2), r"shape \(64, 2\); .*needs \(64, 3\)"),
        ("regression", 1, torch.full((ROWS,), float("nan")), "labels hold nan; .*finite numbers"),
    ],
)
@pytest.mark.parametrize(
    "policy", [None, {"name": "patience", "patience": 2, "tolerance": 0.1}], ids=["full", "policy"]
)
def test_labels_that_do_not_fit(problem_type, num_labels, labels, message, policy):
    model, (ids, mask) = build(num_labels=num_labels, problem_type=problem_type), padded_batch()
    with pytest.raises(ValueError, match=message):
        model(ids, mask, labels=labels, exit_policy=policy)


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions"])
def test_states_and_attentions_need_every_layer(asked):
    model, (ids, mask) = build_with(BertConfig, "eager"), padded_batch()
    with pytest.raises(ValueError, match="need every layer; leave exit_policy out"):
        model(ids, mask, exit_policy={"name": "entropy", "threshold": 0.5}, **{asked: True})


@pytest.mark.parametrize(
    ("settings", "policy", "message"),
    [
        (
            {},
            {"name": "entropy", "thresholds": [0.1, 0.2]},
            "thresholds has 2 entries, but the model has 4 exits",
        ),
        (
            {"exit_layers": [2, 4]},
            {"name": "vote", "thresholds": [1.0] * 4},
            "has 4 entries, but the model has 2 exits",
        ),
        ({"num_labels": 1}, {"name": "entropy", "threshold": 0.1}, "'entropy' needs class probabilities"),
        ({"num_labels": 1}, {"name": "patience", "patience": 2}, "needs tolerance"),
        (
            {},
            {"name": "entropie", "threshold": 0.1},
            "'entropie' is unknown; choose from entropy, confidence",
        ),
        ({}, {"threshold": 0.1}, "it has no 'name'"),
        ({}, "entropy", "takes exactly one of threshold .* add it"),
        ({}, 0.3, "give a policy"),
    ],
)
def test_policy_that_does_not_fit(settings, policy, message):
    model, (ids, mask) = build(**settings), padded_batch()
    with pytest.raises(ValueError, match=message):
        model(ids, mask, exit_policy=policy)


def test_config_policy_without_meaning_fails_when_the_model_is_built():
    with pytest.raises(ValueError, match="'entropie' is unknown"):
        RomeBertForSequenceClassification(RomeBertConfig(tiny_backbone(), exit_policy={"name": "entropie"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distillation_weight": 1.5}, r"distillation_weight=1.5 is not in 0\.\.1"),
        ({"distillation_temperature": 0.0}, "distillation_temperature=0.0 is not above 0"),
        ({"teacher": "first"}, "teacher='first' is unknown; choose from last, next"),
    ],
)
def test_loss_settings_without_meaning(settings, message):
    with pytest.raises(ValueError, match=message):
        RomeBertForSequenceClassification(RomeBertConfig(tiny_backbone(), **settings))
