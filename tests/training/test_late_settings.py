"""Settings count as they are when a training or an evaluation starts: changed later, by a search, or for a
model made anew.
"""

import dataclasses

import optuna
import pytest
import torch
from one_step import (
    LR,
    SINGLE,
    arguments,
    assert_moved_along,
    batch_rows,
    contrary,
    expected_gradient,
    labels_for,
    two_losses,
)
from tiny import CLASSES, LAYERS, build

from modeling_romebert import ExitLoss, RomeBertTrainer

optuna.logging.set_verbosity(optuna.logging.WARNING)
ROWS = batch_rows(labels_for(SINGLE, 32))


def trainer_of(folder, model_init=contrary, rows=ROWS, evaluates=True, optimizer=torch.optim.SGD, **settings):
    """A trainer of one step of plain gradient descent, at a rate far above the rounding of the weights."""
    settings = {
        "max_steps": 1,
        "per_device_train_batch_size": len(rows),
        "optim": "sgd",
        "learning_rate": LR,
    } | settings
    settings |= {"lr_scheduler_type": "constant"}
    made = arguments(folder, **settings)
    return RomeBertTrainer(
        model_init=lambda: model_init(),
        args=made,
        train_dataset=rows,
        eval_dataset=rows if evaluates else None,
    )


def change(args, **settings):
    for name, value in settings.items():
        setattr(args, name, value)


@pytest.mark.parametrize(
    "settings", [{}, {"gradient_regularization": "off"}, {"gradient_regularization": "protect_last"}]
)
@pytest.mark.slow
def test_a_model_made_by_model_init_is_trained_as_the_arguments_now_say(tmp_path, settings):
    trainer = trainer_of(tmp_path, objective="joint")
    first = trainer.model
    change(trainer.args, objective="romebert", **settings)
    trainer.train()
    assert trainer.model is not first
    regularization = settings.get("gradient_regularization", "protect_exits")
    assert_moved_along(contrary(), trainer.model, expected_gradient(contrary(), ROWS, regularization)[0])
    assert trainer.model.exit_loss.distillation_weight == trainer.model.config.distillation_weight == 0.9
    assert trainer.model.training_settings["objective"] == "romebert"


def test_evaluation_goes_by_the_arguments_as_they_are(tmp_path):
    trainer = trainer_of(tmp_path)
    change(trainer.args, objective="joint")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(
        sum(two_losses(contrary(), ROWS, distills=False)).item(), rel=1e-5
    )
    change(trainer.args, objective="last", label_smoothing_factor=0.3)
    smooth = ExitLoss(0.0, label_smoothing=0.3)
    logits = contrary()(
        **{name: torch.stack([row[name] for row in ROWS]) for name in ("input_ids", "attention_mask")}
    ).exit_logits
    labels = torch.stack([row["labels"] for row in ROWS])
    expected = smooth(logits, labels, exit_layers=[1, 2, 3, 4], problem_type=SINGLE).last.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "best"}, "objective='best' is unknown; choose from romebert"),
        ({"distillation_weight": 2.0}, r"distillation_weight=2.0 is not in 0\.\.1"),
        ({"objective": "joint", "teacher": "next"}, "teacher='next' has no meaning for objective='joint'"),
        ({"torch_compile": True}, "torch_compile=True does not go with gradient_regularization"),
        ({"class_weights": [1.0]}, "class_weights=.* has 1 entries, and the model has 3 classes"),
        ({"class_weights": "even"}, "class_weights=.* is unknown; give one number"),
        ({"non_finite": "hope"}, "non_finite='hope' is unknown"),
    ],
)
@pytest.mark.parametrize("start", ["train", "evaluate"])
@pytest.mark.slow
def test_what_means_nothing_is_refused_when_it_starts(tmp_path, settings, message, start):
    trainer = trainer_of(tmp_path)
    change(trainer.args, **settings)
    with pytest.raises(ValueError, match=message):
        getattr(trainer, start)()


def test_a_model_without_the_exits_of_a_stage_is_refused_when_it_is_made(tmp_path):
    made = iter([contrary(), contrary(exit_layers=[LAYERS])])
    trainer = trainer_of(tmp_path, model_init=lambda: next(made), objective="deebert")
    with pytest.raises(ValueError, match="objective='deebert' has a stage for the exits before the last"):
        trainer.train()


