"""Every step of a real RomeBertTrainer takes the gradient that explicit.py writes out, parameter by
parameter.
"""

import copy
from functools import partial

import pytest
import torch
from by_version import checkpointing_arguments
from explicit import (
    COLLATE,
    assert_equal_gradients,
    assert_exact,
    contrary,
    explicit,
    groups_of,
    rows_of,
    stated_losses,
    train,
    two_losses,
)
from pairs import in_turn, short
from torch.nn.utils import parametrize
from transformers import Trainer, TrainingArguments

from modeling_romebert.training.gradient_projection import GradientRegularizer
from modeling_romebert.training.training_run import shared_weights

PROTECT = ["protect_exits", "protect_last"]
RAGGED = 18  # rows: in batches of 4 the last has 2; in groups of 3 batches the last has 2


def assert_steps_exact(
    model, folder, count=RAGGED, accumulation=1, protect="protect_exits", how=None, scale=None, **settings
):
    """Trains a copy of the model and compares every step with the oracle; returns the steps and their
    cosines.
    """
    settings |= {"gradient_accumulation_steps": accumulation, "gradient_regularization": protect}
    rows = rows_of(count)
    steps, _ = train(copy.deepcopy(model), rows, folder, **settings)
    more = {} if scale is None else {"scale": scale}
    cosines = assert_exact(steps, model, groups_of(rows, 4, accumulation), protect, **more, **(how or {}))
    return steps, cosines


def conflicts(cosines):
    return any(cosine < -0.05 for cosine in cosines)


# ---- groups of micro-batches


@pytest.mark.parametrize("protect", [*PROTECT, "off"])
@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_accumulation_with_a_ragged_last_group_and_batch(tmp_path, accumulation, protect):
    _, cosines = assert_steps_exact(contrary(), tmp_path, accumulation=accumulation, protect=protect)
    assert conflicts(cosines)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.slow
def test_without_regularization_the_steps_are_the_stock_trainer_s(tmp_path, accumulation):
    settings = {"gradient_accumulation_steps": accumulation}
    ours, _ = train(contrary(), rows_of(RAGGED), tmp_path, gradient_regularization="off", **settings)
    stock, _ = train(contrary(), rows_of(RAGGED), tmp_path, Trainer, TrainingArguments, **settings)
    assert len(ours.gradients) == len(stock.gradients) == -(-5 // accumulation)
    for gradients, expected in zip(ours.gradients, stock.gradients, strict=True):
        assert_equal_gradients(gradients, expected)


# ---- models


@pytest.mark.parametrize(
    ("settings", "protect"),
    in_turn(
        [
            {"layers": 2},
            {"layers": 13},
            {"exit_layers": [2, 4]},  # of 5 layers, of which the last always has an exit
            {"exit_layers": [1, 5]},
            {"exit_pooling": "cls"},
        ],
        PROTECT,
    ),
    ids=str,
)
@pytest.mark.slow
def test_depths_and_exits(tmp_path, settings, protect):
    model = contrary(**settings)
    _, cosines = assert_steps_exact(model, tmp_path, accumulation=3, protect=protect)
    assert conflicts(cosines)
    assert len(shared_weights(model)) == 6 * model.config.exit_layers[-2]


def freeze_embeddings_and_two_layers(model):
    model.backbone.embeddings.requires_grad_(False)
    model.layers[:2].requires_grad_(False)


def freeze_single_matrices(model):
    for layer in model.layers:
        layer.attention.self.query.weight.requires_grad_(False)
        layer.output.dense.weight.requires_grad_(False)


@pytest.mark.parametrize(
    ("freeze", "protect"),
    in_turn([freeze_embeddings_and_two_layers, freeze_single_matrices], PROTECT),
    ids=short,
)
@pytest.mark.slow
def test_frozen_weights_take_no_part(tmp_path, freeze, protect):
    model = contrary()
    freeze(model)
    steps, cosines = assert_steps_exact(model, tmp_path, accumulation=2, protect=protect)
    assert conflicts(cosines)
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    assert frozen and all(torch.equal(steps.weights[0][name], steps.weights[-1][name]) for name in frozen)


def test_nothing_shared_is_the_plain_sum(tmp_path):
    """A frozen backbone: no weight receives both gradients."""
    model = contrary()
    model.backbone.requires_grad_(False)
    assert shared_weights(model) == []
    assert_steps_exact(model, tmp_path, accumulation=2)


def tie_two_shared_layers(model):
    model.layers[1].attention.self.query.weight = model.layers[0].attention.self.query.weight


def tie_a_shared_layer_and_the_last(model):
    model.layers[4].output.dense.weight = model.layers[2].output.dense.weight


def tie_exits(model):
    """The matrices of the early exits to each other, and a bias to that of the last."""
    for layer in ("2", "3", "4"):
        model.exits[layer].classifier.weight = model.exits["1"].classifier.weight
    model.exits["1"].classifier.bias = model.exits["5"].classifier.bias


class PlusAnother(torch.nn.Module):
    def __init__(self, like):
        super().__init__()
        self.other = torch.nn.Parameter(0.1 * like.detach())

    def forward(self, weight):
        return weight + self.other


def make_a_weight_a_sum(model):
    """Autograd gives both terms of the sum one and the same tensor."""
    for layer in model.layers[:2]:
        parametrize.register_parametrization(
            layer.output.dense, "weight", PlusAnother(layer.output.dense.weight)
        )


@pytest.mark.parametrize(
    ("tie", "protect"),
    in_turn(
        [tie_two_shared_layers, tie_a_shared_layer_and_the_last, tie_exits, make_a_weight_a_sum], PROTECT
    ),
    ids=short,
)
@pytest.mark.slow
def test_tied_weights_count_once(tmp_path, tie, protect):
    model = contrary()
    tie(model)
    _, cosines = assert_steps_exact(model, tmp_path, accumulation=2, protect=protect)
    assert conflicts(cosines)


@pytest.mark.parametrize("protect", PROTECT)
@pytest.mark.slow
def test_shared_weights_without_a_gradient_from_one_term(tmp_path, protect):
    """The deepest early exit reads detached states, so that layer 4 hears from the last exit alone."""
    model = contrary()
    model.exits["4"].register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(), *inputs[1:]))
    _, cosines = assert_steps_exact(model, tmp_path, accumulation=3, protect=protect)
    assert conflicts(cosines)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.slow
