"""A transformers that lacks, or no longer calls, what this package relies on is noticed at once."""

import importlib.util

import pytest
import torch
import transformers
from tiny import build, tiny_rows, tiny_tokenizer
from transformers import Trainer, masking_utils

from modeling_romebert import RomeBertTrainer, RomeBertTrainingArguments, layer_masks
from modeling_romebert.layer_masks import TESTED_TRANSFORMERS
from modeling_romebert.training.library_hooks import HOOKS

pytestmark = pytest.mark.slow


def trainer_of(folder, trainer_class=RomeBertTrainer, **settings):
    settings = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "max_steps": 2,
        "save_strategy": "no",
    } | settings
    args = RomeBertTrainingArguments(str(folder), **settings)
    return trainer_class(
        build(num_labels=2), args, train_dataset=tiny_rows(16), processing_class=tiny_tokenizer()
    )


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_that_the_library_does_not_have_is_refused_at_the_start(name, tmp_path, monkeypatch):
    monkeypatch.delattr(Trainer, name)
    message = (
        rf"overrides Trainer\.{name}, which transformers {transformers.__version__} does "
        rf"not have\. .*: {TESTED_TRANSFORMERS}\."
    )
    with pytest.raises(RuntimeError, match=message):
        trainer_of(tmp_path)


@pytest.mark.parametrize("name", [name for name, before in HOOKS.items() if before == "optimizer step"])
def test_a_hook_that_is_not_called_before_the_first_step_stops_the_run_there(name, tmp_path):
    trainer = trainer_of(tmp_path, without(name))
    before = [weight.clone() for weight in trainer.model.parameters()]
    with pytest.raises(
        RuntimeError, match=rf"Trainer\.{name}, .* did not call before its first optimizer step\. Install"
    ):
        trainer.train()
    assert all(torch.equal(*pair) for pair in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize("name", [name for name, before in HOOKS.items() if before == "checkpoint"])
def test_a_hook_that_is_not_called_for_the_first_checkpoint_stops_the_run_there(name, tmp_path):
    trainer = trainer_of(tmp_path, without(name), save_strategy="steps", save_steps=1)
    with pytest.raises(
        RuntimeError, match=rf"Trainer\.{name}, .* did not call before its first checkpoint\. Install"
    ):
        trainer.train()
    assert trainer.state.global_step == 1


def test_a_checkpoint_of_the_model_only_needs_no_state_of_the_random_numbers(tmp_path):
    trainer_of(tmp_path, save_strategy="steps", save_steps=1, save_only_model=True).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


def without(name: str) -> type:
    """The trainer as it is under a library that calls another method instead of the overridden one."""
    return type("Changed", (RomeBertTrainer,), {name: getattr(Trainer, name)})


def test_a_library_that_makes_masks_in_another_way_is_named(monkeypatch):
    monkeypatch.delattr(masking_utils, "create_bidirectional_sliding_window_mask")
    spec = importlib.util.spec_from_file_location("modeling_romebert.layer_masks_anew", layer_masks.__file__)
    message = (
        rf"transformers {transformers.__version__} "
        rf".*create_bidirectional_sliding_window_mask.*: {TESTED_TRANSFORMERS}\."
    )
    with pytest.raises(ImportError, match=message):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
