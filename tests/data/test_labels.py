"""One rule for labels: training, evaluation and calibration read them alike, or refuse them with row, value
and what is allowed.
"""

import logging

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from tiny import build, tiny_rows, tiny_tokenizer
from transformers import Trainer

from modeling_romebert import RomeBertTrainer, RomeBertTrainingArguments, calibrate, evaluate_exits
from modeling_romebert.data.labels import LabelReader, default_names

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
NAMES = ["neg", "pos", "neutral"]
QUIET = {"tokenizer": tiny_tokenizer(), "progress": False}


def model_of(problem_type=SINGLE, names=NAMES, num_labels=3):
    if problem_type == REGRESSION:
        return build(num_labels=1, problem_type=REGRESSION)
    named = (
        {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        if names
        else {}
    )
    return build(num_labels=len(names or range(num_labels)), problem_type=problem_type, **named)


def rows_of(labels, column="label"):
    rows = [
        {name: value for name, value in row.items() if name != "labels"} for row in tiny_rows(len(labels))
    ]
    return [row | {column: label} for row, label in zip(rows, labels, strict=True)]


def trainer_of(model, dataset, folder, **settings):
    quiet = {
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "max_steps": 1,
    }
    arguments = RomeBertTrainingArguments(
        str(folder), per_device_train_batch_size=len(dataset), **quiet | settings
    )
    return RomeBertTrainer(
        model, arguments, train_dataset=dataset, eval_dataset=dataset, processing_class=tiny_tokenizer()
    )


def in_training(model, dataset, folder):
    """Labels of the batches that training sees, in the order of the dataset."""
    seen = []

    class Recording(RomeBertTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            seen.append(inputs["labels"])
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = trainer_of(model, dataset, folder, train_sampling_strategy="sequential")
    trainer.__class__ = Recording
    trainer.train()
    return torch.cat(seen).tolist()


def in_(function):
    def read(model, dataset, folder):
        seen = []

        def metric(predictions, references):
            seen.append(references)
            return 0.5

        policy = {"name": "patience", "tolerance": 1.0} if model.problem_type == REGRESSION else "entropy"
        function(model, dataset, metric=metric, policy=policy, **QUIET)
        return seen[0].tolist()

    return read


PLACES = {"training": in_training, "evaluation": in_(evaluate_exits), "calibration": in_(calibrate)}
everywhere = pytest.mark.parametrize("place", PLACES)


@everywhere
@pytest.mark.parametrize(
    ("problem_type", "given", "expected"),
    [
        (SINGLE, ["neg", "pos", " neutral", np.str_("pos")], [0, 1, 2, 1]),
        (SINGLE, [0, 1.0, np.int64(2), np.float32(1)], [0, 1, 2, 1]),
        (SINGLE, [[0], np.array([1]), torch.tensor(2), (1,)], [0, 1, 2, 1]),
        (
            MULTI,
            [[0, 1, 0.5], [True, False, False], np.ones(3), torch.zeros(3)],
            [[0, 1, 0.5], [1, 0, 0], [1, 1, 1], [0, 0, 0]],
        ),
        (MULTI, [["pos"], ["neg", "neutral"]], [[0, 1, 0], [1, 0, 1]]),
        (REGRESSION, [1, 0.5, [2.0], np.array([-100.0]), torch.tensor(4)], [1, 0.5, 2, -100, 4]),
    ],
)
def test_labels_with_one_meaning_are_mapped(problem_type, given, expected, place, tmp_path):
    assert PLACES[place](model_of(problem_type), rows_of(given), tmp_path) == expected


SINGLE_TAKES = r"takes class ids 0\.\.2, the names 'neg', 'pos', 'neutral', or -100 for none"


@everywhere
@pytest.mark.parametrize(
    ("problem_type", "wrong", "message"),
    [
        (SINGLE, "good", rf"row 1 has label 'good'; {SINGLE}.* {SINGLE_TAKES}"),
        (SINGLE, "1", rf"row 1 has label '1'; .*{SINGLE_TAKES}"),
        (
            SINGLE,
            -1,
            r"row 1 has label -1; .*-1 is the mark of GLUE's test rows, .* use a split that has labels",
        ),
        (SINGLE, 3, r"row 1 has label 3; .*The number of classes is config\.num_labels"),
        (SINGLE, True, r"row 1 has label True; "),
        (SINGLE, 0.5, r"row 1 has label 0\.5; "),
        (SINGLE, float("nan"), r"row 1 has label nan; .* dataset\.filter, or label them -100"),
        (SINGLE, float("inf"), r"row 1 has label inf; "),
        (
            SINGLE,
            None,
            r"row 1 has no label \(None\)\. Leave such rows out with dataset\.filter, or label them -100",
        ),
        (
            SINGLE,
            [0, 1],
            r'row 1 has label \[0, 1\]; .* set config\.problem_type = "multi_label_classification"',
        ),
        (SINGLE, [], r"row 1 has label \[\]; "),
        (SINGLE, b"pos", r"row 1 has label b'pos'; "),
        (
            MULTI,
            [0, 2, 0],
            r"row 1 has label \[0, 2, 0\]; .* takes 3 targets in 0\.\.1, or a list of the names 'neg'",
        ),
        (MULTI, [0, 1], r"row 1 has label \[0, 1\]; "),
        (MULTI, [0, float("nan"), 1], r"row 1 has label \[0, nan, 1\]; "),
        (MULTI, -100, r"row 1 has label -100; "),
        (MULTI, [[0], [1], [0, 1]], r"row 1 has label \[\[0\], \[1\], \[0, 1\]\]; "),
        (MULTI, [], r"row 1 has label \[\]; .* has a target of 0 for each"),
        (REGRESSION, "2.5", r"row 1 has label '2\.5'; regression takes finite numbers"),
        (REGRESSION, float("inf"), r"row 1 has label inf; regression takes finite numbers"),
        (REGRESSION, [1.0, 2.0], r"row 1 has label \[1\.0, 2\.0\]; "),
        (REGRESSION, True, r"row 1 has label True; "),
    ],
)
def test_labels_without_one_meaning_are_refused(problem_type, wrong, message, place, tmp_path):
    right = {SINGLE: 1, MULTI: [0.0, 1.0, 0.0], REGRESSION: 0.5}[problem_type]
    model = model_of(problem_type)
    with pytest.raises(ValueError, match=message):
        PLACES[place](model, rows_of([right, wrong, right]), tmp_path)
    assert model.config.exit_policy is None


@everywhere
@pytest.mark.parametrize("kind", [list, Dataset.from_list], ids=["list", "datasets"])
def test_ignored_rows_are_left_out_and_told(kind, place, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    labels = PLACES[place](model_of(), kind(rows_of([0, -100, 1, -100, 2])), tmp_path)
    assert [label for label in labels if label != -100] == [0, 1, 2]
    assert "2 of 5 rows have the label -100 and are left out" in caplog.text
    with pytest.raises(ValueError, match=r"every row has the label -100|in every row the label is -100"):
        PLACES[place](model_of(), kind(rows_of([-100, -100])), tmp_path)


def test_report_is_of_the_rows_that_have_a_label():
    rows = rows_of([0, 1, 2, 0, 1, 2])
    kept = evaluate_exits(model_of(), rows[:4], **QUIET)
    report = evaluate_exits(model_of(), rows[:2] + rows_of([-100] * 3) + rows[2:4], **QUIET)
    assert (report.num_examples, report.ignored, kept.ignored) == (4, 3, 0)
    assert (report.exits, report.curve) == (kept.exits, kept.curve)
    assert "on 4 examples (3 without a label left out)" in report.table()


def test_trainer_evaluates_the_rows_that_have_a_label(tmp_path):
    rows = rows_of([0, 1, 2, 0, 1, 2])
    some = rows_of([0, 1, -100, 0, -100, 2])
    found = trainer_of(model_of(), rows, tmp_path).evaluate(some)
    kept = trainer_of(model_of(), rows, tmp_path).evaluate([row for row in some if row["label"] != -100])
    assert {k: v for k, v in found.items() if "accuracy" in k} == {
        k: v for k, v in kept.items() if "accuracy" in k
    }


@pytest.mark.parametrize("column", ["label", "labels", "label_ids"])
@pytest.mark.parametrize(
    "kind", [list, Dataset.from_list, lambda rows: Dataset.from_list(rows).to_iterable_dataset()]
)
@pytest.mark.slow
def test_names_train_evaluate_and_predict_as_their_ids_do(kind, column, tmp_path):
    ids = [0, 1, 2, 1, 0, 2]
    found = []
    for labels in (ids, [NAMES[index] for index in ids]):
        model, dataset = model_of(), kind(rows_of(labels, column))
        settings = {
            "max_steps": 3,
            "per_device_train_batch_size": 2,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
        }
        arguments = RomeBertTrainingArguments(str(tmp_path), **settings, disable_tqdm=True)
        trainer = RomeBertTrainer(model, arguments, train_dataset=dataset, processing_class=tiny_tokenizer())
        trainer.train()
        metrics = {
            name: value
            for name, value in trainer.evaluate(dataset).items()
            if "accuracy" in name or "loss" in name
        }
        predicted = trainer.predict(dataset)
        assert predicted.label_ids.tolist() == ids
        found.append((metrics, [weight.sum().item() for weight in model.parameters()]))
    assert found[0] == found[1]


def test_labels_of_a_training_are_those_of_a_stock_trainer(tmp_path):
    """The same batches, to the bit, where a stock Trainer takes the labels."""
    rows = Dataset.from_list(rows_of([0, 1, 2, 1]))
    ours = trainer_of(model_of(), rows, tmp_path)
    stock = Trainer(model_of(), ours.args, train_dataset=rows, processing_class=tiny_tokenizer())
    for one, other in zip(ours.get_train_dataloader(), stock.get_train_dataloader(), strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert type(ours.data_collator) is type(stock.data_collator)


# ---- two columns


@everywhere
@pytest.mark.parametrize("kind", [list, Dataset.from_list], ids=["list", "datasets"])
@pytest.mark.parametrize("other", ["labels", "label_ids"])
def test_two_columns_that_differ(kind, other, place, tmp_path):
    rows = [row | {other: label} for row, label in zip(rows_of([0, 1, 2]), [0, 2, 2], strict=True)]
    message = (
        r"row 1 has two labels that differ, .*\. Keep one of the columns: "
        r"dataset\.remove_columns\('label(_ids)?'\)"
    )
    with pytest.raises(ValueError, match=message):
        PLACES[place](model_of(), kind(rows), tmp_path)
    unread = [row | {other: "fine"} for row in rows]
    with pytest.raises(ValueError, match=r"row 0 has two labels, .*, and not both can be read: .*'fine'"):
        PLACES[place](model_of(), kind(unread), tmp_path)


@everywhere
def test_two_columns_that_agree(place, tmp_path):
    rows = [row | {"labels": NAMES[row["label"]], "label_ids": None} for row in rows_of([0, 1, 2])]
    assert PLACES[place](model_of(), rows, tmp_path) == [0, 1, 2]


# ---- names of classes


def classes(labels, names):
    features = Features({"input_ids": Sequence(Value("int64")), "attention_mask": Sequence(Value("int64"))})
    rows = [
        {name: value for name, value in row.items() if name != "token_type_ids"} for row in rows_of(labels)
    ]
    return Dataset.from_list(rows, features=Features({**features, "label": ClassLabel(names=names)}))


@everywhere
def test_class_label_names_become_the_models(place, tmp_path):
    model = model_of(names=None)
    assert PLACES[place](model, classes([0, 1, 2], NAMES), tmp_path) == [0, 1, 2]
    assert model.config.id2label == dict(enumerate(NAMES))
    assert model.config.label2id == {name: index for index, name in enumerate(NAMES)}


@everywhere
def test_class_label_names_that_contradict_the_models(place, tmp_path):
    dataset, model = classes([0, 1, 2], ["pos", "neg", "neutral"]), model_of()
    message = (
        r"column 'label' 'pos' is class 0, and in config\.id2label class 1\. .* "
        r"dataset\.align_labels_with_mapping"
    )
    with pytest.raises(ValueError, match=message):
        PLACES[place](model, dataset, tmp_path)
    aligned = dataset.align_labels_with_mapping(model.config.label2id, "label")  # the way out
    assert PLACES[place](model, aligned, tmp_path) == [1, 0, 2]


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (["NEG", "Pos", "neutral"], False),
        (["0", "1", "2"], False),
        (["a", "b", "c"], True),
        (["neg", "pos"], False),
    ],
)
def test_class_label_names_beside_the_models(names, warned, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = model_of()
    evaluate_exits(model, classes([0, 1, 1], names), **QUIET)
    assert model.config.id2label == dict(enumerate(NAMES))
    assert (
        "other names than in config.id2label ('a' is 'neg', 'b' is 'pos', 'c' is 'neutral')" in caplog.text
    ) == warned


def test_lists_of_class_ids_are_no_targets():
    """With two classes [0, 1] would read as targets of 0 and 1."""
    features = Features({"input_ids": Sequence(Value("int64")), "labels": Sequence(ClassLabel(names=NAMES))})
    dataset = Dataset.from_list([{"input_ids": [2, 5, 3], "labels": [0, 1, 2]}], features=features)
    with pytest.raises(
        ValueError, match=r"the column 'labels' holds lists of class ids\. Map each list to 3 targets"
    ):
        evaluate_exits(model_of(MULTI), dataset, **QUIET)


def test_unknown_names_of_a_model_without_names_are_told_the_way_out(tmp_path):
    message = (
        r"row 0 has label 'pos'; .* no names of its own: give id2label and label2id .*, "
        r"or encode .* dataset\.class_encode_column"
    )
    rows = rows_of(["pos", "neg"])
    for place in PLACES.values():
        with pytest.raises(ValueError, match=message):
            place(model_of(names=None, num_labels=2), rows, tmp_path)
    model = model_of(names=None, num_labels=2)
    assert in_training(model, Dataset.from_list(rows).class_encode_column("label"), tmp_path) == [
        1,
        0,
    ]  # the way out
    assert model.config.id2label == {0: "neg", 1: "pos"}


def test_names_by_config():
    config = model_of().config
    config.label2id = {"neg": 0, "pos": 1, "neutral": 2, "positive": 1}  # a second name
    assert [LabelReader(config)(name, "row 0") for name in ("positive", "pos")] == [1, 1]
    config.label2id = {name: index for index, name in default_names(3).items()}  # id2label alone was set
    assert LabelReader(config)("pos", "row 0") == 1
    config.label2id = {"neg": 1}
    with pytest.raises(
        ValueError, match=r"label2id says that 'neg' is class 1, and config\.id2label class 0"
    ):
        LabelReader(config)


# ---- a problem type that is left open


@everywhere
@pytest.mark.parametrize(
    ("num_labels", "labels", "problem_type"),
    [
        (3, [0, 2, 1], SINGLE),
        (3, [0.0, 2.0, 1.0], SINGLE),
        (3, [[0, 1, 1], [1, 0, 0]], MULTI),
        (1, [1, 2], REGRESSION),
    ],
)
def test_first_labels_settle_the_problem_type(num_labels, labels, problem_type, place, tmp_path):
    model = build(num_labels=num_labels)
    if problem_type == REGRESSION and place != "training":
        assert model.problem_type == REGRESSION  # by the number of labels
    assert PLACES[place](model, rows_of(labels), tmp_path) == labels
    assert model.problem_type == problem_type


@everywhere
def test_labels_of_two_problem_types(place, tmp_path):
    with pytest.raises(ValueError, match=r"row 1 has label \[1, 0, 0\]"):
        PLACES[place](build(num_labels=3), rows_of([2, [1, 0, 0]]), tmp_path)
