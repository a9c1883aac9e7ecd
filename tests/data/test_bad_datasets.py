"""What cannot be trained on is said before the first step; small batches that look odd train as any other."""

import logging
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from pairs import others_slow
from tiny import build, tiny_rows, tiny_tokenizer
from torch.utils.data import IterableDataset
from transformers import DataCollatorWithPadding

from modeling_romebert import OBJECTIVES, RomeBertTrainer, RomeBertTrainingArguments

MULTI, REGRESSION = "multi_label_classification", "regression"


class Rows(torch.utils.data.Dataset):
    """A map-style dataset of which only single rows can be had, and that says which."""

    def __init__(self, rows):
        self.rows, self.seen = rows, []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.seen.append(index)
        return self.rows[index]


class Stream(IterableDataset):
    """An iterable dataset."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def streamed(rows):
    return Dataset.from_list(rows).to_iterable_dataset()


KINDS = {
    "list": list,
    "datasets": Dataset.from_list,
    "map-style": Rows,
    "iterable": Stream,
    "streamed": streamed,
}
READ_WHOLE = ("list", "datasets")


def relabelled(rows, labels):
    return [row | {"labels": label} for row, label in zip(rows, labels, strict=True)]


def trainer_of(folder, dataset, evaluated=None, num_labels=2, problem_type=None, collator=None, **settings):
    quiet = {
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    sizes = {"max_steps": 2, "per_device_train_batch_size": 4}
    trainer = RomeBertTrainer(
        build(num_labels=num_labels, problem_type=problem_type),
        RomeBertTrainingArguments(str(folder), **quiet | sizes | settings),
        train_dataset=dataset,
        eval_dataset=evaluated,
        processing_class=tiny_tokenizer(),
        data_collator=collator,
    )
    trainer.before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    return trainer


def assert_refused(trainer, message, error=ValueError):
    """With this message, and before any step."""
    with pytest.raises(error, match=message):
        trainer.train()
    assert trainer.state.global_step == 0
    assert all(
        torch.equal(weight, trainer.before[name]) for name, weight in trainer.model.state_dict().items()
    )


# ---- labels


@pytest.mark.parametrize("kind", KINDS)
def test_no_labels(tmp_path, kind):
    rows = [{name: value for name, value in row.items() if name != "labels"} for row in tiny_rows(8)]
    message = (
        r"train_dataset has no labels: its columns are input_ids, .*\. Name the one with "
        r"the labels `labels` or `label`"
    )
    assert_refused(trainer_of(tmp_path, KINDS[kind](rows)), message)


@pytest.mark.parametrize("kind", READ_WHOLE)
def test_the_row_is_named_before_the_first_step(tmp_path, kind):
    rows = relabelled(tiny_rows(8), [0, 1, 0, 1, 0, 1, 7, 0])
    assert_refused(
        trainer_of(tmp_path, KINDS[kind](rows)),
        r"train_dataset: row 6 has label 7; single_label_classification takes",
    )


@pytest.mark.parametrize("kind", ["map-style", "iterable", "streamed"])
def test_labels_of_other_datasets_are_seen_in_the_first_batch(tmp_path, kind):
    rows = relabelled(tiny_rows(4), [0, 1, 2, 0])
    assert_refused(
        trainer_of(tmp_path, KINDS[kind](rows)),
        r"train_dataset: row \d of a batch has label 2; .* takes class ids 0\.\.1",
    )


def test_one_row_of_a_map_style_dataset_is_looked_at(tmp_path):
    dataset = Rows(tiny_rows(8))
    trainer = trainer_of(tmp_path, dataset)
    trainer._check_datasets()
    assert dataset.seen == [0]


def its_source(rows):
    return rows


def one_by_one(rows):
    for row in rows:
        yield dict(row)


def from_it(rows):
    yield from rows


@pytest.mark.parametrize("read", [its_source, one_by_one, from_it])
def test_stream_that_can_be_read_once_loses_no_row(tmp_path, read):
    rows = iter(tiny_rows(8))

    class Once(IterableDataset):
        def __iter__(self):
            return read(rows)

    trainer = trainer_of(tmp_path, Once())
    trainer._check_datasets()
    assert len(list(rows)) == 8


class Stars(DataCollatorWithPadding):
    """Makes the labels of a column of its own."""

    def __call__(self, features):
        stars = [row.pop("stars") for row in features]
        return {**super().__call__(features), "labels": torch.tensor(stars) // 3}


def test_a_collator_built_on_one_of_transformers_may_make_the_labels(tmp_path):
    rows = [{**row, "stars": row["labels"] * 4} for row in tiny_rows(8)]
    for row in rows:
        del row["labels"]
    trainer = trainer_of(tmp_path, rows, collator=Stars(tiny_tokenizer()), remove_unused_columns=False)
    trainer.train()
    assert trainer.state.global_step == trainer.args.max_steps


@pytest.mark.parametrize("kind", READ_WHOLE)
@pytest.mark.slow
def test_one_class_trains_and_is_told(tmp_path, kind, caplog, monkeypatch):
    """As one does to check a loop; or by mistake, with the first rows of a sorted dataset."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    rows = relabelled(tiny_rows(8), [1] * 7 + [-100])
    trainer = trainer_of(tmp_path, KINDS[kind](rows), max_steps=8, learning_rate=1e-3)
    trainer.train()
    losses = [entry["loss_last"] for entry in trainer.state.log_history if "loss_last" in entry]
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert (
        "train_dataset: every row is of class 1" in caplog.text
        and "shuffle before taking a part" in caplog.text
    )


