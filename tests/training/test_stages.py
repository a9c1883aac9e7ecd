"""Objectives over the whole of a training: what each stage and step trains, how it resumes, and what is
refused.
"""

import copy

import pytest
import torch
from tiny import LAYERS, PAPER, build, tiny_backbone, tiny_rows, tiny_tokenizer
from transformers import (
    BertForSequenceClassification,
    EarlyStoppingCallback,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from modeling_romebert import OBJECTIVES, RomeBertTrainer, RomeBertTrainingArguments

ROWS, BATCH = 32, 8
STEPS = ROWS // BATCH  # of an epoch
EARLY, LAST = "early exits", "backbone and last exit"


class Watch(TrainerCallback):
    """The weights before training and after every step, and the learning rate of every step."""

    def __init__(self):
        self.weights, self.rates = [], []

    def on_train_begin(self, args, state, control, model, **rest):
        self.weights.append(copy.deepcopy(model.state_dict()))

    def on_pre_optimizer_step(self, args, state, control, optimizer, **rest):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args, state, control, model, **rest):
        self.weights.append(copy.deepcopy(model.state_dict()))

    def moved(self, step, exit_layers=(1, 2, 3, 4)):
        """Which of the two parts step 1, 2, ... moved."""
        before, after = self.weights[step - 1], self.weights[step]
        early = tuple(f"exits.{layer}." for layer in exit_layers[:-1])
        changed = [name for name in after if not torch.equal(before[name], after[name])]
        return {EARLY if name.startswith(early) else LAST for name in changed}


def trainer_of(folder, model=None, rows=None, watch=None, evaluates=False, **settings):
    """A trainer of two epochs on toy texts, with weight decay, dropout, AdamW and a linear schedule."""
    quiet = {
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "seed": 3,
    }
    sizes = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
    }
    return RomeBertTrainer(
        build(num_labels=2) if model is None else model,
        RomeBertTrainingArguments(str(folder), **quiet | PAPER | sizes | settings),
        train_dataset=tiny_rows(ROWS) if rows is None else rows,
        eval_dataset=tiny_rows(4) if evaluates else None,
        processing_class=tiny_tokenizer(),
        callbacks=[] if watch is None else [watch],
    )


def watched(folder, **settings):
    watch = Watch()
    trainer = trainer_of(folder, watch=watch, **settings)
    trainer.train()
    return trainer, watch


# ---- what each step trains


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("exit_layers", [[1, 2, 3, 4], [2, 4]], ids=str)
def test_deebert_trains_the_last_exit_and_then_the_others(tmp_path, exit_layers, accumulation):
    model = build(num_labels=2, exit_layers=exit_layers)
    trainer, watch = watched(
        tmp_path, model=model, objective="deebert", gradient_accumulation_steps=accumulation
    )
    stage = 2 * STEPS // accumulation
    assert trainer.state.global_step == trainer.state.max_steps == 2 * stage
    assert trainer.state.epoch == trainer.state.num_train_epochs == 4
    assert [watch.moved(step, exit_layers) for step in range(1, stage + 1)] == [{LAST}] * stage
    # the rate of a stage's last step is above 0, so every step moves something
    assert [watch.moved(step, exit_layers) for step in range(stage + 1, 2 * stage + 1)] == [{EARLY}] * stage


