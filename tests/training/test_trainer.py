"""RomeBertTrainer: a step moves the weights along the projected gradient, and evaluation tells every exit."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from by_version import checkpointing_arguments
from one_step import (
    LR,
    MULTI,
    REGRESSION,
    SINGLE,
    arguments,
    assert_moved_along,
    batch_rows,
    contrary,
    expected_gradient,
    gradients_of,
    labels_for,
    steady,
    train_plainly,
    two_losses,
)
from pairs import others_slow, pairwise
from tiny import CLASSES, LAYERS, build, padded_batch, tiny_texts, tiny_tokenizer
from transformers import Trainer, TrainingArguments

from modeling_romebert import OBJECTIVES, RomeBertTrainer, RomeBertTrainingArguments


def text_rows(count, label):
    tokenizer = tiny_tokenizer()
    return [dict(tokenizer(text)) | {"labels": label(text)} for text in tiny_texts(count, longest=8)]


def is_good(text):
    return int(bool({"good", "great", "fine"} & set(text.split())))


# ---- the oracle: two explicit backward passes and the projection, written out


# ---- one step is exact


@pytest.mark.parametrize(
    ("regularization", "labels", "accumulation"),
    pairwise(["protect_exits", "protect_last", "off"], [(0, True), (7, False)], [1, 2]),
)
def test_step_takes_the_projected_gradient_of_the_whole_group(tmp_path, regularization, labels, accumulation):
    """Rows accumulate in micro-batches of equal size, so the gradient of the group is that of all its rows at
    once.
    """
    seed, conflict = labels
    before = contrary()
    rows = batch_rows(labels_for(SINGLE, 32, seed))
    gradient, cosine, *_ = expected_gradient(before, rows, regularization)
    assert (cosine < -0.2) if conflict else (cosine > 0.2)
    plain = expected_gradient(before, rows, "off")[0]
    weight = "backbone.encoder.layer.0.output.dense.weight"
    assert torch.equal(gradient[weight], plain[weight]) == (not conflict or regularization == "off")
    after = copy.deepcopy(before)
    batch = {"per_device_train_batch_size": 32 // accumulation, "gradient_accumulation_steps": accumulation}
    train_plainly(after, rows, tmp_path, gradient_regularization=regularization, **batch)
    assert_moved_along(before, after, gradient)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("objective", "terms"), [("joint", (1, 1)), ("last", (1, 0)), ("alternating", (1, 0))]
)
@pytest.mark.slow
def test_step_of_other_objectives(tmp_path, objective, terms, accumulation):
    before = contrary()
    rows = batch_rows(labels_for(SINGLE, 32))
    last, exits = two_losses(before, rows, distills=False)
    gradient = gradients_of(before, terms[0] * last + terms[1] * exits)
    after = copy.deepcopy(before)
    batch = {"per_device_train_batch_size": 32 // accumulation, "gradient_accumulation_steps": accumulation}
    train_plainly(after, rows, tmp_path, objective=objective, **batch)
    assert_moved_along(before, after, gradient)
    assert all(
        torch.equal(gradient[name], torch.zeros_like(gradient[name])) == (terms[1] == 0)
        for name in early_names(before)
    )


def early_names(model):
    return [
        name for name, _ in model.named_parameters() if name.startswith(("exits.1.", "exits.2.", "exits.3."))
    ]


def test_second_step_of_alternating_trains_every_exit(tmp_path):
    before = contrary()
    rows = batch_rows(labels_for(SINGLE, 32))
    after_one, after_two = copy.deepcopy(before), copy.deepcopy(before)
    for model, steps in ((after_one, 1), (after_two, 2)):
        train_plainly(
            model, rows, tmp_path, rates=[0.01, LR, 0].__getitem__, objective="alternating", max_steps=steps
        )
    assert not torch.equal(
        before.backbone.encoder.layer[0].output.dense.weight,
        after_one.backbone.encoder.layer[0].output.dense.weight,
    )
    assert all(
        torch.equal(before.get_parameter(name), after_one.get_parameter(name)) for name in early_names(before)
    )
    assert_moved_along(
        after_one, after_two, gradients_of(after_one, sum(two_losses(after_one, rows, distills=False)))
    )


def test_checkpointing_takes_the_same_step(tmp_path):
    before = contrary()
    rows = batch_rows(labels_for(SINGLE, 32))
    after = copy.deepcopy(before)
    train_plainly(after, rows, tmp_path, **checkpointing_arguments(use_reentrant=False))
    assert_moved_along(before, after, expected_gradient(before, rows, "protect_exits")[0])


def test_frozen_weights_stay_and_take_no_part(tmp_path):
    before = contrary()
    before.backbone.embeddings.requires_grad_(False)
    rows = batch_rows(labels_for(SINGLE, 32))
    after = copy.deepcopy(before)
    train_plainly(after, rows, tmp_path)
    assert_moved_along(before, after, expected_gradient(before, rows, "protect_exits")[0])
    assert torch.equal(before.get_input_embeddings().weight, after.get_input_embeddings().weight)


def test_one_exit_is_ordinary_fine_tuning(tmp_path):
    before = steady(exit_layers=[LAYERS])
    rows = batch_rows(labels_for(SINGLE, 32))
    after = copy.deepcopy(before)
    train_plainly(after, rows, tmp_path)
    assert_moved_along(before, after, gradients_of(before, two_losses(before, rows)[0]))


# ---- what is logged


@pytest.mark.parametrize(("seed", "projected"), [(0, 1.0), (7, 0.0)])
def test_logged_terms_are_the_formula_s(tmp_path, seed, projected):
    model = contrary()
    rows = batch_rows(labels_for(SINGLE, 32, seed))
    _, cosine, last, exits = expected_gradient(model, rows, "protect_exits")
    # the weights do not move, so every step is the first again
    trainer = train_plainly(model, rows, tmp_path, rates=lambda step: 0.0, max_steps=4, logging_steps=2)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logs] == [2, 4]
    for entry in logs:
        assert entry["loss_last"] == pytest.approx(last, rel=1e-5)
        assert entry["loss_exits"] == pytest.approx(exits, rel=1e-5)
        assert entry["loss"] == pytest.approx(last + exits, rel=1e-4)
        assert entry["gradient_cosine"] == pytest.approx(cosine, abs=1e-5)
        assert entry["projected"] == projected


def test_logged_terms_are_averages_since_the_last_log(tmp_path):
    rows = batch_rows(labels_for(SINGLE, 32))
    each, every_third = (
        train_plainly(contrary(), rows, tmp_path, rates=lambda step: 0.01, max_steps=6, logging_steps=n)
        for n in (1, 3)
    )
    steps, logs = ([e for e in trainer.state.log_history if "loss" in e] for trainer in (each, every_third))
    assert (len(steps), len(logs)) == (6, 2)
    for name in ("loss_last", "loss_exits"):
        values = [entry[name] for entry in steps]
        assert [entry[name] for entry in logs] == pytest.approx(
            [np.mean(values[:3]), np.mean(values[3:])], rel=1e-5
        )


@pytest.mark.parametrize("objective", ["joint", "last", "alternating"])
def test_without_regularization_no_cosine_is_logged(tmp_path, objective):
    settings = {"objective": objective, "max_steps": 3}
    trainer = train_plainly(
        contrary(), batch_rows(labels_for(SINGLE, 32)), tmp_path, rates=lambda step: 0.01, **settings
    )
    for entry in trainer.state.log_history[:-1]:
        assert {"loss", "loss_last", "loss_exits"} <= entry.keys() and not {
            "gradient_cosine",
            "projected",
        } & entry.keys()


def test_label_smoothing_is_in_the_loss(tmp_path):
    model, rows = steady(), batch_rows(labels_for(SINGLE, 32))
    labels = torch.stack([row["labels"] for row in rows])
    ids, mask = padded_batch()
    exit_logits = model(ids[:32], mask[:32]).exit_logits.detach()
    smooth = [F.cross_entropy(logits, labels, label_smoothing=0.2).item() for logits in exit_logits.unbind(1)]
    assert smooth[-1] != pytest.approx(F.cross_entropy(exit_logits[:, -1], labels).item(), rel=1e-3)
    entry = train_plainly(
        model, rows, tmp_path, objective="joint", label_smoothing_factor=0.2
    ).state.log_history[0]
    assert (entry["loss_last"], entry["loss_exits"]) == pytest.approx(
        (smooth[-1], sum(smooth[:-1])), rel=1e-5
    )


# ---- evaluation


def evaluated(folder, problem_type=SINGLE, compute_metrics=None, exit_layers=None):
    """A trainer, its rows, and logits (N, E, C) and labels of them by the model itself."""
    model = build(
        problem_type=problem_type,
        num_labels=1 if problem_type == REGRESSION else CLASSES,
        exit_layers=exit_layers,
    )
    rows = batch_rows(labels_for(problem_type, 40))
    settings = arguments(folder, per_device_eval_batch_size=16)
    trainer = RomeBertTrainer(
        model, settings, train_dataset=rows, eval_dataset=rows, compute_metrics=compute_metrics
    )
    ids, mask = padded_batch()
    with torch.no_grad():
        logits = model(ids[:40], mask[:40]).exit_logits
    return trainer, rows, logits, torch.stack([row["labels"] for row in rows])


def by_hand(problem_type, logits, labels):
    """The name and value of the default metric at one exit, logits (N, C)."""
    if problem_type == SINGLE:
        return "accuracy", float((logits.argmax(-1) == labels).float().mean())
    if problem_type == MULTI:
        said = logits > 0
        return "f1_micro", float(2 * (said & (labels == 1)).sum() / (said.sum() + labels.sum()))
    return "pearson", float(torch.corrcoef(torch.stack([logits[:, 0], labels]))[0, 1])


@pytest.mark.parametrize("exit_layers", [None, [2, 4]], ids=str)
@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_evaluation_tells_every_exit(tmp_path, problem_type, exit_layers):
    trainer, _, logits, labels = evaluated(tmp_path, problem_type, exit_layers=exit_layers)
    metrics = trainer.evaluate()
    layers, values = trainer.model.config.exit_layers, []
    for layer, of_exit in zip(layers, logits.unbind(1), strict=True):
        name, value = by_hand(problem_type, of_exit, labels)
        assert metrics[f"eval_{name}_exit_{layer}"] == pytest.approx(value, abs=1e-5)
        values.append(value)
    assert len(set(values)) > 1
    assert metrics[f"eval_{name}"] == pytest.approx(values[-1], abs=1e-5)
    assert metrics[f"eval_{name}_mean"] == pytest.approx(np.mean(values), abs=1e-5)
    assert sum("_exit_" in key for key in metrics) == len(layers)


def test_evaluation_loss_is_the_objective_s(tmp_path):
    trainer, rows, _, _ = evaluated(tmp_path)
    parts = [
        sum(two_losses(trainer.model, rows[i : i + 16])).item() * len(rows[i : i + 16])
        for i in range(0, 40, 16)
    ]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(sum(parts) / 40, rel=1e-5)


def test_predictions_are_those_of_the_last_exit(tmp_path):
    trainer, rows, logits, labels = evaluated(tmp_path)
    output = trainer.predict(rows)
    assert output.predictions.shape == (40, CLASSES)
    assert output.predictions == pytest.approx(logits[:, -1].numpy(), abs=1e-5)
    assert output.label_ids.tolist() == labels.tolist()
    assert output.metrics["test_accuracy_exit_1"] == pytest.approx(by_hand(SINGLE, logits[:, 0], labels)[1])


def test_compute_metrics_sees_one_exit_at_a_time(tmp_path):
    seen = []

    def mean_of_first(prediction):
        seen.append(prediction.predictions)
        return {"first": float(prediction.predictions[:, 0].mean()), "rows": len(prediction.label_ids)}

    trainer, _, logits, _ = evaluated(tmp_path, compute_metrics=mean_of_first)
    metrics = trainer.evaluate(metric_key_prefix="dev")
    assert [one.shape for one in seen] == [(40, CLASSES)] * LAYERS
    means = logits[:, :, 0].mean(dim=0).tolist()
    assert [metrics[f"dev_first_exit_{layer}"] for layer in (1, 2, 3, 4)] == pytest.approx(means, abs=1e-5)
    assert metrics["dev_first"] == pytest.approx(means[-1], abs=1e-5)
    assert metrics["dev_first_mean"] == pytest.approx(np.mean(means), abs=1e-5)
    assert metrics["dev_rows"] == metrics["dev_rows_exit_2"] == 40


# ---- training as users do it


def toy_training(folder, model, label, trainer=RomeBertTrainer, kind=RomeBertTrainingArguments, **settings):
    """On 64 short texts, which it is evaluated on again: can it fit them at all?"""
    settings = {
        "num_train_epochs": 8,
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-3,
        "max_grad_norm": 1.0,
    } | settings
    rows = text_rows(64, label)
    settings = arguments(folder, kind, **settings)
    return trainer(model, settings, processing_class=tiny_tokenizer(), train_dataset=rows, eval_dataset=rows)


@pytest.mark.parametrize("objective", others_slow(*sorted(OBJECTIVES, reverse=True)))
def test_training_learns(tmp_path, objective):
    settings = {"objective": objective, "distillation_weight": 0.5, "distillation_temperature": 1.0}
    trainer = toy_training(tmp_path, build(num_labels=2, exit_pooling="mean"), is_good, **settings)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.8 * before["eval_loss"]
    assert after["eval_accuracy"] > 0.7  # 34 of 64 texts are not good


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem_type", "num_labels", "label"),
    [
        (REGRESSION, 1, lambda text: float(text.count("good"))),
        (MULTI, 2, lambda text: [float("good" in text), float("bad" in text)]),
    ],
)
def test_regression_and_multi_label_are_learned(tmp_path, problem_type, num_labels, label):
    """The problem type is left open: the first labels settle it."""
    model = build(num_labels=num_labels, exit_pooling="mean")
    trainer = toy_training(tmp_path, model, label, exit_scale=0.5)
    before = trainer.evaluate()
    trainer.train()
    assert model.config.problem_type == problem_type
    assert trainer.evaluate()["eval_loss"] < 0.7 * before["eval_loss"]


@pytest.mark.slow
def test_a_stock_trainer_trains_it(tmp_path):
    model = build(num_labels=2, exit_pooling="mean")
    trainer = toy_training(tmp_path, model, is_good, Trainer, TrainingArguments)
    before = trainer.evaluate()
    trainer.train()
    output = trainer.predict(trainer.eval_dataset)
    assert output.metrics["test_loss"] < 0.7 * before["eval_loss"]
    assert output.predictions.shape == (64, 2)


def test_a_stock_trainer_takes_the_joint_step(tmp_path):
    before = contrary()
    rows = batch_rows(labels_for(SINGLE, 32))
    after = copy.deepcopy(before)
    optimizer = torch.optim.SGD(after.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    batch = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "max_steps": 1}
    settings = arguments(tmp_path, TrainingArguments, **batch)
    Trainer(after, settings, train_dataset=rows, optimizers=(optimizer, schedule)).train()
    assert_moved_along(before, after, expected_gradient(before, rows, "off")[0])


@pytest.mark.parametrize("smooths", [True, False], ids=["label_smoothing_factor", "compute_loss_func"])
def test_a_stock_trainer_that_trains_the_last_exit_alone_is_told(tmp_path, smooths, caplog):
    """It makes a loss of `logits`; said once, and not where every exit is trained."""
    own = (
        {}
        if smooths
        else {"compute_loss_func": lambda outputs, labels, **_: F.cross_entropy(outputs.logits, labels)}
    )
    rows = batch_rows(labels_for(SINGLE, 32))
    settings = arguments(
        tmp_path, TrainingArguments, max_steps=3, label_smoothing_factor=0.1 if smooths else 0.0
    )
    Trainer(build(), settings, train_dataset=rows, **own).train()
    assert (
        caplog.text.count("Only the last of 4 exits is being trained") == 1
        and "RomeBertTrainer applies both" in caplog.text
    )


@pytest.mark.parametrize("objective", others_slow(*sorted(OBJECTIVES, reverse=True)))
def test_nobody_is_told_who_trains_every_exit_or_means_not_to(tmp_path, objective, caplog):
    rows = batch_rows(labels_for(SINGLE, 32))
    common = {"max_steps": 2, "label_smoothing_factor": 0.1, "gradient_regularization": "protect_last"}
    RomeBertTrainer(build(), arguments(tmp_path, objective=objective, **common), train_dataset=rows).train()
    Trainer(build(), arguments(tmp_path, TrainingArguments, max_steps=2), train_dataset=rows).train()
    model, (ids, mask) = build().train(), padded_batch()
    model(ids, mask).exit_logits.square().mean().backward()
    model.exits.requires_grad_(False)
    model.exits["4"].requires_grad_(True)
    model(ids, mask).logits.square().mean().backward()
    assert "is being trained" not in caplog.text