def test_distributed_training_knows_what_a_later_objective_freezes(tmp_path):
    trainer = trainer_of(tmp_path)
    assert trainer.args.ddp_find_unused_parameters is False
    change(trainer.args, objective="alternating")
    trainer.train()
    assert trainer.args.ddp_find_unused_parameters is True
    assert trainer.accelerator.ddp_handler.find_unused_parameters is True


# ---- a search


class Trials(list):
    """What each trial of a search trained with, and the model that came out."""

    def __init__(self, space):
        super().__init__()
        self.space = space

    def search(self, trainer, direction="minimize", **more):
        """Every point of the space, in its order."""

        def points(trial):
            return {name: trial.suggest_categorical(name, values) for name, values in self.space.items()}

        started = trainer._start_run

        def note():
            started()
            self.append((dataclasses.replace(trainer.romebert.exit_loss), trainer.model))

        trainer._start_run = note
        sampler = optuna.samplers.GridSampler(self.space, seed=0)
        count = len(next(iter(self.space.values())))
        return trainer.hyperparameter_search(
            points, n_trials=count, backend="optuna", direction=direction, sampler=sampler, **more
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("distillation_weight", [0.0, 0.25, 1]),
        ("gradient_regularization", ["off", "protect_last", "protect_exits"]),
        ("objective", ["last", "joint", "romebert"]),
        ("class_weights", ["balanced", "0.2 0.3 0.5", "None"]),
        ("exit_scale", [1, 0.25]),
        ("exit_learning_rate_factor", [1, 0.5]),
    ],
)
def test_a_trial_trains_with_its_settings(tmp_path, name, values):
    """As a trainer does that was made with them."""
    trials = Trials({name: values})
    trials.search(trainer_of(tmp_path / "search", learning_rate=1.0, distillation_weight=1))
    assert len(trials) == len(values)
    ends = {}
    for value in values:
        alone = trainer_of(tmp_path / "alone", learning_rate=1.0, **{"distillation_weight": 1, name: value})
        alone.train()
        ends[value] = alone.model.exit_loss, alone.model.state_dict()
    taken = set()
    for loss, model in trials:
        same = [
            value
            for value, (of_value, weights) in ends.items()
            if loss == of_value
            and all(torch.equal(weight, model.state_dict()[key]) for key, weight in weights.items())
        ]
        assert len(same) == 1
        taken |= set(same)
    assert taken == set(values)


@pytest.mark.slow
def test_a_search_minimises_the_loss_and_maximises_the_metric_of_the_last_exit(tmp_path):
    space = {"learning_rate": [0.0, 1e-3]}
    lowest = Trials(space).search(trainer_of(tmp_path))
    assert lowest.hyperparameters["learning_rate"] == 1e-3
    trainer = trainer_of(tmp_path)
    best = Trials(space).search(trainer, direction="maximize")
    metrics = trainer_of(tmp_path).evaluate()
    assert 0 <= best.objective <= 1 and f"eval_accuracy_exit_{LAYERS}" in metrics
    assert trainer.compute_objective(metrics) == metrics["eval_accuracy"]
    with_own = trainer_of(tmp_path)
    with_own.compute_metrics = lambda prediction: {"wrong": 2.0, "right": 1.0}
    assert Trials(space).search(with_own).objective == 3.0


@pytest.mark.slow
def test_trials_with_other_losses_are_not_compared_by_them_in_silence(tmp_path, caplog):
    Trials({"learning_rate": [1e-3, 1e-4]}).search(trainer_of(tmp_path))
    assert "minimise different losses" not in caplog.text
    Trials({"distillation_weight": [0.1, 0.5, 0.9]}).search(trainer_of(tmp_path))
    assert caplog.text.count("direction='maximize'") == 1


def test_a_setting_given_as_a_whole_number_is_searched_as_a_number(tmp_path):
    args = trainer_of(tmp_path, distillation_weight=1, distillation_temperature=2).args
    assert type(args.distillation_weight)(0.5) == 0.5 and type(args.distillation_temperature)(2.5) == 2.5
    assert build(class_weights=[1.0] * CLASSES).exit_loss.class_weights == (1.0,) * CLASSES
