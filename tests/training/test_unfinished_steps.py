"""A step that did not end leaves nothing behind, whatever ended it; and one without a label moves nothing."""

import copy
from contextlib import nullcontext

import pytest
import torch
from explicit import COLLATE, contrary, rows_of, train
from tiny import PAPER
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from modeling_romebert import RomeBertTrainer, RomeBertTrainingArguments

ROWS = rows_of(24)
UNLABELLED = [row | {"labels": -100} for row in rows_of(8)[4:]]


class Ending(TrainerCallback):
    """Ends the first step after its first micro-batch, once."""

    def __init__(self, how):
        self.how, self.left = how, 1

    def on_substep_end(self, args, state, control, **rest):
        if self.left and state.global_step == 0:
            self.left = 0
            if isinstance(self.how, BaseException):
                raise self.how
            setattr(control, self.how, True)


def trainer_of(folder, model, rows=ROWS, callbacks=(), **settings):
    quiet = {
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    order = {
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 3,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return RomeBertTrainer(
        model,
        RomeBertTrainingArguments(
            str(folder), **quiet | PAPER | order | {"max_grad_norm": 0.0, "max_steps": 1} | settings
        ),
        train_dataset=rows,
        data_collator=COLLATE,
        optimizers=(optimizer, LambdaLR(optimizer, lambda step: 1.0)),
        callbacks=list(callbacks),
    )


def trained(folder, **settings):
    trainer = trainer_of(folder, contrary(), **settings)
    trainer.train()
    return trainer.model.state_dict()


def assert_same(model, expected):
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6, msg=name)


OUT_OF_MEMORY = RuntimeError("DefaultCPUAllocator: can't allocate memory")


def test_the_step_after_out_of_memory_is_that_of_a_fresh_trainer(tmp_path):
    settings = {"auto_find_batch_size": True}
    trainer = trainer_of(tmp_path, contrary(), callbacks=[Ending(OUT_OF_MEMORY)], **settings)
    trainer.train()
    assert trainer._train_batch_size < 4
    assert_same(trainer.model, trained(tmp_path, per_device_train_batch_size=trainer._train_batch_size))


@pytest.mark.parametrize(
    "how", [KeyboardInterrupt(), ValueError("of a callback"), "should_training_stop"], ids=repr
)
@pytest.mark.slow
def test_the_next_training_starts_afresh(tmp_path, how):
    trainer = trainer_of(tmp_path, contrary(), callbacks=[Ending(how)])
    with pytest.raises(type(how)) if isinstance(how, BaseException) else nullcontext():
        trainer.train()
    assert trainer.state.global_step == 0
    trainer.train()
    assert_same(trainer.model, trained(tmp_path))


@pytest.mark.parametrize("protect", ["protect_exits", "protect_last", "off"])
@pytest.mark.slow
def test_the_next_epoch_starts_afresh(tmp_path, protect):
    """The first of two epochs of two steps ends in its first step."""
    settings = {"gradient_regularization": protect}
    trainer = trainer_of(
        tmp_path, contrary(), callbacks=[Ending("should_epoch_stop")], max_steps=3, **settings
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert_same(trainer.model, trained(tmp_path, max_steps=2, **settings))


def test_what_a_stage_froze_is_free_after_an_error(tmp_path):
    trainer = trainer_of(
        tmp_path, contrary(), callbacks=[Ending(KeyboardInterrupt())], objective="alternating"
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert (
        all(parameter.requires_grad for parameter in trainer.model.parameters())
        and trainer.model.watches_exits
    )


# ---- micro-batches without a label


@pytest.mark.parametrize("regularization", ["protect_exits", "protect_last", "off"])
@pytest.mark.slow
def test_a_micro_batch_without_labels_adds_nothing_to_its_group(tmp_path, regularization):
    """A group of a labelled and an unlabelled micro-batch of equal size takes half the step of the labelled
    one alone.
    """
    settings = {"gradient_regularization": regularization, "num_train_epochs": 1, "max_steps": 1}
    base = contrary()
    ends = {}
    for name, rows, accumulation in (
        ("alone", ROWS[:4], 1),
        ("with", [*ROWS[:4], *UNLABELLED], 2),
        ("after", [*UNLABELLED, *ROWS[:4]], 2),
    ):
        trainer = trainer_of(
            tmp_path, copy.deepcopy(base), rows=rows, gradient_accumulation_steps=accumulation, **settings
        )
        trainer.train()
        ends[name] = trainer.model.state_dict()
        (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
        ends[name, "logged"] = entry["loss_last"], entry["loss_exits"]
    for name, start in base.state_dict().items():
        for end in ("with", "after"):
            torch.testing.assert_close(
                2 * (ends[end][name] - start), ends["alone"][name] - start, rtol=1e-4, atol=1e-6
            )
    assert (
        ends["with", "logged"] == ends["after", "logged"] == ends["alone", "logged"]
    )  # its zeros are in no mean


@pytest.mark.parametrize("objective", ["romebert", "joint", "last"])
def test_a_step_without_labels_moves_nothing_and_stops_nothing(tmp_path, objective):
    base = contrary()
    steps, trainer = train(copy.deepcopy(base), [*UNLABELLED, *ROWS[:4]], tmp_path, objective=objective)
    for name, gradient in steps.gradients[0].items():
        assert gradient is None or not gradient.any(), name
    first, second = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert first["loss"] == 0 and "loss_last" not in first and "gradient_cosine" not in first
    assert second["loss_last"] > 0 and trainer.state.global_step == 2
