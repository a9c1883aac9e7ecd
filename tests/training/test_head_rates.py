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
    given = {name: settings.pop(name) for name in ("optimizers",) if name in settings}
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


def test_the_card_tells_it(tmp_path):
    trainer = trainer_of(tmp_path, exit_learning_rate_factor=10)
    assert trainer.args.for_card()["exit_learning_rate_factor"] == 10
    assert "exit_learning_rate_factor" not in trainer_of(tmp_path).args.for_card()


def test_what_it_does_not_go_with(tmp_path):
    optimizer = torch.optim.SGD(contrary().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="exit_learning_rate_factor=2 has no effect on an optimizer of your"):
        trainer_of(tmp_path, exit_learning_rate_factor=2, optimizers=(optimizer, None))
    with pytest.raises(ValueError, match=r"exit_learning_rate_factor=0.0 is not above 0 \(1 is the learning"):
        trainer_of(tmp_path, exit_learning_rate_factor=0)
    for weights in (contrary().parameters(), []):
        with pytest.raises(
            ValueError, match="exit_learning_rate_factor=2 does not go with a SGD that does not"
        ):
            head_rates.scale_rate(optimizer, weights, 2.0)
    assert len(optimizer.param_groups) == 1  # as it was


def test_example_in_docstring():
    found = doctest.testmod(head_rates)
    assert found.attempted > 0 and found.failed == 0
