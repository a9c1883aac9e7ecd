"""LoRA adapters on the backbone: the shared weights are the adapters' matrices, and what is trained can be
saved and merged.
"""

import copy
from pathlib import Path

import pytest
import torch
from explicit import COLLATE, adapted, assert_exact, contrary, groups_of, rows_of, shared_names, train
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from saved_and_loaded import told
from tiny import tiny_tokenizer
from transformers import pipeline

from modeling_romebert import RomeBertForSequenceClassification, RomeBertTrainer, calibrate, evaluate_exits
from modeling_romebert.pretrained import inner_model
from modeling_romebert.training.training_run import shared_weights


def exit_logits(model, batch):
    return model.eval()(batch["input_ids"], batch["attention_mask"]).exit_logits


@pytest.mark.parametrize("protect", ["protect_exits", "protect_last"])
@pytest.mark.parametrize(
    ("pooling", "targets"), [("mean", ["query", "value"]), ("cls", ["query", "key", "value", "dense"])]
)
@pytest.mark.slow
def test_the_adapters_are_what_is_projected(tmp_path, pooling, targets, protect):
    model = adapted(contrary(exit_pooling=pooling), target_modules=targets)
    names = shared_names(model)
    shared = shared_weights(model)
    assert all(model.get_parameter(name) is weight for name, weight in zip(names, shared, strict=True))
    assert names and all(".lora_A." in name or ".lora_B." in name for name in names)
    rows = rows_of(18)
    settings = {"gradient_accumulation_steps": 3, "gradient_regularization": protect}
    steps, trainer = train(copy.deepcopy(model), rows, tmp_path, **settings)
    cosines = assert_exact(steps, model, groups_of(rows, 4, 3), protect)
    assert min(cosines) < -0.05
    moved = {
        name
        for name, weight in trainer.model.named_parameters()
        if not torch.equal(weight, model.get_parameter(name))
    }
    assert moved == {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name or ".modules_to_save." in name for name in moved)


def test_what_was_trained_is_saved_loaded_and_merged(tmp_path):
    base = contrary()
    batch = COLLATE(rows_of(8))
    _, trainer = train(adapted(base), rows_of(24), tmp_path / "run")
    trained = exit_logits(trainer.model, batch)
    assert (trained - exit_logits(base, batch)).abs().max() > 0.01
    trainer.save_model(str(tmp_path / "adapter"))
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapter"))
    assert torch.equal(exit_logits(loaded, batch), trained)
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    tiny_tokenizer().save_pretrained(tmp_path / "merged")
    plain = RomeBertForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in base.named_parameters()]
    torch.testing.assert_close(exit_logits(plain, batch), trained, rtol=1e-4, atol=1e-5)
    (result,) = pipeline("early-exit-classification", model=str(tmp_path / "merged"))(["a good film"])
    assert result["exit_layer"] == 5


def test_evaluation_and_early_exit(tmp_path):
    model = adapted(contrary())
    trainer = RomeBertTrainer(model, train(model, rows_of(8), tmp_path)[1].args, data_collator=COLLATE)
    metrics = trainer.evaluate(rows_of(12))
    assert [f"eval_accuracy_exit_{layer}" in metrics for layer in (1, 2, 3, 4, 5)] == [True] * 5
    batch = COLLATE(rows_of(6))
    outputs = model.eval()(**batch | {"labels": None}, exit_policy={"name": "confidence", "threshold": 0.0})
    assert outputs.exit_layer.tolist() == [1] * 6