def test_weights_that_no_term_reaches_get_no_gradient(tmp_path, accumulation):
    """As in stock training: a gradient of zeros would give them weight decay."""
    model = contrary()
    model.layers[0].unused = torch.nn.Linear(3, 3)
    steps, _ = assert_steps_exact(model, tmp_path, accumulation=accumulation)
    assert all(gradients["backbone.encoder.layer.0.unused.weight"] is None for gradients in steps.gradients)


# ---- settings of the Trainer


@pytest.mark.parametrize(("accumulation", "protect"), in_turn([1, 3], PROTECT))
@pytest.mark.slow
def test_clipping_comes_after_the_projection(tmp_path, accumulation, protect):
    limit = 0.5

    def share(expected):
        norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm().item()
        assert norm > 2 * limit
        return limit / norm

    _, cosines = assert_steps_exact(
        contrary(), tmp_path, accumulation=accumulation, protect=protect, scale=share, max_grad_norm=limit
    )
    assert conflicts(cosines)


@pytest.mark.parametrize("protect", PROTECT)
@pytest.mark.slow
def test_label_smoothing(tmp_path, protect):
    how = {"losses": partial(two_losses, label_smoothing=0.2)}
    _, cosines = assert_steps_exact(
        contrary(), tmp_path, protect=protect, how=how, label_smoothing_factor=0.2
    )
    assert conflicts(cosines)


@pytest.mark.parametrize(
    ("checkpointing", "protect"), in_turn([False, True], PROTECT), ids=["plain", "checkpointing"]
)
@pytest.mark.slow
def test_dropout_is_the_same_in_both_passes(tmp_path, checkpointing, protect):
    """Non-reentrant checkpointing runs every layer twice more, in the same state of the generator."""
    settings = checkpointing_arguments(use_reentrant=False) if checkpointing else {}
    _, cosines = assert_steps_exact(
        contrary(dropout=0.1), tmp_path, accumulation=3, protect=protect, how={"rng": True}, **settings
    )
    assert conflicts(cosines)


