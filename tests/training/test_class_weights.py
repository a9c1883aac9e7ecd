"""Class weights and loss functions of one's own: at every exit, as the stock loss has them at its one."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from explicit import COLLATE
from one_step import (
    LR,
    MULTI,
    REGRESSION,
    SINGLE,
    arguments,
    assert_moved_along,
    batch_rows,
    contrary,
    gradients_of,
    labels_for,
    train_plainly,
)
from sklearn.utils.class_weight import compute_class_weight
from tiny import CLASSES, LAYERS, PAPER_LOSS, build
from torch.utils.data import IterableDataset, TensorDataset
from transformers import HfArgumentParser, Trainer, TrainingArguments

from modeling_romebert import (
    ExitLoss,
    RomeBertConfig,
    RomeBertForSequenceClassification,
    RomeBertTrainer,
    RomeBertTrainingArguments,
)
from modeling_romebert.data.labels import LabelReader
from modeling_romebert.training.class_weights import all_labels, balanced_weights, parse_class_weights

WEIGHTS = [0.3, 2.0, 0.7]
ROWS = batch_rows(labels_for(SINGLE, 32))
BATCH = {name: torch.stack([row[name] for row in ROWS]) for name in ("input_ids", "attention_mask")}
LABELS = torch.stack([row["labels"] for row in ROWS])


# ---- how they are given


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ([], None),
        (["--class_weights", "0.3", "0.7"], (0.3, 0.7)),
        (["--class_weights", "balanced"], "balanced"),
        (["--class_weights=balanced"], "balanced"),
        (["--class-weights", "1", "2", "3"], (1.0, 2.0, 3.0)),
    ],
)
def test_on_a_command_line(tmp_path, line, expected):
    (args,) = HfArgumentParser(RomeBertTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), *line]
    )
    assert parse_class_weights(args.class_weights) == expected
    (args,) = HfArgumentParser(RomeBertTrainingArguments).parse_dict(
        {"output_dir": str(tmp_path), "class_weights": expected}
    )
    assert parse_class_weights(args.class_weights) == expected


@pytest.mark.parametrize(
    "given",
    [
        [0.3, 0.7],
        (0.3, 0.7),
        np.array([0.3, 0.7]),
        torch.tensor([0.3, 0.7], dtype=torch.float64),
        "0.3, 0.7",
        "[0.3, 0.7]",
    ],
)
def test_in_any_form(given):
    assert parse_class_weights(given) == (0.3, 0.7)


def test_cast_by_a_search_to_the_type_of_the_value_before():
    assert parse_class_weights(list("balanced")) == "balanced" and parse_class_weights(str(None)) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("even", "class_weights=.* is unknown; give one number, 0 or more, per class, or 'balanced'"),
        ({0: 0.3, 1: 0.7}, "class_weights=.* is a dict; give one number"),
        ([0.3, None], "is unknown; give one number"),
        ([0.3, -1], "are not finite numbers of 0 or more"),
        ([], "are not finite numbers of 0 or more, some of them above 0"),
    ],
)
def test_what_is_neither_is_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, class_weights=given)


# ---- balanced


def test_balanced_is_scikit_learn_s():
    labels = torch.tensor([0, 2, 2, 1, 2, -100, 2, 0])
    counted = labels[labels != -100].numpy()
    expected = compute_class_weight("balanced", classes=np.arange(3), y=counted)
    assert balanced_weights(labels, 3, SINGLE, {}) == pytest.approx(expected.tolist())


def test_balanced_of_several_labels_is_negatives_over_positives():
    labels = torch.tensor([[1.0, 0], [1, 1], [1, 0], [0, 0]])
    assert balanced_weights(labels, 2, MULTI, {}) == (1 / 3, 3.0)


@pytest.mark.parametrize(
    ("labels", "problem_type", "missing"),
    [
        ([0, 0, 2], SINGLE, "fine"),
        ([[1.0, 0, 1], [0, 0, 0]], MULTI, "fine"),
        ([[1.0, 0, 1], [1, 1, 0]], MULTI, "dull"),
    ],
)
def test_a_class_without_examples_cannot_be_balanced(labels, problem_type, missing):
    names = {0: "dull", 1: "fine", 2: "good"}
    with pytest.raises(
        ValueError, match=f"class_weights='balanced' needs examples of every class.* has none of {missing};"
    ):
        balanced_weights(torch.tensor(labels), 3, problem_type, names)


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return len(ROWS)

    def __getitem__(self, index):
        return ROWS[index]


@pytest.mark.parametrize(
    "dataset",
    [
        ROWS,
        Rows(),
        Dataset.from_list([{"label": int(label), "text": "good"} for label in LABELS]),
        Dataset.from_dict({"labels": LABELS}).with_format("torch"),
    ],
    ids=["list", "torch", "datasets", "formatted"],
)
def test_labels_of_any_dataset_are_counted(dataset):
    assert torch.equal(all_labels(dataset, LabelReader(RomeBertConfig(num_labels=3))).long(), LABELS)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(ROWS)


@pytest.mark.parametrize("dataset", [Stream(), TensorDataset(LABELS), None])
def test_labels_that_cannot_all_be_read(tmp_path, dataset):
    with pytest.raises(
        ValueError,
        match=f"which is a {type(dataset).__name__} whose labels cannot all be read .*; give one number",
    ):
        all_labels(dataset, LabelReader(RomeBertConfig(num_labels=3)))


# ---- in the loss


def weighted_loss(model, weights, smoothing=0.0):
    """Of the objective `joint`, by torch."""
    logits = model(**BATCH).exit_logits
    weights = torch.tensor(weights)
    return sum(
        F.cross_entropy(z, LABELS, weight=weights, label_smoothing=smoothing) for z in logits.unbind(1)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("given", [WEIGHTS, "balanced"], ids=str)
def test_a_step_takes_the_gradient_of_the_weighted_loss(tmp_path, given, smoothing):
    before, after = contrary(), contrary()
    weights = (
        WEIGHTS
        if given != "balanced"
        else compute_class_weight("balanced", classes=np.arange(3), y=LABELS.numpy()).tolist()
    )
    settings = {"objective": "joint", "class_weights": given, "label_smoothing_factor": smoothing}
    settings["per_device_eval_batch_size"] = 32
    trainer = train_plainly(after, ROWS, tmp_path, **settings)
    loss = weighted_loss(before, weights, smoothing)
    assert_moved_along(before, after, gradients_of(before, loss))
    entry = trainer.state.log_history[0]
    assert entry["loss_last"] + entry["loss_exits"] == pytest.approx(loss.item(), rel=1e-5)
    # in the model, the config, the card and the evaluation as well
    assert after.config.class_weights == pytest.approx(weights)
    expected = weighted_loss(after.eval(), weights, smoothing).item()
    assert trainer.evaluate(ROWS)["eval_loss"] == pytest.approx(expected, rel=1e-4)
    after.save_pretrained(tmp_path / "model")
    loaded = RomeBertForSequenceClassification.from_pretrained(tmp_path / "model")
    loaded.exit_loss = dataclasses.replace(loaded.exit_loss, label_smoothing=smoothing)
    assert loaded(**BATCH, labels=LABELS).loss.item() == pytest.approx(expected, rel=1e-4)
    assert "| class_weights | [" in Path(tmp_path, "model", "README.md").read_text()


@pytest.mark.parametrize("given", [[1.0], "balanced"], ids=str)
def test_a_regression_has_no_classes(tmp_path, given):
    rows = batch_rows(labels_for(REGRESSION, 8))
    trainer = RomeBertTrainer(
        build(num_labels=1), arguments(tmp_path, class_weights=given), train_dataset=rows, eval_dataset=rows
    )
    for start in (trainer.train, trainer.evaluate):
        with pytest.raises(ValueError, match=r"class_weights=.*, but a regression has no classes; leave"):
            start()


def test_labels_of_a_collator_of_one_s_own_are_not_those_that_are_counted(tmp_path, caplog):
    rows = batch_rows(torch.arange(CLASSES).repeat(2))
    settings = arguments(tmp_path, class_weights="balanced", max_steps=1)
    for collator, told in ((COLLATE, False), (lambda batch: COLLATE(batch), True)):
        RomeBertTrainer(build(), settings, train_dataset=rows, data_collator=collator).train()
        assert ("a function, may make others of them: give one number per class" in caplog.text) is told


def test_evaluation_without_the_data_that_was_trained_on_takes_the_model_s_balance(tmp_path):
    model = build(class_weights=WEIGHTS)
    trainer = RomeBertTrainer(
        model, arguments(tmp_path, class_weights="balanced", objective="joint"), eval_dataset=ROWS
    )
    metrics = trainer.evaluate()
    batches = [slice(i, i + 8) for i in range(0, 32, 8)]
    expected = [weighted_loss_of(model, batch) for batch in batches]
    assert metrics["eval_loss"] == pytest.approx(np.mean(expected), rel=1e-4)


@torch.no_grad()
def weighted_loss_of(model, rows):
    logits = model.eval()(**{name: tensor[rows] for name, tensor in BATCH.items()}).exit_logits
    return sum(
        F.cross_entropy(z, LABELS[rows], weight=torch.tensor(WEIGHTS)).item() for z in logits.unbind(1)
    )


# ---- a loss function of one's own


def focal(outputs, labels, num_items_in_batch=None):
    """Focal loss, as people write it: a mean where the number of items is not told."""
    losses = F.cross_entropy(outputs.logits, labels, reduction="none")
    losses = (1 - torch.exp(-losses)) ** 2 * losses
    return losses.mean() if num_items_in_batch is None else losses.sum() / num_items_in_batch


def plainly(
    model, folder, trainer=RomeBertTrainer, kind=RomeBertTrainingArguments, accumulation=1, **settings
):
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    batch = {
        "per_device_train_batch_size": 32 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "max_steps": 1,
    }
    made = trainer(
        model,
        arguments(folder, kind, **batch | settings),
        train_dataset=ROWS,
        eval_dataset=ROWS,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
        compute_loss_func=focal,
    )
    made.train()
    return made


@pytest.mark.parametrize("accumulation", [1, 4])
def test_at_the_last_exit_it_is_what_the_stock_trainer_makes_of_it(tmp_path, accumulation):
    """Groups of micro-batches included, whose items the function divides by."""
    ours = plainly(contrary(), tmp_path, accumulation=accumulation, objective="last")
    stock = plainly(contrary(), tmp_path, Trainer, TrainingArguments, accumulation)
    for name, weight in stock.model.named_parameters():
        torch.testing.assert_close(ours.model.get_parameter(name), weight, rtol=1e-4, atol=1e-3, msg=name)
    assert ours.evaluate()["eval_loss"] == pytest.approx(stock.evaluate()["eval_loss"], rel=1e-4)


@pytest.mark.parametrize("regularization", ["off", "protect_exits"])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_every_exit_is_trained_by_it_and_distilled(tmp_path, accumulation, regularization):
    before = contrary()
    trainer = plainly(contrary(), tmp_path, accumulation=accumulation, gradient_regularization=regularization)
    logits = before(**BATCH).exit_logits
    per_exit = torch.stack([focal(type("Outputs", (), {"logits": z}), LABELS) for z in logits.unbind(1)])
    losses = ExitLoss(**PAPER_LOSS)(
        logits, LABELS, exit_layers=[1, 2, 3, 4], problem_type=SINGLE, per_exit=per_exit
    )
    entry = trainer.state.log_history[0]
    assert entry["loss_last"] == pytest.approx(per_exit[-1].item(), rel=1e-4)
    assert entry["loss_exits"] == pytest.approx(losses.exits.item(), rel=1e-4)
    assert [entry[f"loss_exit_{layer}"] for layer in range(1, LAYERS + 1)] == pytest.approx(
        per_exit.tolist(), rel=1e-4
    )
    if regularization == "off":
        assert_moved_along(before, trainer.model, gradients_of(before, losses.last + losses.exits))
    else:
        assert entry["projected"] in (0.0, 1.0)


def test_it_sees_one_exit_at_a_time(tmp_path):
    seen = []

    def note(outputs, labels, num_items_in_batch=None):
        seen.append((outputs["logits"].shape, outputs.exit_layer.unique().item(), int(num_items_in_batch)))
        return F.cross_entropy(outputs.logits, labels)

    RomeBertTrainer(build(), arguments(tmp_path), eval_dataset=ROWS[:8], compute_loss_func=note).evaluate()
    assert seen == [((8, CLASSES), layer, 8) for layer in range(1, LAYERS + 1)]


def test_it_can_weigh_classes_itself(tmp_path):
    with pytest.raises(ValueError, match="class_weights and compute_loss_func are both given"):
        RomeBertTrainer(build(), arguments(tmp_path, class_weights=WEIGHTS), compute_loss_func=focal)