@pytest.mark.parametrize("kind", others_slow(*KINDS))
def test_one_row_is_learned_by_heart(tmp_path, kind, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    rows = KINDS[kind](tiny_rows(1))
    trainer = trainer_of(tmp_path, rows, max_steps=8, learning_rate=1e-2, lr_scheduler_type="constant")
    trainer.train()
    assert trainer.evaluate(rows)["eval_accuracy_mean"] == 1
    assert "every row is of class" not in caplog.text


def test_nothing_to_learn(tmp_path):
    rows = relabelled(tiny_rows(8), [-100] * 8)
    assert_refused(
        trainer_of(tmp_path, rows), r"every row has the label -100, which is none; there is nothing to learn"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], r"row 0 of a batch has no tokens"),
        ([5] * 70, r"row 0 of a batch has 70 tokens, .* for 64\. Tokenise with truncation=True"),
    ],
)
def test_rows_that_do_not_fit_the_model(tmp_path, kind, ids, message):
    assert_refused(trainer_of(tmp_path, KINDS[kind]([{"input_ids": ids, "labels": 0}])), message)


@pytest.mark.parametrize(
    ("num_labels", "labels", "problem_type"),
    [
        (1, [1.5] * 8, REGRESSION),  # one number only is no class
        (1, [3, 4] * 4, REGRESSION),
        (2, [[1.0, 0.0]] * 8, MULTI),
        (2, [0, 1, -100, 0] * 2, "single_label_classification"),
        (2, [np.int64(0), np.int64(1)] * 4, "single_label_classification"),
        (2, [torch.tensor(0), torch.tensor(1)] * 4, "single_label_classification"),
    ],
)
@pytest.mark.slow
def test_labels_that_are_fine(tmp_path, num_labels, labels, problem_type):
    trainer = trainer_of(tmp_path, relabelled(tiny_rows(8), labels), num_labels=num_labels)
    trainer.train()
    assert trainer.state.global_step == 2 and trainer.model.config.problem_type == problem_type


# ---- who makes the labels


@dataclass
class Scores:
    """A collator that makes labels out of another column."""

    def __call__(self, rows):
        scores = [row.pop("score") for row in rows]
        return DataCollatorWithPadding(tiny_tokenizer())(rows) | {
            "labels": torch.tensor([int(score > 0.5) for score in scores])
        }


def test_collator_of_one_s_own_may_make_the_labels(tmp_path):
    rows = [{"input_ids": row["input_ids"], "score": number / 8} for number, row in enumerate(tiny_rows(8))]
    trainer = trainer_of(tmp_path, rows, collator=Scores(), remove_unused_columns=False)
    trainer.train()
    assert trainer.state.global_step == 2


def test_collator_of_one_s_own_that_makes_none(tmp_path):
    trainer = trainer_of(
        tmp_path,
        tiny_rows(8),
        collator=lambda rows: {"input_ids": torch.ones(len(rows), 3, dtype=torch.long)},
    )
    assert_refused(trainer, r"the batch has no labels; the dataset needs a column `labels`")


