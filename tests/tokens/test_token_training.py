"""Training of token classifiers: labels as they come, the same trainer, metrics per exit, self-sampling."""

import datasets
import pytest
import torch
from tiny import LAYERS
from tiny_tokens import TAGS, build_tokens, piece_tokenizer, tagged
from transformers import DataCollatorForTokenClassification

from modeling_romebert import (
    RomeBertConfig,
    RomeBertTrainer,
    RomeBertTrainingArguments,
    SelfSampling,
    SelfSamplingTrainer,
)
from modeling_romebert.data.checks import check_dataset
from modeling_romebert.data.token_labels import reader_for
from modeling_romebert.data.token_rows import read_token_rows, tokenize_words
from modeling_romebert.training.self_sampling import halt_layers

TOKENIZER = piece_tokenizer()


def rows_of(count, seed=0, **sizes):
    """Rows for a trainer: input_ids, labels, word_ids, ..."""
    rows = tagged(count, seed, **sizes)
    columns = tokenize_words(TOKENIZER, [row["tokens"] for row in rows], [row["labels"] for row in rows], 64)
    return datasets.Dataset.from_dict(columns)


def trainer_of(folder, model=None, kind=RomeBertTrainer, given=None, **settings):
    args = RomeBertTrainingArguments(
        str(folder),
        **{
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "learning_rate": 3e-3,
            "max_steps": 2,
            "per_device_train_batch_size": 8,
            "logging_steps": 1,
            **settings,
        },
    )
    data = {"train_dataset": rows_of(16), "eval_dataset": rows_of(8, seed=1), "processing_class": TOKENIZER}
    return kind(model or build_tokens(), args, **data, **given or {})


# ---- rows


def test_a_word_s_label_is_that_of_its_first_piece():
    columns = tokenize_words(TOKENIZER, [["abc", "d"], ["e"]], [[1, 2], [-100]])
    assert columns["labels"] == [[-100, 1, -100, -100, 2, -100], [-100, -100, -100]]
    assert columns["word_ids"] == [[-1, 0, 0, 0, 1, -1], [-1, 0, -1]]
    assert columns["input_ids"][1] == TOKENIZER("e")["input_ids"]


def test_words_are_cut_with_their_labels():
    columns = tokenize_words(TOKENIZER, [["abc", "d", "ef"]], [[1, 2, 3]], max_length=5)
    assert columns["labels"] == [[-100, 1, -100, -100, -100]]
    forty = tokenize_words(TOKENIZER, [["abcdefghij" * 4]], [[1]], max_length=64)
    assert forty["labels"] == [[-100, 1, *[-100] * 40]]


@pytest.mark.parametrize(
    ("words", "labels", "message"),
    [
        (["a", " ", "b"], [0, 0, 0], "row 3: the tokenizer makes no token of word 1, ' '"),
        (["a", "b"], [0], "row 3 has 1 labels for 2 words"),
    ],
)
def test_words_without_pieces_or_labels_are_refused(words, labels, message):
    with pytest.raises(ValueError, match=message):
        tokenize_words(TOKENIZER, [words], [labels], first_row=3)


CONFIG = RomeBertConfig(
    num_hidden_layers=1, id2label=dict(enumerate(TAGS)), exit_pooling="token", hidden_size=8
)


def test_labels_are_ids_or_names():
    read = reader_for(CONFIG)
    assert read(["B-PER", 2, -100, 0.0, torch.tensor(1)], "row 0") == [1, 2, -100, 0, 1]
    assert read(torch.tensor([1, -100]), "row 0") == [1, -100]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"labels": 3}, "row 1 has the label 3; a token classifier takes a list with one label per token"),
        (
            {"labels": ["O", "B-ORG"]},
            "row 1, token 1 has label 'B-ORG'; .* takes class ids 0..4, the names 'O'",
        ),
        ({"labels": [0, 5]}, "row 1, token 1 has label 5"),
        ({"labels": [0, -1]}, "row 1, token 1 has label -1"),
        ({"labels": [0, None]}, "row 1, token 1 has no label"),
        ({"labels": [0, 1], "input_ids": [2, 3, 4]}, "row 1 has 2 labels for 3 tokens"),
        ({"tokens": ["a"]}, "has no 'labels'"),
    ],
)
def test_labels_without_a_meaning_are_refused(row, message):
    with pytest.raises(ValueError, match=message):
        reader_for(CONFIG).of_row(row, "row 1")


def test_datasets_are_checked_and_name_the_classes():
    collator = DataCollatorForTokenClassification(TOKENIZER)
    unnamed = RomeBertConfig(num_hidden_layers=1, num_labels=3, exit_pooling="token", hidden_size=8)
    features = datasets.Features(
        {
            "input_ids": datasets.List(datasets.Value("int64")),
            "labels": datasets.List(datasets.ClassLabel(names=["O", "B-X", "I-X"])),
        }
    )
    rows = datasets.Dataset.from_dict({"input_ids": [[2, 5, 3]], "labels": [[0, 1, 2]]}, features=features)
    check_dataset(rows, "train_dataset", unnamed, collator)
    assert unnamed.id2label == {0: "O", 1: "B-X", 2: "I-X"}
    for labels, message in (
        ([[0, 7, 0]], "train_dataset: row 0, token 1 has label 7"),
        ([[-100] * 3], "every row has the label -100"),
    ):
        rows = datasets.Dataset.from_dict({"input_ids": [[2, 5, 3]], "labels": labels})
        with pytest.raises(ValueError, match=message):
            check_dataset(rows, "train_dataset", unnamed, collator)


