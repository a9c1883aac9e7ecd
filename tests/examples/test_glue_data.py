"""glue_data.py: which files and labels make a task, and what is said of those that do not."""

from pathlib import Path

import pytest
import train_glue
from datasets import Dataset, DatasetDict
from support import glue_data
from tiny import color, labelled
from tiny import train_and_validation_files as files

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "9", "9"], ["9", "10"]),
        ([1, 0, 1], ["0", "1"]),
        ([-1, 0, 1], ["-1", "0", "1"]),  # only a file of nothing but -1 is one without labels
        ([True, False, True], ["False", "True"]),
        (["NA", "no", "null"], ["NA", "no", "null"]),
        (["1", "b", "2.5"], ["1", "2.5", "b"]),
        ([1, 2.5, 3], []),
        (["1.0", "2.0", "1.0"], []),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_labels_of_own_files_are_names_or_numbers(labels, names, kind):
    texts = ["NA", "12", 'a, "b"\nc']
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    glue = load(*files(rows, rows, kind))
    assert glue.names == names and list(glue.train["text"]) == texts
    assert list(glue.train["label"]) == [
        names.index(str(label)) if names else float(label) for label in labels
    ]


def load(*arguments):
    return glue_data.load_glue(train_glue.parse([*arguments, "--use_cpu"])[1])


def test_capped_sample_is_not_the_head_of_the_file_and_always_the_same():
    by_label = sorted(labelled(60, color), key=lambda row: row["label"])
    one, again = (load(*files(by_label, by_label), "--max_train_samples", "24") for _ in range(2))
    assert set(one.train["label"]) == {0, 1, 2} and list(one.train["text"]) == list(again.train["text"])


@pytest.mark.parametrize("kind", [int, str])
def test_rows_without_a_label_are_no_class(kind):
    """-100 says so, as a number of JSON or the text of a table."""
    rows = [{"text": f"text {number}", "label": kind(label)} for number, label in enumerate((1, 0, -100, 1))]
    glue = load(*files(rows, rows))
    assert (glue.names, list(glue.train["label"])) == (["0", "1"], [1, 0, -100, 1])
    assert list(glue.evaluation["eval"]["label"]) == [1, 0, -100, 1]
    of_task = load("--task_name", "sst2", *files(rows, rows))
    assert list(of_task.train["label"]) == [1, 0, -100, 1]


def test_without_files_the_task_is_the_hub_s(monkeypatch):
    def rows(count, label):
        return Dataset.from_list(labelled(count, label, 0, ("premise", "hypothesis")))

    splits = {"train": rows(6, lambda number: number % 3), "validation_matched": rows(2, lambda number: 0)}
    splits |= {"validation_mismatched": rows(3, lambda number: 1), "test_matched": rows(4, lambda number: -1)}
    monkeypatch.setattr(
        glue_data, "load_dataset", lambda *name: {("nyu-mll/glue", "mnli"): DatasetDict(splits)}[name]
    )
    glue = load("--task_name", "mnli")
    assert {prefix: len(rows) for prefix, rows in glue.evaluation.items()} == {
        "eval_matched": 2,
        "eval_mismatched": 3,
    }
    assert list(glue.train["label"]) == [0, 1, 2, 0, 1, 2] and glue.names == [
        "entailment",
        "neutral",
        "contradiction",
    ]


