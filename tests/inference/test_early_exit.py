"""A batch whose rows leave at different depths gives what each row gives alone, and runs no more than it has
to.
"""

import pytest
import torch
import torch.nn.functional as F
from pairs import in_turn, pairwise, short
from rows_alone import LayerLog, assert_same, one_by_one
from tiny import CLASSES, LAYERS, PAD, ROWS, TOKENS, build, padded_batch
from transformers import RobertaConfig
from transformers.masking_utils import create_bidirectional_mask

from modeling_romebert import ExitPolicy, make_policy
from modeling_romebert.layer_masks import LayerRows, bidirectional_mask

POLICIES = [
    {"name": "entropy", "threshold": 0.6},
    {"name": "confidence", "threshold": 0.75},
    {"name": "margin", "threshold": 0.5},
    {"name": "patience", "patience": 2},
    {"name": "patient_confidence", "patience": 2, "threshold": 0.5},
    {"name": "vote", "threshold": 1.1},
]
NEVER = [
    {"name": "entropy", "threshold": 0.0},
    {"name": "confidence", "threshold": 1.0},
    {"name": "margin", "threshold": 1.0},
    {"name": "patience", "patience": LAYERS + 1},
    {"name": "patient_confidence", "patience": 1, "threshold": 1.0},
    {"name": "vote", "threshold": LAYERS + 1.0},
]
ALWAYS = [
    {"name": "entropy", "threshold": 1.0},
    {"name": "confidence", "threshold": 0.0},
    {"name": "margin", "threshold": 0.0},
    {"name": "patience", "patience": 1},
    {"name": "patient_confidence", "patience": 1, "threshold": 0.0},
    {"name": "vote", "threshold": 0.0},
]


POOLINGS, ATTENTIONS = ["cls", "mean"], ["eager", "sdpa"]


def name_of(policy):
    return policy["name"]


# ---- a batch is its rows


@pytest.mark.parametrize(
    ("policy", "pooling", "attention"), pairwise(POLICIES, POOLINGS, ATTENTIONS), ids=short
)
@torch.no_grad()
def test_batch_equals_rows_one_by_one(policy, pooling, attention):
    model, (ids, mask) = build(attention=attention, exit_pooling=pooling), padded_batch()
    batch = model(ids, mask, exit_policy=policy)
    assert batch.exit_layer.unique().numel() >= 3  # rows do leave at different depths
    assert_same(batch, *one_by_one(model, ids, mask, policy))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_mask_is_the_library_s(attention):
    model, (ids, mask) = build(attention=attention), padded_batch()
    backbone, hidden = model.backbone, torch.zeros(*ids.shape, model.config.hidden_size)
    for of_batch in (mask, mask[:, :3], None):
        here = hidden if of_batch is None else hidden[:, : of_batch.shape[1]]
        library_s = create_bidirectional_mask(
            backbone.config, here, of_batch, allow_is_bidirectional_skip=of_batch is None
        )
        ours = bidirectional_mask(backbone, LayerRows(here, of_batch, padded=of_batch is not None))
        assert (ours is None) == (library_s is None)
        assert ours is None or (ours.dtype == library_s.dtype and torch.equal(ours, library_s))


@pytest.mark.parametrize(("policy", "pooling"), in_turn(POLICIES, POOLINGS), ids=short)
@torch.no_grad()
def test_batch_equals_rows_one_by_one_multi_label(policy, pooling):
    model, (ids, mask) = (
        build(exit_pooling=pooling, problem_type="multi_label_classification", num_labels=2),
        padded_batch(),
    )
    batch = model(ids, mask, exit_policy=policy)
    assert batch.exit_layer.unique().numel() >= 2
    assert_same(batch, *one_by_one(model, ids, mask, policy))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@torch.no_grad()
def test_batch_equals_rows_one_by_one_regression(pooling):
    model, (ids, mask) = build(exit_pooling=pooling, num_labels=1), padded_batch()
    policy = {"name": "patience", "patience": 2, "tolerance": 1.0}
    batch = model(ids, mask, exit_policy=policy)
    assert batch.exit_layer.unique().tolist() == [2, 3, 4]
    assert_same(batch, *one_by_one(model, ids, mask, policy))