def test_rows_are_read_as_words_or_as_tokens():
    model, rows = build_tokens(), tagged(4, longest=40)
    read = read_token_rows(model, rows, TOKENIZER)
    columns = tokenize_words(TOKENIZER, [r["tokens"] for r in rows], [r["labels"] for r in rows], 64)
    assert read.labels == columns["labels"]
    assert [one["word_ids"] for one in read.inputs] == columns["word_ids"]
    as_tokens = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    assert read_token_rows(model, as_tokens, TOKENIZER) == read
    without_words = [{k: v for k, v in row.items() if k != "word_ids"} for row in as_tokens]
    assert read_token_rows(model, without_words, TOKENIZER) == read
    for kind in ("numpy", "torch"):
        of_kind = datasets.Dataset.from_dict(columns).with_format(kind)
        assert read_token_rows(model, of_kind, TOKENIZER) == read
        bare = of_kind.remove_columns(["word_ids", "labels"])
        expected = bare.with_format(None)
        found, expected = (read_token_rows(model, one, TOKENIZER, False) for one in (bare, expected))
        assert found == expected and found.inputs[0]["word_ids"][0] == -1  # [CLS] is no word
    unlabelled = [{"tokens": row["tokens"]} for row in rows]
    assert read_token_rows(model, unlabelled, TOKENIZER, needs_labels=False).labels is None
    ignored = [*rows, {"tokens": ["a"], "labels": [-100]}]
    assert read_token_rows(model, ignored, TOKENIZER).ignored == 1


# ---- the trainer


def test_it_logs_and_reports_entities_per_exit(tmp_path):
    trainer = trainer_of(tmp_path, gradient_regularization="protect_exits")
    assert isinstance(trainer.data_collator, DataCollatorForTokenClassification)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert {
        "loss_last",
        "loss_exits",
        "gradient_cosine",
        *(f"loss_exit_{n}" for n in (1, 2, 3, 4)),
    } <= logged.keys()
    metrics = trainer.evaluate()
    for name in ("precision", "recall", "f1", "accuracy"):
        assert {f"eval_{name}", f"eval_{name}_mean", f"eval_{name}_exit_1"} <= metrics.keys()
    assert metrics["eval_f1"] == metrics[f"eval_f1_exit_{LAYERS}"]


def test_its_first_loss_is_the_model_s(tmp_path):
    model = build_tokens()
    trainer = trainer_of(
        tmp_path, model, max_steps=1, per_device_train_batch_size=16, objective="joint", exit_scale=1
    )
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    expected = trainer.compute_loss(model.train(), batch)
    labels, logits = batch["labels"], model.eval()(batch["input_ids"], batch["attention_mask"]).exit_logits
    flat = logits.transpose(1, 2)[labels != -100]  # (n, E, C)
    by_hand = sum(
        torch.nn.functional.cross_entropy(of_exit, labels[labels != -100]) for of_exit in flat.unbind(1)
    )
    model.train()
    assert expected.item() == pytest.approx(by_hand.item(), rel=0.3)  # dropout
    torch.testing.assert_close(trainer.compute_loss(model.eval(), batch), by_hand)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["romebert", "deebert", "alternating"])
def test_it_learns(tmp_path, objective):
    trainer = trainer_of(tmp_path, objective=objective, max_steps=60, per_device_train_batch_size=16)
    trainer.train()
    metrics = trainer.evaluate(rows_of(16))
    assert metrics["eval_accuracy"] > 0.9 and metrics["eval_accuracy_exit_1"] > 0.7


def test_balanced_weights_count_tokens(tmp_path):
    trainer = trainer_of(tmp_path, class_weights="balanced")
    trainer.train()
    labels = torch.tensor([label for row in rows_of(16)["labels"] for label in row if label != -100])
    expected = len(labels) / (len(TAGS) * torch.bincount(labels, minlength=len(TAGS)).double())
    assert trainer.model.exit_loss.class_weights == pytest.approx(expected.tolist())


# ---- self-sampling