@pytest.mark.slow
def test_deebert_trains_every_weight_of_a_stage(tmp_path):
    _, watch = watched(tmp_path, objective="deebert", learning_rate=1e-2)
    first, middle, last = watch.weights[0], watch.weights[2 * STEPS], watch.weights[-1]
    for name in first:
        early = name.startswith(("exits.1.", "exits.2.", "exits.3."))
        assert torch.equal(first[name], middle[name]) == early, name
        assert torch.equal(middle[name], last[name]) != early, name


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.slow
def test_alternating_trains_the_last_exit_in_odd_steps_and_all_in_even_ones(tmp_path, accumulation):
    _, watch = watched(tmp_path, objective="alternating", gradient_accumulation_steps=accumulation)
    steps = 2 * STEPS // accumulation
    assert [watch.moved(step) for step in range(1, steps + 1)] == [{LAST}, {LAST, EARLY}] * (steps // 2)


@pytest.mark.parametrize("protected", ["off", "protect_last"])
def test_mixed_trains_the_last_exit_and_then_all(tmp_path, protected):
    _, watch = watched(tmp_path, objective="mixed", gradient_regularization=protected)
    stage = 2 * STEPS
    assert [watch.moved(step) for step in range(1, stage + 1)] == [{LAST}] * stage
    assert [watch.moved(step) for step in range(stage + 1, 2 * stage + 1)] == [{LAST, EARLY}] * stage


@pytest.mark.parametrize("objective", ["deebert", "mixed"])
def test_the_best_checkpoint_is_of_the_last_stage(tmp_path, objective):
    """A first stage that is never bettered is neither kept as the best nor where patience begins to count."""
    trainer = trainer_of(
        *(tmp_path, None, None, EarlyStoppingCallback(early_stopping_patience=1)),
        evaluates=True,
        objective=objective,
        num_train_epochs=3,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="worse",
        greater_is_better=True,
    )
    trainer.compute_metrics = lambda _: {"worse": -float(trainer.state.global_step)}
    untrained = copy.deepcopy(trainer.model.exits["1"].state_dict())
    trainer.train()
    assert trainer.state.best_global_step == 4 * STEPS and trainer.state.global_step == 5 * STEPS
    for name, weight in trainer.model.exits["1"].state_dict().items():
        assert not torch.equal(weight, untrained[name])


def test_checkpoints_that_an_unchanged_exit_compares_are_said_aloud(tmp_path, caplog):
    def said(**settings):
        caplog.clear()
        transformers_logging.enable_propagation()
        best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
        trainer_of(tmp_path, evaluates=True, **best, **settings)
        transformers_logging.disable_propagation()
        return "will count as the best. accuracy_mean is over all exits." in caplog.text

    assert said(objective="deebert", metric_for_best_model="accuracy")
    assert not said(objective="mixed", metric_for_best_model="accuracy")
    for name in ("accuracy_mean", "accuracy_exit_2", "eval_loss", None):
        assert not said(objective="deebert", metric_for_best_model=name)


def test_last_trains_the_last_exit_only(tmp_path):
    trainer, watch = watched(tmp_path, objective="last")
    assert trainer.state.max_steps == 2 * STEPS
    assert {frozenset(watch.moved(step)) for step in range(1, 2 * STEPS + 1)} == {frozenset({LAST})}


@pytest.mark.parametrize("objective", ["romebert", "joint"])
@pytest.mark.slow
def test_one_stage_trains_everything_in_every_step(tmp_path, objective):
    trainer, watch = watched(tmp_path, objective=objective)
    assert trainer.state.max_steps == 2 * STEPS
    assert [watch.moved(step) for step in range(1, 2 * STEPS + 1)] == [{LAST, EARLY}] * (2 * STEPS)


@pytest.mark.slow
def test_stage_one_of_deebert_is_fine_tuning_of_the_last_exit(tmp_path):
    _, two_stages = watched(tmp_path, objective="deebert")
    _, alone = watched(tmp_path, objective="last")
    for name, weight in alone.weights[-1].items():
        assert torch.equal(two_stages.weights[2 * STEPS][name], weight), name


@pytest.mark.parametrize("objective", ["deebert", "alternating", "last"])
@pytest.mark.slow
def test_what_may_be_trained_is_as_it_was_after_training(tmp_path, objective):
    model = build(num_labels=2)
    model.backbone.embeddings.requires_grad_(False)
    model.exits["2"].requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    _, watch = watched(tmp_path, model=model, objective=objective)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    for name in watch.weights[0]:
        if name.startswith(("backbone.embeddings", "exits.2.")):
            assert torch.equal(watch.weights[0][name], watch.weights[-1][name]), name


@pytest.mark.slow
def test_what_may_be_trained_is_as_it_was_after_an_error(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **rest):
            if state.global_step == 2 * STEPS + 2:
                raise KeyboardInterrupt

    trainer = trainer_of(tmp_path, watch=Stop(), objective="deebert")
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


def test_max_steps_are_those_of_a_stage(tmp_path):
    trainer, watch = watched(tmp_path, objective="deebert", max_steps=3)
    assert trainer.state.global_step == 6 and trainer.args.max_steps == 3
    assert [watch.moved(step) for step in range(1, 7)] == [{LAST}] * 3 + [{EARLY}] * 3


# ---- the learning rate


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.slow
def test_learning_rate_starts_anew_at_stage_two(tmp_path, warmup):
    trainer, watch = watched(tmp_path, objective="deebert", warmup_steps=warmup)
    steps = 2 * STEPS
    rising = [1e-3 * step / warmup for step in range(warmup)]
    falling = [1e-3 * (steps - step) / (steps - warmup) for step in range(warmup, steps)]
    assert watch.rates == pytest.approx((rising + falling) * 2)
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert len(logged) == 2 * steps and logged[:-1] == pytest.approx(
        watch.rates[:-1], abs=1e-3 / (steps - warmup) + 1e-9
    )


@pytest.mark.slow
def test_cosine_starts_anew_too(tmp_path):
    _, watch = watched(tmp_path, objective="deebert", lr_scheduler_type="cosine")
    assert watch.rates[: 2 * STEPS] == pytest.approx(watch.rates[2 * STEPS :])
    assert watch.rates[0] == 1e-3 and watch.rates[2 * STEPS - 1] < 1e-4


def test_schedule_that_cannot_start_anew(tmp_path):
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"}
    with pytest.raises(
        ValueError,
        match=r"lr_scheduler_type=reduce_lr_on_plateau cannot start anew at a stage; use linear or cosine",
    ):
        trainer_of(tmp_path, evaluates=True, objective="deebert", **plateau).train()


# ---- interrupted and resumed


class SaveAt(TrainerCallback):
    """Writes a checkpoint after the steps that are named."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **rest):
        control.should_save |= state.global_step in self.steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"objective": "deebert"}, [3, 2 * STEPS, 2 * STEPS + 3]),  # the second is the last of stage one
        ({"objective": "romebert", "gradient_accumulation_steps": 2}, [1, 3]),
        ({"objective": "alternating"}, [3]),
    ],
)
def test_resumed_training_ends_with_the_same_weights(tmp_path, settings, steps):
    whole = trainer_of(tmp_path / "whole", watch=SaveAt(steps), **settings)
    whole.train()
    for step in steps:
        resumed = trainer_of(tmp_path / "resumed", model=build(num_labels=2, exit_pooling="cls"), **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert resumed.state.global_step == whole.state.global_step
        weights = resumed.model.state_dict()
        for name, weight in whole.model.state_dict().items():
            assert torch.equal(weight, weights[name]), (step, name)


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"objective": "deebeert"},
            "objective='deebeert' is unknown; choose from romebert, joint, last, deebert, mixed, alternating",
        ),
        (
            {"gradient_regularization": "on"},
            "gradient_regularization='on' is unknown; choose from protect_exits, protect_last, off",
        ),
        ({"teacher": "first"}, "teacher='first' is unknown; choose from last, next"),
        ({"exit_weights": "deep"}, "exit_weights='deep' is unknown; choose from uniform, depth"),
        ({"exit_scale": 0.0}, "exit_scale=0.0 is not above 0"),
        (
            {"distillation_reduction": "sum"},
            "distillation_reduction='sum' is unknown; choose from batchmean, mean",
        ),
        ({"distillation_weight": 1.1}, r"distillation_weight=1.1 is not in 0\.\.1"),
        ({"distillation_weight": -0.1}, r"distillation_weight=-0.1 is not in 0\.\.1"),
        ({"distillation_weight": 1.1, "objective": "joint"}, r"distillation_weight=1.1 is not in 0\.\.1"),
        ({"distillation_weight": float("nan")}, r"distillation_weight=nan is not in 0\.\.1"),
        ({"distillation_temperature": 0.0}, "distillation_temperature=0.0 is not above 0"),
        ({"distillation_temperature": -1.0}, "distillation_temperature=-1.0 is not above 0"),
        ({"distillation_temperature": float("nan")}, "distillation_temperature=nan is not above 0"),
        ({"distillation_temperature": float("inf")}, "distillation_temperature=inf is not above 0"),
        ({"label_smoothing_factor": 1.0}, r"label_smoothing=1.0 is not in 0\.\.1"),
        ({"non_finite": "ignore"}, "non_finite='ignore' is unknown; choose from stop, skip"),
        *(
            (
                {"teacher": "next", "objective": objective},
                f"teacher='next' has no meaning for objective='{objective}', .* Leave teacher out, or use"
                " objective='romebert'",
            )
            for objective in ("joint", "last", "deebert", "alternating")
        ),
    ],
)
def test_arguments_without_meaning(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        RomeBertTrainingArguments(str(tmp_path), **settings)


@pytest.mark.parametrize("objective", ["joint", "last", "deebert", "alternating", "romebert", "mixed"])
def test_a_projection_without_two_gradients_is_told(tmp_path, objective, caplog):
    RomeBertTrainingArguments(str(tmp_path), objective=objective, gradient_regularization="protect_last")
    told = f"has no effect with objective='{objective}', which has no two gradients" in caplog.text
    assert told is (objective not in ("romebert", "mixed"))


@pytest.mark.parametrize(
    "settings", [{"num_labels": 1}, {"problem_type": "multi_label_classification"}], ids=["number", "several"]
)
def test_smoothing_is_of_a_single_label(tmp_path, settings):
    arguments = RomeBertTrainingArguments(str(tmp_path), label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="only a single label of several classes can be smoothed"):
        RomeBertTrainer(build(**settings), arguments)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_default_teacher_goes_with_every_objective(tmp_path, objective):
    assert RomeBertTrainingArguments(str(tmp_path), objective=objective).teacher == "last"
    assert RomeBertTrainingArguments(str(tmp_path), teacher="next").exit_loss().teacher == "next"


def test_objectives_that_freeze_let_distributed_training_know(tmp_path):
    """With checkpointing the library would expect a gradient of every weight in every step."""
    found = {}
    for objective in OBJECTIVES:
        found[objective] = RomeBertTrainingArguments(
            str(tmp_path), objective=objective
        ).ddp_find_unused_parameters
    assert found == {
        **{"romebert": False, "joint": False},
        **{"last": True, "deebert": True, "mixed": True, "alternating": True},
    }
    asked = RomeBertTrainingArguments(str(tmp_path), objective="last", ddp_find_unused_parameters=False)
    assert asked.ddp_find_unused_parameters is False


def test_plain_training_arguments(tmp_path):
    with pytest.raises(
        TypeError, match="args is a TrainingArguments; RomeBertTrainer takes RomeBertTrainingArguments"
    ):
        RomeBertTrainer(build(), TrainingArguments(str(tmp_path), report_to="none", use_cpu=True))


def test_plain_bert(tmp_path):
    model = BertForSequenceClassification(tiny_backbone())
    with pytest.raises(TypeError, match="model is a BertForSequenceClassification; it is no RomeBERT model"):
        trainer_of(tmp_path, model=model)


def test_stage_without_anything_to_train(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"objective='deebert' has a stage .*exit_layers=\[4\] has none; use objective='last'",
    ):
        trainer_of(tmp_path, model=build(exit_layers=[LAYERS]), objective="deebert")


@pytest.mark.slow
def test_config_remembers_the_loss(tmp_path):
    settings = {
        "distillation_weight": 0.5,
        "distillation_temperature": 2.0,
        "teacher": "next",
        "exit_weights": "depth",
        "exit_scale": 0.3,
    }
    trainer = trainer_of(tmp_path, **settings, distillation_reduction="mean")
    trainer.train()
    config = trainer.model.config
    assert {name: getattr(config, name) for name in settings} == settings
    assert config.distillation_reduction == "mean"
    trainer = trainer_of(tmp_path, objective="joint")
    trainer.train()
    assert trainer.model.config.distillation_weight == 0.0  # it does not distil
    assert len(trainer.model.exits) == LAYERS


def test_exits_that_train_alone_are_weighed_against_nothing(tmp_path):
    losses = {name: trainer_of(tmp_path, objective=name, exit_scale=0.3)._exit_loss() for name in OBJECTIVES}
    scales = {name: loss.exit_scale for name, loss in losses.items()}
    assert scales.pop("deebert") == 1.0 and set(scales.values()) == {0.3}


def test_exit_reduction_of_version_0_1_is_read_as_exit_scale(tmp_path, caplog):
    transformers_logging.enable_propagation()
    trainer = trainer_of(tmp_path, exit_reduction="mean")
    transformers_logging.disable_propagation()
    assert (
        "exit_reduction='mean' is called exit_scale now: with 4 exits write exit_scale=0.3333" in caplog.text
    )
    assert (trainer.args.exit_scale, trainer.args.exit_reduction) == (1 / 3, None)
    assert trainer._exit_loss().exit_scale == 1 / 3
    assert trainer_of(tmp_path, exit_reduction="sum", exit_scale=0.5).args.exit_scale == 1.0
    with pytest.raises(ValueError, match="exit_reduction='max' is unknown; it was 'sum' or 'mean'"):
        trainer_of(tmp_path, exit_reduction="max")
