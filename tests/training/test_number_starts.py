"""Where a regression starts: new exits answer the mean of the labels."""

import doctest

import pytest
import torch
from datasets import Dataset
from explicit import COLLATE, adapted, rows_of
from one_step import arguments
from tiny import build
from torch.utils.data import IterableDataset

from modeling_romebert import RomeBertTrainer
from modeling_romebert.data import dataset_labels
from modeling_romebert.training.number_starts import ROWS, head_biases

NUMBERS = [300.0 + number % 7 for number in range(16)]


def new_model(**settings):
    """Exits as a backbone gets them: biases of 0."""
    model = build(**{"num_labels": 1, "exit_pooling": "mean", "problem_type": "regression"} | settings)
    for head in model.exits.values():
        torch.nn.init.zeros_(head.classifier.bias)
    return model


def rows_with(labels):
    return [row | {"labels": label} for row, label in zip(rows_of(len(labels)), labels, strict=True)]


def trainer_of(folder, model, rows, **given):
    """One step that moves nothing."""
    settings = arguments(folder, max_steps=1, learning_rate=0.0, per_device_train_batch_size=4)
    return RomeBertTrainer(model, settings, train_dataset=rows, **{"data_collator": COLLATE, **given})


def starts(folder, model, rows, **given):
    """(E, C): the trained biases of the exits after one step that moved nothing."""
    trainer = trainer_of(folder, model, rows, **given)
    trainer.train()
    return torch.stack(head_biases(trainer.model)).detach().numpy()


@pytest.mark.parametrize(
    ("labels", "told"),
    [([3.0, 4.0, 5.0, -100.0] * 4, True), (NUMBERS, False), ([-99.0, -100.0] * 8, False)],
    ids=["the mark of no label", "none", "numbers below 0"],
)
def test_a_number_that_marks_rows_elsewhere_is_told(tmp_path, labels, told, caplog):
    starts(tmp_path, new_model(), rows_with(labels))
    assert ("Some labels are -100, which in a regression is a number as any other" in caplog.text) is told


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_new_exits_answer_the_mean_of_the_labels(tmp_path, lora):
    model = adapted(new_model()) if lora else new_model()
    found = starts(tmp_path, model, rows_with(NUMBERS))
    assert found.shape == (4, 1)
    assert found == pytest.approx(torch.full((4, 1), sum(NUMBERS) / 16).numpy())


def test_several_numbers_each_have_their_mean_and_a_problem_left_open_is_one(tmp_path):
    pairs = [[number, -1.0] for number in NUMBERS]
    found = starts(tmp_path / "two", new_model(num_labels=2), rows_with(pairs))
    assert found == pytest.approx(torch.tensor(pairs).mean(dim=0).expand(4, 2).numpy())
    found = starts(tmp_path / "open", new_model(problem_type=None), rows_with(NUMBERS))
    assert found == pytest.approx(torch.full((4, 1), sum(NUMBERS) / 16).numpy())


def test_exits_that_are_not_new_or_frozen_or_of_classes_stay(tmp_path):
    model = new_model()
    torch.nn.init.ones_(model.exits["1"].classifier.bias)
    model.exits["2"].requires_grad_(False)
    starts(tmp_path / "numbers", model, rows_with(NUMBERS))
    found = [head.classifier.bias.item() for head in model.exits.values()]
    assert found == pytest.approx([1.0, 0.0, *[sum(NUMBERS) / 16] * 2])
    classes = new_model(num_labels=3, problem_type=None)
    assert not starts(tmp_path / "classes", classes, rows_with([2] * 8)).any()


def test_a_loss_of_ones_own_gives_answers_another_meaning(tmp_path):
    def of_logarithms(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.poisson_nll_loss(outputs["logits"].squeeze(-1), labels)

    found = starts(tmp_path, new_model(), rows_with(NUMBERS), compute_loss_func=of_logarithms)
    assert not found.any()


def test_a_second_training_goes_on_where_the_first_ended(tmp_path):
    model = new_model()
    starts(tmp_path, model, rows_with(NUMBERS))
    found = starts(tmp_path, model, rows_with([0.0] * 16))
    assert found == pytest.approx(torch.full((4, 1), sum(NUMBERS) / 16).numpy())


class Stream(IterableDataset):
    def __iter__(self):
        return iter(rows_with(NUMBERS))


def test_labels_that_cannot_be_read_beforehand_are_told(tmp_path, caplog):
    found = starts(tmp_path, new_model(), Stream())
    assert not found.any()
    assert "cannot be read beforehand (train_dataset is a Stream, data_collator a DataColl" in caplog.text
    assert "so the exits of this regression start at 0" in caplog.text


def test_a_collator_of_one_s_own_may_make_the_labels(tmp_path, caplog):
    """Those of the rows are then no numbers, or others, and say nothing."""

    def standardised(rows):
        batch = COLLATE([{name: value for name, value in row.items() if name != "labels"} for row in rows])
        return batch | {"labels": torch.tensor([float(row["labels"].split()[0]) - 303 for row in rows])}

    rows = rows_with([f"{number} stars" for number in NUMBERS])
    assert not starts(tmp_path, new_model(), rows, data_collator=standardised).any()
    assert "data_collator a function), so the exits of this regression start at 0" in caplog.text


def test_of_a_large_dataset_some_rows_are_looked_at(tmp_path):
    looked_at = []

    class Rows(list):
        def __getitem__(self, index):
            looked_at.append(index)
            return super().__getitem__(index)

    rows = Rows(rows_with(NUMBERS) * 200)
    trainer = trainer_of(tmp_path, new_model(), rows)
    trainer._start_run()
    assert torch.stack(head_biases(trainer.model)).mean().item() == pytest.approx(sum(NUMBERS) / 16, abs=0.2)
    assert len(set(looked_at)) == ROWS


def test_the_example_holds_and_columns_are_read_alone():
    assert doctest.testmod(dataset_labels).failed == 0
    read = dataset_labels.LabelReader(new_model().config)
    table = Dataset.from_dict({"label": NUMBERS, "other": ["x"] * 16})
    assert dataset_labels.read_labels(table, read, most=4).shape == (4,)
    assert dataset_labels.read_labels(table.remove_columns("label"), read) is None