@pytest.mark.parametrize(("policy", "exit_layers"), in_turn(POLICIES, [[2, 4], [1, 3, 4], [3]]), ids=short)
@torch.no_grad()
def test_batch_equals_rows_one_by_one_with_fewer_exits(policy, exit_layers):
    model, (ids, mask) = build(exit_layers=exit_layers), padded_batch()
    batch = model(ids, mask, exit_policy=policy)
    assert set(batch.exit_layer.tolist()) <= set(model.config.exit_layers)
    assert_same(batch, *one_by_one(model, ids, mask, policy))


@pytest.mark.parametrize(("policy", "attention"), in_turn(POLICIES, ATTENTIONS), ids=short)
@torch.no_grad()
def test_batch_equals_rows_one_by_one_roberta(policy, attention):
    model, (ids, mask) = build(RobertaConfig, attention), padded_batch()
    assert_same(model(ids, mask, exit_policy=policy), *one_by_one(model, ids, mask, policy))


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
@torch.no_grad()
def test_left_padding(policy):
    """RoBERTa counts positions from the first token that is no padding, so a row is the same wherever its
    padding is.
    """
    model, (ids, mask) = build(RobertaConfig, exit_pooling="mean"), padded_batch()
    lengths = mask.sum(dim=1)
    left = torch.stack([row.roll(TOKENS - int(length)) for row, length in zip(ids, lengths, strict=True)])
    batch = model(left, (left != PAD).long(), exit_policy=policy)
    assert_same(batch, *one_by_one(model, ids, mask, policy))


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
@torch.no_grad()
def test_no_attention_mask(policy):
    model, (ids, _) = build(), padded_batch()
    batch = model(ids, exit_policy=policy)
    assert batch.exit_layer.unique().numel() >= 3
    assert_same(batch, *one_by_one(model, ids, torch.ones_like(ids), policy))


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
@torch.no_grad()
def test_order_of_rows_changes_nothing(policy):
    model, (ids, mask) = build(), padded_batch()
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(2))
    before, after = model(ids, mask, exit_policy=policy), model(ids[order], mask[order], exit_policy=policy)
    assert_same(after, before.logits[order], before.exit_layer[order])


