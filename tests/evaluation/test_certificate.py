"""A certificate is of the weights, exits and policy that it was made with, and goes when they do."""

import json

import pytest
import torch
from tiny import build, spread_exits, tiny_rows, tiny_texts, tiny_tokenizer

from modeling_romebert import (
    RomeBertForSequenceClassification,
    RomeBertTrainer,
    RomeBertTrainingArguments,
    calibrate,
)

TEXTS = tiny_texts(300, seed=5)


@pytest.fixture
def certified():
    """A model with a certificate."""
    model = spread_exits(build(num_labels=2, exit_pooling="mean"), TEXTS)
    rows = [{"text": text} for text in TEXTS]
    calibrate(
        model, rows, tiny_tokenizer(), risk="disagreement", max_drop=0.3, confidence=0.9, progress=False
    )
    assert model.config.calibration["certified"]
    return model


def saved(model, folder):
    """Policy and certificate in the config of a saved model, which its card tells too."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    certificate = config.get("calibration")
    assert ("Certified on 300 examples" in (folder / "README.md").read_text()) is (certificate is not None)
    return config["exit_policy"], certificate


def trained(model, folder):
    arguments = RomeBertTrainingArguments(str(folder / "run"), max_steps=1, report_to="none", use_cpu=True)
    RomeBertTrainer(model, arguments, train_dataset=tiny_rows(16), processing_class=tiny_tokenizer()).train()
    return model


def changed(model, folder):
    with torch.no_grad():
        model.exits["2"].classifier.bias += 1
    return model


def rounded(model, folder):
    return model.bfloat16()


def with_new_heads(model, folder):
    model.save_pretrained(folder / "two")
    return RomeBertForSequenceClassification.from_pretrained(
        folder / "two", num_labels=5, ignore_mismatched_sizes=True
    )


def test_a_copy_of_other_weights_costs_the_model_no_certificate(certified, tmp_path):
    halves = {name: weight.half() for name, weight in certified.state_dict().items()}
    certified.save_pretrained(tmp_path / "halves", state_dict=halves)
    assert json.loads((tmp_path / "halves" / "config.json").read_text())["calibration"] is None
    assert saved(certified, tmp_path / "whole")[1] is not None


@pytest.mark.parametrize("change", [trained, changed, rounded, with_new_heads])
def test_other_weights_have_no_certificate(certified, tmp_path, change, caplog):
    policy, certificate = saved(certified, tmp_path / "before")
    assert certificate == certified.config.calibration
    loaded = RomeBertForSequenceClassification.from_pretrained(tmp_path / "before")
    assert saved(loaded, tmp_path / "again") == (policy, certificate)
    assert "is left out" not in caplog.text
    assert saved(change(certified, tmp_path), tmp_path / "after") == (policy, None)
    assert caplog.text.count("The certificate of the exit policy is left out") == 1


def test_temperature_is_part_of_the_weights(tmp_path):
    model = spread_exits(build(num_labels=2, exit_pooling="mean"), TEXTS)
    rows = [{"text": text, "label": index % 2} for index, text in enumerate(TEXTS)]
    settings = {"max_drop": 0.3, "confidence": 0.8, "temperature": True, "progress": False}
    found = calibrate(model, rows, tiny_tokenizer(), risk="disagreement", **settings)
    model.save_pretrained(tmp_path)
    loaded = RomeBertForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.calibration["weights"] == found.weights is not None