@torch.no_grad()
def test_training_sees_tokens_halt_as_a_policy_lets_them():
    """Where the first exit's decisions need no copied states, halting is simulated as it is run."""
    model = build_tokens(exit_layers=[2])
    rows = rows_of(6)
    batch = DataCollatorForTokenClassification(TOKENIZER)(
        [{k: row[k] for k in ("input_ids", "attention_mask", "labels")} for row in rows]
    )
    mask = batch["attention_mask"]
    words = torch.tensor([row + [-1] * (mask.shape[1] - len(row)) for row in rows["word_ids"]])
    policy = {"name": "entropy", "threshold": 0.6, "unit": "token", "window": 3}
    expected = model(batch["input_ids"], mask, word_ids=words, exit_policy=policy)
    p = model(batch["input_ids"], mask).exit_logits.softmax(-1)
    u = -(p * p.log()).sum(-1) / torch.tensor(5.0).log()
    found = halt_layers(u, words, mask, [2, 4], torch.full((6,), 3), torch.full((6,), 0.6))
    attended = mask.bool()
    assert torch.equal(found[attended], expected.exit_layer[attended])
    assert {2, 4} == set(found[attended].tolist())
    exit_logits = model(batch["input_ids"], mask, halt_layers=found).exit_logits
    left = torch.where((found == 2)[..., None], exit_logits[:, 0], exit_logits[:, 1])
    torch.testing.assert_close(left[attended], expected.logits[attended], rtol=0, atol=1e-5)


def test_draws_are_within_what_is_asked():
    torch.manual_seed(0)
    windows, thresholds = SelfSampling((5, 9), (0.1, 0.2), full_depth=0.25, eager=0.25).draw(4000)
    assert set(windows.tolist()) == {5, 7, 9}
    assert thresholds[thresholds > 0].min() >= 0.1 and thresholds.max() <= 0.2
    assert (thresholds == 0).float().mean() == pytest.approx(0.25, abs=0.03)
    eager = (windows == 5) & (thresholds == torch.tensor(0.2))
    assert eager.float().mean() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"windows": (4, 9)}, "windows=.* give two odd numbers"),
        ({"thresholds": (0.3, 0.1)}, "thresholds=.* give two numbers in 0..1"),
        ({"full_depth": 0.8, "eager": 0.4}, "full_depth=0.8 and eager=0.4 are shares"),
    ],
)
def test_settings_of_self_sampling_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SelfSampling(**settings)


def second_stage(folder, **settings):
    first = build_tokens()
    given = {"first_stage": first, "sampling": SelfSampling((1, 5), (0.3, 0.7))}
    given |= settings.pop("given", {})
    return trainer_of(folder, build_tokens(), SelfSamplingTrainer, given, **settings)


def test_an_exit_is_trained_on_the_tokens_that_get_to_it(tmp_path):
    trainer = second_stage(tmp_path, objective="joint", max_steps=1)
    before = {name: value.clone() for name, value in trainer.first_stage.state_dict().items()}
    seen = []
    trainer.model.register_forward_hook(
        lambda _, args, kwargs, output: seen.append((kwargs, output)), with_kwargs=True
    )
    trainer.train()
    (kwargs, output), *_ = seen
    halts, exit_logits = kwargs["halt_layers"], output.exit_logits
    assert {1, LAYERS} <= set(halts.flatten().tolist())
    logged = trainer.state.log_history[0]
    batch = next(iter(trainer.get_train_dataloader()))
    assert "word_ids" in batch
    labels = trainer_labels(trainer, kwargs["input_ids"])
    for index, layer in enumerate(range(1, LAYERS + 1)):
        counts = (labels != -100) & (halts >= layer)
        expected = torch.nn.functional.cross_entropy(exit_logits[:, index][counts], labels[counts])
        assert logged[f"loss_exit_{layer}"] == pytest.approx(expected.item(), rel=1e-3)
    for name, value in trainer.first_stage.state_dict().items():
        assert torch.equal(value, before[name])


def trainer_labels(trainer, ids):
    """Labels of a batch, found again by its ids."""
    by_ids = {tuple(row["input_ids"]): row["labels"] for row in trainer.train_dataset}
    found = []
    for row in ids.tolist():
        own = next(key for key in by_ids if row[: len(key)] == list(key) and set(row[len(key) :]) <= {1})
        found.append(by_ids[own] + [-100] * (len(row) - len(own)))
    return torch.tensor(found)


def test_a_second_stage_that_makes_no_sense_is_refused(tmp_path):
    with pytest.raises(ValueError, match="objective='romebert': the second stage"):
        second_stage(tmp_path, objective="romebert").train()
    other = {"first_stage": build_tokens(exit_layers=[2])}
    with pytest.raises(ValueError, match="first_stage has exits after layers"):
        second_stage(tmp_path, objective="joint", given=other)
    model = build_tokens()
    with pytest.raises(ValueError, match="first_stage is the model that is trained"):
        trainer_of(tmp_path, model, SelfSamplingTrainer, {"first_stage": model}, objective="joint")
    own_loss = {"first_stage": build_tokens(), "compute_loss_func": lambda *_, **__: 0.0}
    with pytest.raises(ValueError, match="compute_loss_func is given, and the second stage counts only"):
        second_stage(tmp_path, objective="joint", given=own_loss)
    trainer = second_stage(tmp_path, objective="joint")
    trainer.train_dataset = trainer.train_dataset.remove_columns("word_ids")
    with pytest.raises(ValueError, match="the batch has no word_ids"):
        trainer.train()