@torch.no_grad()
def test_more_padding_changes_nothing():
    model, (ids, mask) = build(), padded_batch()
    more = [F.pad(ids, (0, 9), value=PAD), F.pad(mask, (0, 9))]
    batch = model(ids, mask, exit_policy=POLICIES[0])
    assert_same(model(*more, exit_policy=POLICIES[0]), batch.logits, batch.exit_layer)


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
@torch.no_grad()
def test_leaving_logits_are_those_of_the_exit_at_full_depth(policy):
    model, (ids, mask) = build(), padded_batch()
    batch, full = model(ids, mask, exit_policy=policy), model(ids, mask)
    expected = full.exit_logits[torch.arange(ROWS), batch.exit_layer - 1]
    torch.testing.assert_close(batch.logits, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_batch_of_one():
    model, (ids, mask) = build(), padded_batch()
    one = model(ids[:1], mask[:1], exit_policy=POLICIES[0])
    assert (one.logits.shape, one.exit_layer.shape) == ((1, CLASSES), (1,))
    every = model(ids, mask, exit_policy=POLICIES[0])
    assert_same(one, every.logits[:1], every.exit_layer[:1])


@torch.no_grad()
def test_inputs_embeds_and_position_ids_and_token_types():
    model, (ids, mask) = build(), padded_batch()
    more = {
        "position_ids": torch.arange(TOKENS).flip(0).repeat(ROWS, 1),
        "token_type_ids": torch.arange(TOKENS).repeat(ROWS, 1) % 2,
    }
    by_ids = model(ids, mask, exit_policy=POLICIES[0], **more)
    embeds = model.get_input_embeddings()(ids)
    by_embeds = model(inputs_embeds=embeds, attention_mask=mask, exit_policy=POLICIES[0], **more)
    assert torch.equal(by_ids.logits, by_embeds.logits) and torch.equal(
        by_ids.exit_layer, by_embeds.exit_layer
    )
    assert not torch.equal(by_ids.logits, model(ids, mask, exit_policy=POLICIES[0]).logits)


# ---- thresholds


@pytest.mark.parametrize("policy", NEVER, ids=name_of)
@torch.no_grad()
def test_threshold_never_met_is_full_depth(policy):
    model, (ids, mask) = build(), padded_batch()
    batch, full = model(ids, mask, exit_policy=policy), model(ids, mask)
    assert torch.equal(batch.logits, full.logits)
    assert batch.exit_layer.tolist() == full.exit_layer.tolist() == [LAYERS] * ROWS


@pytest.mark.parametrize("exit_layers", [[1, 2, 3, 4], [3, 4]])
@pytest.mark.parametrize("policy", ALWAYS, ids=name_of)
@torch.no_grad()
def test_threshold_always_met_is_the_first_exit(policy, exit_layers):
    model, (ids, mask) = build(exit_layers=exit_layers), padded_batch()
    log = LayerLog(model)
    batch = model(ids, mask, exit_policy=policy)
    assert log.seen == [(ROWS, TOKENS)] * exit_layers[0]  # no layer runs after the last row has left
    assert batch.exit_layer.tolist() == [exit_layers[0]] * ROWS
    assert torch.equal(batch.logits, model(ids, mask).exit_logits[:, 0])


@torch.no_grad()
def test_one_threshold_per_exit():
    model, (ids, mask) = build(), padded_batch()
    policy = {"name": "confidence", "thresholds": [1.0, 0.6, 0.0, 0.0]}
    exit_layer = model(ids, mask, exit_policy=policy).exit_layer
    second = model(ids, mask).exit_logits[:, 1].softmax(dim=-1).amax(dim=-1)
    assert torch.equal(exit_layer, torch.where(second > 0.6, 2, 3))
    assert exit_layer.unique().tolist() == [2, 3]


@torch.no_grad()
def test_policy_object_and_settings_are_the_same_and_leave_no_memory():
    model, (ids, mask) = build(), padded_batch()
    policy = make_policy("patience", patience=2)
    first = model(ids, mask, exit_policy=policy)
    model(ids[:5], mask[:5], exit_policy=policy)
    for again in (policy, {"name": "patience", "patience": 2}):
        output = model(ids, mask, exit_policy=again)
        assert torch.equal(output.exit_layer, first.exit_layer) and torch.equal(output.logits, first.logits)


@torch.no_grad()
def test_config_policy_is_not_the_model_s():
    model, (ids, mask) = build(exit_policy={"name": "entropy", "threshold": 1.0}), padded_batch()
    assert model(ids, mask).exit_layer.tolist() == [LAYERS] * ROWS


# ---- deeper layers run on survivors only


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
@torch.no_grad()
def test_layers_run_on_survivors_cut_to_the_longest(policy):
    model, (ids, mask) = build(), padded_batch()
    log = LayerLog(model)
    exit_layer = model(ids, mask, exit_policy=policy).exit_layer
    expected = []
    for depth in range(1, LAYERS + 1):
        alive = exit_layer >= depth
        if alive.any():
            expected.append((int(alive.sum()), int(mask[alive].sum(dim=1).max())))
    assert log.seen == expected
    assert expected[-1][0] < ROWS


class FirstExit(ExitPolicy):
    """Lets these rows (B,) leave at the first exit, and none later."""

    name = "first_exit"

    def __init__(self, rows):
        self.rows = rows

    def leaves(self, exit_index, logits):
        return self.rows if exit_index == 0 else torch.zeros(len(logits), dtype=torch.bool)


@torch.no_grad()
def test_padding_is_cut_when_long_rows_leave():
    model, (ids, mask) = build(), padded_batch()
    lengths = mask.sum(dim=1)
    log = LayerLog(model)
    batch = model(ids, mask, exit_policy=FirstExit(lengths > 10))
    rest = lengths[lengths <= 10]
    assert log.seen == [(ROWS, TOKENS)] + [(rest.numel(), int(rest.max()))] * 3
    assert torch.equal(batch.exit_layer, torch.where(lengths > 10, 1, LAYERS))
    expected = model(ids, mask).exit_logits[torch.arange(ROWS), batch.exit_layer - 1]
    torch.testing.assert_close(batch.logits, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_hole_in_the_mask_is_no_padding():
    model, (ids, mask) = build(attention="eager"), padded_batch()
    mask[0, 3:30] = 0  # the tokens behind the hole still count
    policy = {"name": "confidence", "threshold": 0.75}
    alone = [model(ids[row : row + 1], mask[row : row + 1], exit_policy=policy) for row in range(ROWS)]
    batch = model(ids, mask, exit_policy=policy)
    assert_same(batch, torch.cat([one.logits for one in alone]), torch.cat([one.exit_layer for one in alone]))


# ---- logits that are not finite


@pytest.mark.parametrize("policy", ALWAYS, ids=name_of)
@torch.no_grad()
def test_nan_at_an_exit_leaves_nobody_early(policy):
    model, (ids, mask) = build(), padded_batch()
    model.exits["1"].classifier.bias[1] = float("nan")
    batch = model(ids, mask, exit_policy=policy)
    assert batch.exit_layer.tolist() == [2] * ROWS
    assert torch.equal(batch.logits, model(ids, mask).exit_logits[:, 1])


@pytest.mark.parametrize("policy", ALWAYS, ids=name_of)
@torch.no_grad()
def test_nan_in_one_row_is_that_row_s_own(policy):
    model, (ids, mask) = build(), padded_batch()
    embeds = model.get_input_embeddings()(ids)
    embeds[7, 0] = float("nan")
    batch = model(inputs_embeds=embeds, attention_mask=mask, exit_policy=policy)
    assert batch.exit_layer.tolist() == [LAYERS if row == 7 else 1 for row in range(ROWS)]
    assert batch.logits.isnan().any(dim=-1).nonzero().tolist() == [[7]]


@pytest.mark.parametrize("policy", POLICIES + ALWAYS, ids=name_of)
@torch.no_grad()
def test_nan_at_every_exit_runs_every_layer(policy):
    model, (ids, mask) = build(), padded_batch()
    for head in model.exits.values():
        head.classifier.bias[0] = float("nan")
    assert model(ids, mask, exit_policy=policy).exit_layer.tolist() == [LAYERS] * ROWS


# ---- what is returned


@pytest.mark.parametrize(
    ("num_labels", "problem_type", "policy", "task"),
    [
        (3, "single_label_classification", POLICIES[0], F.cross_entropy),
        (3, "multi_label_classification", POLICIES[3], F.binary_cross_entropy_with_logits),
        (
            1,
            "regression",
            {"name": "patience", "patience": 2, "tolerance": 1.0},
            lambda z, y: F.mse_loss(z[:, 0], y),
        ),
    ],
)
@torch.no_grad()
def test_loss_with_a_policy_is_the_task_loss_of_logits(num_labels, problem_type, policy, task):
    model, (ids, mask) = build(num_labels=num_labels, problem_type=problem_type), padded_batch()
    torch.manual_seed(3)
    labels = {
        "single_label_classification": torch.randint(num_labels, (ROWS,)),
        "multi_label_classification": torch.randint(2, (ROWS, num_labels)).float(),
        "regression": torch.randn(ROWS),
    }[problem_type]
    output = model(ids, mask, labels=labels, exit_policy=policy)
    assert output.exit_layer.unique().numel() > 1
    torch.testing.assert_close(output.loss, task(output.logits, labels), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(dtype):
    model, (ids, mask) = build().to(dtype), padded_batch()
    batch, full = model(ids, mask, exit_policy=POLICIES[0]), model(ids, mask)
    assert batch.logits.dtype == dtype
    assert batch.exit_layer.unique().numel() >= 3
    expected = full.exit_logits[torch.arange(ROWS), batch.exit_layer - 1]
    torch.testing.assert_close(batch.logits, expected, rtol=0.05, atol=0.05)


def test_what_the_config_asks_for_is_left_out_with_a_policy():
    model, (ids, mask) = build(output_hidden_states=True), padded_batch()
    assert len(model(ids, mask).hidden_states) == LAYERS + 1
    early = model(ids, mask, exit_policy={"name": "confidence", "threshold": 0.0})
    assert early.hidden_states is None and early.exit_layer.tolist() == [1] * len(ids)
