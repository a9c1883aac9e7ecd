"""Whatever writes a model writes its card: evaluated, trained, or neither, and never over a text of the
user's own.
"""

import copy
import json
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers.trainer
import transformers.utils.hub
from huggingface_hub import ModelCard
from tiny import build, tiny_rows, tiny_texts, tiny_tokenizer
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from modeling_romebert import (
    EarlyExitPipeline,
    ExitReport,
    RomeBertTrainer,
    RomeBertTrainingArguments,
    calibrate,
    evaluate_exits,
    make_policy,
)
from modeling_romebert.hub import CLOSURE, RECORD, weights_digest

NOT_EVALUATED = "This model has not been evaluated."


def card(folder) -> str:
    return Path(folder, "README.md").read_text(encoding="utf-8")


def evaluated():
    model = build(num_labels=2)
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(tiny_texts(20))]
    return model, evaluate_exits(model, rows, tiny_tokenizer(), progress=False)


def trainer(tmp_path, model, **settings) -> RomeBertTrainer:
    quiet = {"max_steps": 2, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    arguments = RomeBertTrainingArguments(
        str(tmp_path / "run"), **quiet | {"learning_rate": 0.00123} | settings
    )
    tokenizer = tiny_tokenizer()
    return RomeBertTrainer(
        model,
        arguments,
        train_dataset=tiny_rows(8),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )


def test_card_tells_the_evaluation(tmp_path):
    model, report = evaluated()
    model.save_pretrained(tmp_path)
    assert f"| mean | {report.mean:.4f} |" in card(tmp_path) and NOT_EVALUATED not in card(tmp_path)


def test_without_an_evaluation_the_card_says_so_and_pipelines_write_it_too(tmp_path):
    build().save_pretrained(tmp_path / "model")
    EarlyExitPipeline(model=build(), tokenizer=tiny_tokenizer()).save_pretrained(tmp_path / "pipeline")
    assert NOT_EVALUATED in card(tmp_path / "model") and NOT_EVALUATED in card(tmp_path / "pipeline")


def test_saving_a_loaded_model_again_keeps_the_card(tmp_path):
    model, _ = evaluated()
    model.save_pretrained(tmp_path)
    before = card(tmp_path)
    type(model).from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert card(tmp_path) == before


def test_training_makes_an_evaluation_untrue_and_is_told(tmp_path):
    model, _ = evaluated()
    run = trainer(tmp_path, model)
    run.train()
    assert model.evaluation is None
    run.save_model(tmp_path / "model")
    assert NOT_EVALUATED in card(tmp_path / "model") and "0.00123" in card(tmp_path / "model")
    run.create_model_card(license="apache-2.0", dataset="own reviews")
    assert 'license: "apache-2.0"' in card(tmp_path / "run") and "own reviews" in card(tmp_path / "run")


def test_own_readme_survives_every_save(tmp_path):
    model, _ = evaluated()
    own = "# My model\n\nHand-written.\n"
    for folder in (tmp_path / "model", tmp_path / "run"):
        folder.mkdir()
        (folder / "README.md").write_text(own)
    model.save_pretrained(tmp_path / "model")
    run = trainer(tmp_path, model)
    run.train()
    run.save_model()
    run.create_model_card()
    assert card(tmp_path / "model") == card(tmp_path / "run") == own


# ---- figures belong to weights


def stock_trainer(tmp_path, model, steps=1, **settings):
    quiet = {
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "max_steps": steps,
    }
    arguments = TrainingArguments(str(tmp_path / "stock"), **quiet | settings)
    return Trainer(
        model,
        arguments,
        train_dataset=tiny_rows(8),
        eval_dataset=tiny_rows(8),
        processing_class=tiny_tokenizer(),
    )


def train_by_stock(tmp_path, model):
    stock_trainer(tmp_path, model).train()


def train_by_hand(tmp_path, model):
    batch = DataCollatorWithPadding(tiny_tokenizer())(tiny_rows(8))
    model(**batch).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def change_data(tmp_path, model):
    """As merging adapters and averaging weights do."""
    model.exits["1"].classifier.bias.data.add_(1e-6)


def round_weights(tmp_path, model):
    model.bfloat16()


CHANGES = [train_by_stock, train_by_hand, change_data, round_weights]


@pytest.mark.parametrize("reload", [False, True], ids=["at-hand", "loaded"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.slow
def test_other_weights_do_not_get_the_figures(tmp_path, change, reload):
    """Saved over the folder of the weights that the figures are of, and elsewhere."""
    model, _ = evaluated()
    model.save_pretrained(tmp_path / "model")
    if reload:
        model = type(model).from_pretrained(tmp_path / "model")
    change(tmp_path, model)
    for folder in (tmp_path / "model", tmp_path / "elsewhere"):
        model.save_pretrained(folder)
        assert NOT_EVALUATED in card(folder) and "model-index" not in card(folder), folder
    again = type(model).from_pretrained(tmp_path / "model")
    again.save_pretrained(tmp_path / "again")
    assert NOT_EVALUATED in card(tmp_path / "again")


def save_elsewhere(model, folder):
    model.save_pretrained(folder)


def save_shards(model, folder):
    model.save_pretrained(folder, max_shard_size="20KB")


def save_as_trainer(model, folder):
    stock_trainer(folder.parent, model).save_model(folder)


def save_as_pipeline(model, folder):
    EarlyExitPipeline(model=model, tokenizer=tiny_tokenizer()).save_pretrained(folder)


def save_a_copy(model, folder):
    other = type(model)(copy.deepcopy(model.config))
    other._record = model._record
    other.load_state_dict(model.state_dict())
    other.save_pretrained(folder)


@pytest.mark.parametrize(
    "save", [save_elsewhere, save_shards, save_as_trainer, save_as_pipeline, save_a_copy]
)
@pytest.mark.slow
def test_the_same_weights_keep_figures_and_training(tmp_path, save):
    model, report = evaluated()
    run = trainer(tmp_path, model)
    run.train()
    report = evaluate_exits(
        run.model, [{"text": "good film", "label": 1}, {"text": "bad", "label": 0}], tiny_tokenizer()
    )
    model.save_pretrained(tmp_path / "first")
    loaded = type(model).from_pretrained(tmp_path / "first")
    save(loaded, tmp_path / "second")
    assert f"| mean | {report.mean:.4f} |" in card(tmp_path / "second") and "0.00123" in card(
        tmp_path / "second"
    )
    type(model).from_pretrained(tmp_path / "second").save_pretrained(tmp_path / "third")
    assert card(tmp_path / "third") == card(tmp_path / "second")


def test_more_digits_do_not_make_other_weights(tmp_path):
    model = build(num_labels=2).half().float()
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(tiny_texts(20))]
    report = evaluate_exits(model, rows, tiny_tokenizer(), progress=False)
    model.half().save_pretrained(tmp_path)
    assert f"| mean | {report.mean:.4f} |" in card(tmp_path)


def test_the_state_dict_that_is_saved_decides(tmp_path):
    model, report = evaluated()
    other = {
        name: weight + 1 if "classifier" in name else weight for name, weight in model.state_dict().items()
    }
    model.save_pretrained(tmp_path / "other", state_dict=other)
    model.save_pretrained(tmp_path / "same", state_dict=model.state_dict())
    assert NOT_EVALUATED in card(tmp_path / "other") and f"| mean | {report.mean:.4f} |" in card(
        tmp_path / "same"
    )


def test_checkpoints_tell_no_figures_of_other_weights_and_the_best_model_keeps_its_own(tmp_path):
    """The best is the first: its figures were noted before a training that does not better it."""
    model, _ = evaluated()
    model.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model")
    settings = {
        "save_strategy": "steps",
        "eval_strategy": "steps",
        "save_steps": 1,
        "eval_steps": 1,
        "load_best_model_at_end": True,
    }
    run = stock_trainer(tmp_path, loaded, steps=2, **settings)
    run.train()
    for checkpoint in (tmp_path / "stock").glob("checkpoint-*"):
        assert NOT_EVALUATED in card(checkpoint)
    best = type(model).from_pretrained(run.state.best_model_checkpoint)
    report = evaluate_exits(best, [{"text": "good film", "label": 1}], tiny_tokenizer(), progress=False)
    loaded.evaluation = report.to_dict()  # measured on the weights that the run ended with
    run.save_model(tmp_path / "end")
    assert f"| mean | {report.mean:.4f} |" in card(tmp_path / "end")


def test_fewer_exits_are_other_weights(tmp_path):
    model, _ = evaluated()
    model.save_pretrained(tmp_path / "model")
    type(model).from_pretrained(tmp_path / "model", exit_layers=[2, 4]).save_pretrained(tmp_path / "fewer")
    assert NOT_EVALUATED in card(tmp_path / "fewer")


def test_report_says_of_which_weights_it_is(tmp_path):
    model, report = evaluated()
    assert report.weights == weights_digest(model.state_dict())
    report.to_json(tmp_path / "exits.json")
    assert ExitReport.from_json(tmp_path / "exits.json").weights == report.weights
    change_data(tmp_path, model)
    model.evaluation = json.loads((tmp_path / "exits.json").read_text())  # of the weights before
    model.save_pretrained(tmp_path / "model")
    assert NOT_EVALUATED in card(tmp_path / "model")


def test_figures_of_a_policy_are_those_of_that_policy(tmp_path):
    model, report = evaluated()
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(tiny_texts(20))]
    calibrate(model, rows, tiny_tokenizer(), progress=False, max_drop=0.9)
    model.evaluation |= {"calibrated": {"cost": 0.4321, "metric": 0.8765}}
    model.save_pretrained(tmp_path)
    assert "0.8765" in card(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path)
    assert "0.8765" in card(tmp_path)
    for one in (model, loaded):
        one.config.exit_policy = {"name": "entropy", "threshold": 0.123}
        one.save_pretrained(tmp_path)
        assert "0.8765" not in card(tmp_path) and "What it costs has not been measured." in card(tmp_path)
        assert f"| mean | {report.mean:.4f} |" in card(tmp_path)


def test_record_holds_no_secrets_and_goes_with_what_it_told(tmp_path):
    model, _ = evaluated()
    model.evaluation |= {"model": "/home/ann/runs"}
    model.training_settings = {"seed": 3, "hub_token": "secret", "output_dir": "/home/ann"}
    model.save_pretrained(tmp_path)
    assert "secret" not in (text := (tmp_path / RECORD).read_text()) and "/home/ann" not in text
    build().save_pretrained(tmp_path)
    assert not (tmp_path / RECORD).exists() and NOT_EVALUATED in card(tmp_path)


def test_base_model_is_told_by_every_later_save(tmp_path):
    model = build(num_labels=2)
    model.config.backbone_config._name_or_path = "google-bert/bert-base-uncased"
    model.save_pretrained(tmp_path / "first")
    loaded = type(model).from_pretrained(tmp_path / "first")
    train_by_stock(tmp_path, loaded)
    loaded.save_pretrained(tmp_path / "second")
    assert card(tmp_path / "second") == card(
        tmp_path / "first"
    ) and "`google-bert/bert-base-uncased`" in card(tmp_path / "first")


def test_a_folder_of_another_model_does_not_tell_what_this_one_started_from(tmp_path):
    for name in ("google-bert/bert-base-uncased", "FacebookAI/roberta-base"):
        model = build(num_labels=2)
        model.config.backbone_config._name_or_path = name
        model.exits["1"].classifier.bias.data += len(name)
        model.training_settings = {"seed": 1}
        model.save_pretrained(tmp_path)
        assert f'base_model: "{name}"' in card(tmp_path)


@pytest.mark.parametrize(
    "policy",
    [
        {"name": "entropy", "threshold": torch.tensor(0.25)},
        {"name": "entropy", "thresholds": np.full(4, 0.25)},
        make_policy("entropy", threshold=0.25),
    ],
    ids=["tensor", "array", "object"],
)
def test_a_policy_in_any_form_keeps_its_figures(tmp_path, policy):
    model, report = evaluated()
    model.config.exit_policy = policy
    model.evaluation = {**report.to_dict(), "calibrated": {"cost": 0.5, "metric": 0.75}}
    model.save_pretrained(tmp_path / "first")
    loaded = type(model).from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    for folder in ("first", "second"):
        assert "cost 0.500" in card(tmp_path / folder) and "tensor" not in card(tmp_path / folder)


@pytest.mark.parametrize("there", ["nothing", "ours", "own"])
def test_push_to_hub_uploads_the_card(tmp_path, monkeypatch, there):
    """transformers writes over it with what the repository holds, or with a template."""
    old, _ = evaluated()
    old.save_pretrained(tmp_path / "old")
    cards = {"ours": card(tmp_path / "old"), "own": "---\nlicense: mit\n---\n# My model\n"}
    model = build(num_labels=2, exit_pooling="mean")

    class Hub:
        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": repo_id})

        def create_commit(self, operations, **_):
            (found,) = [
                operation.path_or_fileobj for operation in operations if operation.path_in_repo == "README.md"
            ]
            pushed.append(Path(found).read_text())

    def load(repo_id, **_):
        if there == "nothing":
            raise transformers.utils.hub.EntryNotFoundError("no card")
        return ModelCard(cards[there])

    pushed = []
    monkeypatch.setattr(transformers.utils.hub, "hf_api", Hub)
    monkeypatch.setattr(ModelCard, "load", load)
    model.push_to_hub("ann/critic")
    if there == "own":
        assert "# My model" in pushed[0] and "romebert" not in pushed[0]
    else:
        assert NOT_EVALUATED in pushed[0] and "mean" not in pushed[0].split("## Evaluation")[1].split("##")[0]


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "end"])
def test_what_is_uploaded_while_training_goes_on_loads_anywhere(tmp_path, monkeypatch, strategy):
    """A run that is killed leaves its last upload: code, card and record are with the weights there."""
    uploads = []

    class Hub:
        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path, path_in_repo="", **_):
            uploads.append((path_in_repo, {file.name for file in Path(folder_path).iterdir()}))
            done = Future()
            done.set_result(None)
            return done

    monkeypatch.setattr(transformers.trainer, "hf_api", Hub, raising=False)
    for name in ("create_repo", "upload_folder"):  # as older versions call them
        monkeypatch.setattr(transformers.trainer, name, getattr(Hub(), name), raising=False)
    settings = {"push_to_hub": True, "hub_model_id": "ann/critic", "hub_strategy": strategy}
    run = trainer(tmp_path, build(), save_strategy="steps", save_steps=1, **settings)
    run.train()
    assert len(uploads) == {"every_save": 2, "checkpoint": 4, "end": 0}[strategy]
    for _, names in uploads:
        assert names >= {*CLOSURE, "config.json", "model.safetensors", "README.md", RECORD}