def test_hub_that_cannot_be_reached(monkeypatch):
    def load_dataset(*name):
        raise ConnectionError("no route")

    monkeypatch.setattr(glue_data, "load_dataset", load_dataset)
    with pytest.raises(
        SystemExit,
        match=r"rte: nyu-mll/glue cannot be loaded from the Hub \(no route\)\. To train on files, give",
    ):
        load("--task_name", "rte")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "give --task_name .*sst2.*, or --train_file and --validation_file"),
        ("--train_file a.csv", "--train_file is given without --validation_file"),
        ("--task_name rte --validation_file a.csv", "--validation_file is given without --train_file"),
        (
            "--task_name rte --test_file a.csv",
            "--test_file is given without --train_file and --validation_file",
        ),
        ("--train_file b.csv --validation_file a.csv", r"--train_file b\.csv: give an existing \.csv, \.tsv"),
        ("--train_file a.csv --validation_file a.txt", r"--validation_file a\.txt: give an existing \.csv"),
        (
            "--train_file a.csv --validation_file a.csv --validation_mismatched_file a.csv",
            "--validation_mismatched_file is for --task_name mnli",
        ),
    ],
)
def test_arguments_that_do_not_go_together(run_glue, arguments, message):
    for name in ("a.csv", "a.txt"):
        Path(name).write_text("text,label\na,b\n")
    with pytest.raises(SystemExit, match=message):
        run_glue(*arguments.split())
    assert not Path("run").exists()


X, Y = {"text": "a film", "label": "x"}, {"text": "the plot", "label": "y"}
PAIR = {"sentence1": "a", "sentence2": "b"}
GLUE_TEST = r"row 2 \(line 2\) has label -1, the mark of GLUE's test rows"
UNUSABLE = [
    (
        None,
        [{"sentence": "a", "label": 1}],
        [X],
        r"needs the columns text \(and .*\), and label; it has sentence, label\.",
    ),
    (None, [{"text": "a", "gold": 1}], [X], r"needs the columns text .*, and label; it has text, gold\."),
    (None, [X, Y], [{"text": "a", "gold": 1}], r"validation.* has no column label; it has text, gold\."),
    (
        None,
        [X | {"text_pair": "b"}, Y | {"text_pair": "c"}],
        [X],
        r"validation.* has no column text_pair; it has text, label\.",
    ),
    (
        None,
        [X, Y],
        [X | {"label": "z"}],
        r"validation.* does not know: z\. Known are x, y\. The first is in row 1 \(line 1\)",
    ),
    (None, [X], [Y], "the only label is 'x'; classification needs at least two"),
    (None, [X, Y, X | {"label": ""}], [X], r"row 3 \(line 3\) has no label\. Fill what is missing"),
    (None, [X, Y, X | {"text": None}], [X], r"row 3 \(line 3\) has no text"),
    (
        None,
        [X | {"label": ["x", "y"]}],
        [X],
        r"row 1 \(line 1\) has label \['x', 'y'\]; give one label per row",
    ),
    (None, [X, Y], [X | {"label": -1}], r"row 1 \(line 1\) has label -1, the mark of GLUE's test rows"),
    (None, [X | {"label": 0.5}], [X], r"row 1 \(line 1\) has label 'x'; regression needs finite numbers"),
    (None, [], [X], r"train\.jsonl is empty"),
    (None, [1], [X], r"train\.jsonl: row 1 \(line 1\) is '1', no object with named columns"),
    ("sst2", [X | {"label": 0}, Y | {"label": -1}], [], GLUE_TEST),
    ("stsb", [PAIR | {"label": 5.0}, PAIR | {"label": -1.0}], [], GLUE_TEST),
    (
        "mrpc",
        [{"sentence1": "a", "label": 1}],
        [],
        "needs the columns sentence1 and sentence2, and label; it has sentence1, label",
    ),
    ("rte", [PAIR | {"label": 2}], [PAIR], "labels that training does not know: 2. Known are entailment"),
]


@pytest.mark.parametrize(("task", "train", "validation", "message"), UNUSABLE)
def test_files_that_cannot_be_used(run_glue, task, train, validation, message):
    with pytest.raises(SystemExit, match=message):
        run_glue(*files(train, validation or train), *(["--task_name", task] if task else []))
    assert not Path("run").exists()


def test_too_few_rows_to_hold_out():
    with pytest.raises(
        SystemExit, match="2 training rows are too few to hold out a tenth for --calibrate_max_drop"
    ):
        load(*files([X, Y], [X]), "--calibrate_max_drop", "0.1")
