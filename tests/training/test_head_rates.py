"""`exit_learning_rate_factor`: the exits' heads learn at a rate of their own."""

import copy
import doctest

import pytest
import torch
from explicit import COLLATE, adapted, contrary, rows_of
from one_step import arguments

from modeling_romebert import RomeBertTrainer
from modeling_romebert.training import head_rates

ROWS = rows_of(16)


def trainer_of(folder, model=None, **settings):
    settings = {"max_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-2} | settings
    own = ("optimizers", "optimizer_cls_and_kwargs")
    given = {name: settings.pop(name) for name in own if name in settings}
    return RomeBertTrainer(
        contrary() if model is None else model,
        arguments(folder, **settings),
        train_dataset=ROWS,
        data_collator=COLLATE,
        **given,
    )


def steps_of(folder, model, **settings):
    """Plain gradient descent -> how far it moved each weight."""
    trainer = trainer_of(
        folder, copy.deepcopy(model), optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, **settings
    )
    trainer.train()
    before = dict(model.named_parameters())
    return {name: weight - before[name] for name, weight in trainer.model.named_parameters()}


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_heads_move_so_many_times_as_far_and_the_encoder_as_before(tmp_path, lora):
    model = adapted(contrary()) if lora else contrary()
    alike, apart = (
        steps_of(tmp_path, model, exit_learning_rate_factor=factor, gradient_regularization="off")
        for factor in (1, 10)
    )
    heads = [name for name in alike if "exits" in name.split(".") and alike[name].any()]
    assert len(heads) >= 2 * len(model.config.exit_layers) and len(heads) < len(alike)
    for name, moved in alike.items():
        torch.testing.assert_close(apart[name], moved * (10 if name in heads else 1), rtol=1e-3, atol=1e-7)


def test_the_ratio_holds_in_every_stage_and_at_every_step_of_the_schedule(tmp_path):
    trainer = trainer_of(
        tmp_path, objective="deebert", exit_learning_rate_factor=5, max_steps=3, warmup_steps=1
    )
    seen = []
    step = torch.optim.AdamW.step
    trainer.create_optimizer()
    assert isinstance(trainer.optimizer, torch.optim.AdamW)

    def noted(optimizer, *args, **kwargs):
        seen.append(tuple(group["lr"] for group in optimizer.param_groups))
        return step(optimizer, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", noted)
        trainer.train()
    assert len(seen) == 6  # two stages of three
    assert len({rates[0] for rates in seen}) > 2  # the schedule moves
    for rates in seen:
        assert len(rates) == 4  # with and without weight decay: the encoder's, the heads'
        assert rates == pytest.approx((rates[0], rates[0], 5 * rates[0], 5 * rates[0]))


def test_a_run_that_goes_on_ends_where_one_that_was_not_stopped_does(tmp_path):
    settings = {"exit_learning_rate_factor": 10, "max_steps": 4, "save_steps": 2, "save_strategy": "steps"}
    whole = trainer_of(tmp_path / "whole", **settings)
    whole.train()
    resumed = trainer_of(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    weights = resumed.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in whole.model.state_dict().items())


def test_a_checkpoint_of_other_groups_is_told_and_read_with_the_factor_it_had(tmp_path):
    settings = {"max_steps": 4, "save_steps": 2, "save_strategy": "steps"}
    trainer_of(tmp_path / "run", exit_learning_rate_factor=1, **settings).train()
    resumed = str(tmp_path / "run/checkpoint-2")
    other = trainer_of(tmp_path / "other", exit_learning_rate_factor=None, **settings)
    with pytest.raises(ValueError, match="is of a training with another exit_learning_rate_factor"):
        other.train(resume_from_checkpoint=resumed)
    trainer_of(tmp_path / "same", exit_learning_rate_factor=1, **settings).train(resumed)


def rates_of(trainer):
    """The learning rates of the encoder's weights, and of the exits'."""
    exits = {id(weight) for weight in head_rates.head_weights(trainer.model)}
    rates = {True: set(), False: set()}
    for group in trainer.optimizer.param_groups:
        for weight in group["params"]:
            rates[id(weight) in exits].add(group["initial_lr"])
    return rates[False], rates[True]


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_left_out_it_is_ten_and_the_card_tells_it(tmp_path, lora):
    model = adapted(contrary()) if lora else contrary()
    trainer = trainer_of(tmp_path, model, exit_learning_rate_factor=None)
    trainer.train()
    assert rates_of(trainer) == ({0.01}, {0.1})
    assert trainer.romebert.training_settings["exit_learning_rate_factor"] == 10


class Hides(torch.optim.SGD):
    """As those that move each weight in its backward pass, and hold none."""

    def __init__(self, params, lr):
        super().__init__([torch.zeros(1)], lr)


@pytest.mark.parametrize(
    ("frozen", "optimizer", "why"),
    [
        (None, Hides, "the exits' weights are not trained, or not held by the Hides"),
        ("exits", torch.optim.SGD, "the exits' weights are not trained, or not held by the SGD"),
        ("backbone", torch.optim.SGD, "nothing but the exits is trained, so learning_rate is theirs"),
    ],
)
def test_left_out_it_is_one_where_ten_would_be_wrong_and_that_is_said(
    tmp_path, caplog, frozen, optimizer, why
):
    model = contrary()
    if frozen is not None:
        getattr(model, frozen).requires_grad_(False)
    made_with = {"optimizer_cls_and_kwargs": (optimizer, {"lr": 0.01}), "gradient_regularization": "off"}
    trainer = trainer_of(tmp_path, model, exit_learning_rate_factor=None, **made_with)
    with caplog.at_level("WARNING"):
        trainer.create_optimizer()
    assert f"exit_learning_rate_factor is 1 in this training, not 10: {why}." in caplog.text
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.01}


def test_left_out_it_leaves_an_optimizer_of_ones_own_alone(tmp_path):
    model = contrary()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = trainer_of(tmp_path, model, exit_learning_rate_factor=None, optimizers=(optimizer, None))
    trainer.train()
    assert len(optimizer.param_groups) == 1 and optimizer.param_groups[0]["initial_lr"] == 0.1
    assert "exit_learning_rate_factor" not in trainer.romebert.training_settings


def test_what_it_does_not_go_with(tmp_path):
    optimizer = torch.optim.SGD(contrary().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="exit_learning_rate_factor=2 has no effect on an optimizer of your"):
        trainer_of(tmp_path, exit_learning_rate_factor=2, optimizers=(optimizer, None))
    with pytest.raises(ValueError, match=r"exit_learning_rate_factor=0.0 is not above 0 \(1 is the learning"):
        trainer_of(tmp_path, exit_learning_rate_factor=0)
    for weights in (list(contrary().parameters()), []):
        with pytest.raises(
            ValueError, match="exit_learning_rate_factor=2 does not go with a SGD that does not"
        ):
            head_rates.scale_rate(optimizer, weights, 2.0)
    assert head_rates.set_head_rate(optimizer, contrary(), None, default=10.0, deepspeed=True) == 1
    assert len(optimizer.param_groups) == 1  # as it was


def test_example_in_docstring():
    found = doctest.testmod(head_rates)
    assert found.attempted > 0 and found.failed == 0