@pytest.mark.parametrize("objective", ["romebert", "deebert"])
@pytest.mark.slow
def test_a_run_goes_on_from_its_checkpoint(tmp_path, objective):
    """Two steps of three, or of six in two stages, and then from the checkpoint of the first or fourth."""
    settings = {"objective": objective, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    _, whole = train(adapted(contrary(dropout=0.1)), rows_of(24), tmp_path, **settings)
    checkpoint = {"romebert": "checkpoint-1", "deebert": "checkpoint-4"}[objective]
    _, resumed = train(
        adapted(contrary(dropout=0.1)),
        rows_of(24),
        tmp_path,
        resume_from=str(tmp_path / checkpoint),
        **settings,
    )
    assert resumed.state.global_step == whole.state.global_step
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, resumed.model.get_parameter(name)), name


# ---- what is written on the model lands on the model


WRAPPERS = {
    "adapters": adapted,
    "data parallel": torch.nn.DataParallel,
    "compiled": torch.compile,
    "both": lambda model: torch.compile(adapted(model)),
    "bare": lambda model: model,
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_our_model_is_found_in_whatever_wraps_it(wrap):
    assert type(inner_model(wrap(contrary()))) is RomeBertForSequenceClassification


@pytest.mark.parametrize("other", [torch.nn.Linear(2, 2), "model", None], ids=str)
def test_where_there_is_none_it_is_said(other):
    with pytest.raises(
        TypeError, match=f"model is a {type(other).__name__}; it is no RomeBERT model, and holds none"
    ):
        inner_model(other)


@pytest.mark.parametrize("policy", ["entropy", None])
@pytest.mark.slow
def test_a_merged_model_s_card_tells_its_training_and_its_own_figures(tmp_path, policy):
    base = contrary()
    rows = rows_of(12)
    old = evaluate_exits(base, rows, tiny_tokenizer(), progress=False)
    _, trainer = train(
        get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["query"])), rows_of(24), tmp_path
    )
    new = evaluate_exits(trainer.model, rows, tiny_tokenizer(), progress=False)
    if policy:
        calibrate(trainer.model, rows, tiny_tokenizer(), policy=policy, progress=False)
    merged = trainer.model.merge_and_unload()
    assert merged.evaluation["exits"] == new.exits and merged.exit_loss == trainer.args.exit_loss()
    assert (merged.config.exit_policy is not None) == bool(policy)
    merged.save_pretrained(tmp_path / "merged")
    card = Path(tmp_path, "merged", "README.md").read_text()
    assert "| objective | romebert |" in card and "is not recorded" not in card
    assert (
        "This model has not been evaluated." in card and f"{old.mean:.4f}" not in card
    )  # merging rounds: other weights
    report = evaluate_exits(merged, rows, tiny_tokenizer(), progress=False)
    merged.save_pretrained(tmp_path / "merged")
    assert f"| mean | {report.mean:.4f} |" in Path(tmp_path, "merged", "README.md").read_text()


def test_a_calibration_that_adapters_would_leave_behind_is_said():
    of_peft, of_transformers, plain = adapted_again(contrary()), contrary(), contrary()
    of_transformers.add_adapter(LoraConfig(target_modules=["query"]))
    for model, with_adapters in (
        (of_peft, True),
        (of_transformers, True),
        (plain, False),
        (adapted_again(contrary()).merge_and_unload(), False),
    ):
        with told() as said:
            calibrate(model, rows_of(12), tiny_tokenizer(), risk="disagreement", progress=False)
        assert any("policy and certificate would stay behind" in one for one in said) == with_adapters


def test_an_adapter_names_the_checkpoint_it_started_from(tmp_path, encoder):
    contrary().save_pretrained(tmp_path / "ours")
    for start in (encoder, str(tmp_path / "ours")):
        model = adapted_again(RomeBertForSequenceClassification.from_pretrained(start))
        model.save_pretrained(tmp_path / "adapter")
        assert PeftConfig.from_pretrained(tmp_path / "adapter").base_model_name_or_path == start
    adapted_again(contrary()).save_pretrained(tmp_path / "adapter")
    # There is no checkpoint: older versions of peft say so with an empty name.
    assert not PeftConfig.from_pretrained(tmp_path / "adapter").base_model_name_or_path


def adapted_again(model):
    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