bf16 = partial(torch.autocast, "cpu", torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize(("accumulation", "protect"), in_turn([1, 3], PROTECT))
def test_bf16_autocast(tmp_path, accumulation, protect):
    """Against the passes of a and of a + b in the same precision; those of a and of b differ by the rounding
    of bf16 (2^-8).
    """
    model, rows = contrary(), rows_of(RAGGED)
    settings = {"gradient_accumulation_steps": accumulation, "gradient_regularization": protect, "bf16": True}
    steps, _ = train(copy.deepcopy(model), rows, tmp_path, **settings)
    groups = groups_of(rows, 4, accumulation)
    assert conflicts(
        assert_exact(steps, model, groups, protect, context=bf16, losses=stated_losses, joint=True)
    )
    whole = lambda gradients: torch.cat([gradient.flatten().double() for gradient in gradients.values()])  # noqa: E731
    separate, _ = explicit(model, groups[0], protect, context=bf16)
    assert (whole(steps.gradients[0]) - whole(separate)).norm() < 2**-6 * whole(separate).norm()
    in_fp32, _ = explicit(model, groups[0], protect)
    assert (whole(separate) - whole(in_fp32)).norm() > 1e-4 * whole(
        in_fp32
    ).norm()  # it was not fp32 that was compared


# ---- GradScaler


@pytest.mark.parametrize(
    ("group", "protect"), in_turn([(1, {0}), (3, {0}), (3, {2}), (3, {0, 1, 2})], PROTECT), ids=str
)
@pytest.mark.slow
def test_a_step_that_overflows_is_skipped_and_the_next_is_exact(group, protect):
    """Groups 1 and 3 are sound; in group 2 the scaled loss of some micro-batches is beyond fp32."""
    accumulation, overflows_in = group
    model, rows = contrary(), rows_of(4 * 3 * accumulation)
    groups = groups_of(rows, 4, accumulation)
    optimizer, scaler = (
        torch.optim.SGD(model.parameters(), lr=0.01),
        torch.amp.GradScaler("cpu", init_scale=2.0**16),
    )
    trained = list(model.parameters())
    regularizer = GradientRegularizer(trained, shared_weights(model), protect)
    for number, (batches,) in enumerate(groups):
        before = copy.deepcopy(model)
        for index, batch in enumerate(batches):
            last, exits = two_losses(model, batch)
            if number == 1 and index in overflows_in:
                last = last * 1e37
            loss = regularizer.loss(last, exits, end_of_group=index == len(batches) - 1) / len(batches)
            scaler.scale(loss).backward()
        scale = scaler.get_scale()
        scaler.unscale_(optimizer)
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        moved = [not torch.equal(p, q) for p, q in zip(before.parameters(), model.parameters(), strict=True)]
        if number == 1:
            assert not any(moved) and scaler.get_scale() == scale / 2
        else:
            assert all(moved) and scaler.get_scale() == scale
            expected, cosine = explicit(before, [batches], protect)
            assert_equal_gradients(gradients, expected)
            assert regularizer.cosine is not None and cosine != 0


@pytest.mark.slow
def test_fp16_autocast_with_a_scale_that_comes_down(tmp_path):
    """The scale starts beyond fp16; each overflow halves it, and the first step taken is exact in that
    precision.
    """
    model, fp16 = contrary(), partial(torch.autocast, "cpu", torch.float16)
    (batch,) = [COLLATE(rows_of(8))]
    before = copy.deepcopy(model)
    optimizer, scaler = (
        torch.optim.SGD(model.parameters(), lr=0.01),
        torch.amp.GradScaler("cpu", init_scale=2.0**24),
    )
    regularizer = GradientRegularizer(list(model.parameters()), shared_weights(model), "protect_exits")
    skipped = 0
    while True:
        with fp16():
            loss = regularizer.loss(*stated_losses(model, batch))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        scaler.step(optimizer)
        scale = scaler.get_scale()
        scaler.update()
        optimizer.zero_grad()
        if scaler.get_scale() == scale:
            break
        skipped += 1
        assert all(torch.equal(p, q) for p, q in zip(before.parameters(), model.parameters(), strict=True))
    assert skipped > 0
    expected, cosine = explicit(
        before, [[batch]], "protect_exits", context=fp16, losses=stated_losses, joint=True
    )
    assert cosine < 0
    assert_equal_gradients(gradients, expected, bound=2**-9)