def test_transform_may_make_the_labels(tmp_path):
    rows = Dataset.from_list([{"input_ids": row["input_ids"], "word": "a"} for row in tiny_rows(8)])
    rows.set_transform(
        lambda batch: {
            "input_ids": batch["input_ids"],
            "labels": [len(ids) % 2 for ids in batch["input_ids"]],
        }
    )
    trainer = trainer_of(tmp_path, rows, remove_unused_columns=False)
    trainer.train()
    assert trainer.state.global_step == 2


# ---- rows


@pytest.mark.parametrize("kind", ["list", "datasets", "map-style"])
def test_empty_dataset(tmp_path, kind):
    empty = Dataset.from_list(tiny_rows(2)).select([]) if kind == "datasets" else KINDS[kind]([])
    assert_refused(
        trainer_of(tmp_path, empty),
        r"train_dataset has no rows; check the split, and the filters that made it",
    )


def test_dataset_of_several_splits(tmp_path):
    splits = DatasetDict(train=Dataset.from_list(tiny_rows(4)), test=Dataset.from_list(tiny_rows(4)))
    trainer = trainer_of(tmp_path, tiny_rows(4))
    trainer.train_dataset = splits
    assert_refused(trainer, "train_dataset is a DatasetDict; give one of its splits: train, test")


def test_no_whole_batch(tmp_path):
    trainer = trainer_of(tmp_path, tiny_rows(3), dataloader_drop_last=True)
    message = (
        r"train_dataset has 3 rows, less than one batch of 4, .* "
        r"dataloader_drop_last=True .* per_device_train_batch_size"
    )
    assert_refused(trainer, message)


@pytest.mark.parametrize("batch", others_slow(1, 3))  # 3 of 7 rows: one row is left for the last batch
@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.slow
def test_batch_of_one_row(tmp_path, objective, batch):
    """It is a mean over one row; nothing in the loss needs a second."""
    rows = tiny_rows(7)
    settings = {
        "objective": objective,
        "max_steps": -1,
        "num_train_epochs": 1,
        "per_device_train_batch_size": batch,
    }
    trainer = trainer_of(
        tmp_path, rows, rows, eval_strategy="epoch", per_device_eval_batch_size=batch, **settings
    )
    trainer.train()
    stages = len(OBJECTIVES[objective].stages)
    assert trainer.state.global_step == stages * -(-7 // batch)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(np.isfinite(entry["loss"]) and np.isfinite(entry["loss_exits"]) for entry in logs)
    assert trainer.predict(rows[:1]).predictions.shape == (1, 2)


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "label"), [(REGRESSION, 1, 0.5), (MULTI, 2, [0.0, 1.0])]
)
@pytest.mark.slow
def test_batch_of_one_row_of_other_problems(tmp_path, problem_type, num_labels, label):
    rows = relabelled(tiny_rows(3), [label] * 3)
    trainer = trainer_of(
        tmp_path, rows, num_labels=num_labels, problem_type=problem_type, per_device_train_batch_size=1
    )
    trainer.train()
    assert all(np.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)


# ---- evaluation during training


@pytest.mark.parametrize(
    ("evaluated", "message"),
    [
        ([], "eval_dataset has no rows"),
        (relabelled(tiny_rows(4), ["good"] * 4), "eval_dataset: row 0 has label 'good'"),
        (relabelled(tiny_rows(4), [0, 1, 2, 0]), "eval_dataset: row 2 has label 2"),
        ([{"input_ids": [2, 3]}], "eval_dataset has no labels: its columns are input_ids"),
        (
            {"seen": tiny_rows(4), "unseen": relabelled(tiny_rows(4), [0, 1, 2, 0])},
            r"eval_dataset\['unseen'\]: row 2 has label 2",
        ),
    ],
)
@pytest.mark.slow
def test_evaluation_that_would_fail_later(tmp_path, evaluated, message):
    assert_refused(trainer_of(tmp_path, tiny_rows(8), evaluated, eval_strategy="steps"), message)


def test_evaluation_takes_one_class(tmp_path):
    rows = relabelled(tiny_rows(4), [1] * 4)
    trainer = trainer_of(tmp_path, tiny_rows(8), rows, eval_strategy="steps", eval_steps=2)
    trainer.train()
    assert any("eval_accuracy" in entry for entry in trainer.state.log_history)
