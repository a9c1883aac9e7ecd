"""Whatever writes a model writes its card: evaluated, trained, or neither, and never over a text of the user's own."""

from pathlib import Path

from tiny import build, tiny_rows, tiny_texts, tiny_tokenizer
from transformers import DataCollatorWithPadding

from modeling_romebert import EarlyExitPipeline, RomeBertTrainer, RomeBertTrainingArguments, evaluate_exits

NOT_EVALUATED = "This model has not been evaluated."


def card(folder) -> str:
    return Path(folder, "README.md").read_text(encoding="utf-8")


def evaluated():
    model = build(num_labels=2)
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(tiny_texts(20))]
    return model, evaluate_exits(model, rows, tiny_tokenizer(), progress=False)


def trainer(tmp_path, model) -> RomeBertTrainer:
    arguments = RomeBertTrainingArguments(
        str(tmp_path / "run"), max_steps=2, use_cpu=True, report_to="none", save_strategy="no", learning_rate=0.00123
    )
    tokenizer = tiny_tokenizer()
    return RomeBertTrainer(
        model, arguments, train_dataset=tiny_rows(8), data_collator=DataCollatorWithPadding(tokenizer), processing_class=tokenizer
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
