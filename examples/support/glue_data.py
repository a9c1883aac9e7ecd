"""Data for train_glue.py: a GLUE task or own files -> rows of `text`[, `text_pair`] and `label`, checked,
with label ids.

Every flaw of a file (here and in table_files.py) is said before any model loads.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from datasets import Dataset, load_dataset

from modeling_romebert.losses import IGNORED_LABEL
from support.table_files import Table, check_file, read_table, refuse_unlabelled

HUB = "nyu-mll/glue"
SHUFFLE_SEED = 0  # of the samples that --max_train_samples and --max_eval_samples take: the same in every run


class Task(NamedTuple):
    """A GLUE task: its text columns on the Hub, its labels by id (none: regression), its metrics, the one to
    go by first.
    """

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)


TASKS = {
    "sst2": Task(("sentence",), ("negative", "positive")),
    "mrpc": Task(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("f1", "accuracy")),
    "rte": Task(("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "cola": Task(("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",)),
    "stsb": Task(("sentence1", "sentence2"), (), ("pearson", "spearmanr")),
    "qnli": Task(("question", "sentence"), ("entailment", "not_entailment")),
    "qqp": Task(("question1", "question2"), ("not_duplicate", "duplicate"), ("f1", "accuracy")),
    "mnli": Task(("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
}


class GlueData(NamedTuple):
    """What a run trains and is judged on."""

    train: Dataset
    held_out: Dataset | None  # a tenth of train that calibration sees and training does not
    evaluation: dict[str, Dataset]  # by the prefix of its metrics
    names: list[str]  # labels by id; none for regression
    metrics: tuple[str, ...]
    label_range: float  # largest minus smallest label of train; 0 unless regression

    def map(self, function: Callable[[dict[str, Any]], Any]) -> "GlueData":
        """`function` over batches of all rows; of the columns only `label` and what it returns stay."""

        def mapped(rows: Dataset) -> Dataset:
            return rows.map(
                function, batched=True, remove_columns=[name for name in rows.column_names if name != "label"]
            )

        held_out = None if self.held_out is None else mapped(self.held_out)
        evaluation = {prefix: mapped(rows) for prefix, rows in self.evaluation.items()}
        return self._replace(train=mapped(self.train), held_out=held_out, evaluation=evaluation)


# ---- which data


def data_files(data: Any) -> dict[str, str]:
    """The files given, by argument. Also the first check of the arguments.

    Raises:
        SystemExit: arguments that do not go together, or a file that is not there.
    """
    names = ("train_file", "validation_file", "validation_mismatched_file", "test_file")
    files = {name: getattr(data, name) for name in names if getattr(data, name) is not None}
    if not files and data.task_name is None:
        raise SystemExit(
            f"give --task_name ({', '.join(TASKS)}), or --train_file and --validation_file, or both."
        )
    if missing := [f"--{name}" for name in ("train_file", "validation_file") if files and name not in files]:
        raise SystemExit(
            f"--{next(iter(files))} is given without {' and '.join(missing)}; training needs both."
        )
    if "validation_mismatched_file" in files and data.task_name != "mnli":
        raise SystemExit(
            "--validation_mismatched_file is for --task_name mnli; give other labelled rows as --test_file."
        )
    for name, path in files.items():
        check_file(f"--{name}", path)
    return files


def load_glue(data: Any) -> GlueData:
    """Rows of `--task_name` from the Hub, or of the files, encoded, capped and, for calibration, with a tenth
    held out.

    Raises:
        SystemExit: rows that cannot be read, or cannot be used as they are.
    """
    task = TASKS.get(data.task_name)
    files = data_files(data)
    sources = _from_files(files, data.task_name) if files else _from_hub(data.task_name)
    train = sources.pop("train")
    columns = _text_columns(train, task)
    labels = _labels(train, task)
    names = _names(train.origin, labels) if task is None else list(task.labels)
    metrics = task.metrics if task else ("accuracy",) if names else ("pearson", "spearmanr")
    encoded = _encoded(train, columns, names, task)
    evaluation = {
        prefix: _sample(_encoded(source, columns, names, task), data.max_eval_samples)
        for prefix, source in sources.items()
    }
    for prefix, judged in evaluation.items():
        refuse_unlabelled(sources[prefix].origin, judged["label"])
    label_range = 0.0 if names else max(encoded["label"]) - min(encoded["label"])
    rows, held_out = _sample(encoded, data.max_train_samples), None
    if data.calibrate_max_drop is not None:
        rows, held_out = _hold_out(rows)
    return GlueData(rows, held_out, evaluation, names, metrics, label_range)


def _from_hub(task_name: str) -> dict[str, Table]:
    splits = {"train": "train", "eval": "validation"}
    if task_name == "mnli":
        splits = {
            "train": "train",
            "eval_matched": "validation_matched",
            "eval_mismatched": "validation_mismatched",
        }
    try:
        found = load_dataset(HUB, task_name)
    except OSError as error:
        raise SystemExit(
            f"--task_name {task_name}: {HUB} cannot be loaded from the Hub ({error}). To train on files,"
            " give --train_file and --validation_file."
        ) from error
    return {
        name: Table(f"{HUB} {task_name} {split}", found[split].column_names, found[split].to_list())
        for name, split in splits.items()
    }


def _from_files(files: dict[str, str], task_name: str | None) -> dict[str, Table]:
    names = {"train_file": "train", "validation_file": "eval", "test_file": "test"}
    if task_name == "mnli":
        names |= {"validation_file": "eval_matched", "validation_mismatched_file": "eval_mismatched"}
    return {names[argument]: read_table(f"--{argument}", path) for argument, path in files.items()}


# ---- columns and labels


def _text_columns(train: Table, task: Task | None) -> tuple[str, ...]:
    """Where the texts of train are: in the Hub's columns of a named task, or in `text` and `text_pair`."""
    plain = ("text", "text_pair")
    choices = (plain, plain[:1]) if task is None else (task.columns, plain[: len(task.columns)])
    for columns in choices:
        if {*columns, "label"} <= set(train.columns):
            return columns
    needed = "text (and text_pair for pairs)" if task is None else " and ".join(task.columns)
    raise SystemExit(f"{train.origin} needs the columns {needed}, and label; {train.what_it_has()}")


def _labels(table: Table, task: Task | None) -> list[Any]:
    """Labels as they stand in the file, none of them missing."""
    labels = table.labels()
    unlabelled = [str(label) in ("-1", "-1.0") for label in labels]
    if all(unlabelled) or (task is not None and any(unlabelled)):
        raise SystemExit(
            f"{table.place(unlabelled.index(True))} has label -1, the mark of GLUE's test rows, whose"
            " labels are not public. Train and evaluate on rows with labels."
        )
    return labels


def _names(origin: str, labels: list[Any]) -> list[str]:
    """Labels of own files -> their names in the order of their ids; none for numbers with a decimal point:
    regression. -100 is the mark of rows without one.
    """
    values = {str(label) for label in labels} - {str(IGNORED_LABEL)}
    whole_numbers = all(_is(int, value) for value in values)
    if not whole_numbers and all(_is(float, value) for value in values):
        return []
    if len(values) < 2:
        raise SystemExit(
            f"{origin}: the only label is {(values or {str(IGNORED_LABEL)}).pop()!r}; classification needs at"
            " least two."
        )
    return sorted(values, key=int if whole_numbers else str)


def _is(kind: type, value: str) -> bool:
    try:
        kind(value)
    except ValueError:
        return False
    return True


def _encoded(table: Table, columns: tuple[str, ...], names: list[str], task: Task | None) -> Dataset:
    """A table -> `text`, `text_pair` and `label`: the id of a class, or a number."""
    if missing := [name for name in (*columns, "label") if name not in table.columns]:
        raise SystemExit(f"{table.origin} has no column {', '.join(missing)}; {table.what_it_has()}")
    texts = {name: table.texts(column) for name, column in zip(("text", "text_pair"), columns, strict=False)}
    labels = _labels(table, task)
    return Dataset.from_dict(
        {**texts, "label": _ids(table, labels, names, task) if names else _numbers(table, labels)}
    )


def _ids(table: Table, labels: list[Any], names: list[str], task: Task | None) -> list[int]:
    """Labels -> ids. A named task's may be ids or names; own files' are names. -100 marks rows that count
    nowhere.
    """
    ids = {name: index for index, name in enumerate(names)} | {str(IGNORED_LABEL): IGNORED_LABEL}
    if task is not None:
        ids |= {str(index): index for index in range(len(names))}
    if unknown := [index for index, label in enumerate(labels) if str(label) not in ids]:
        listed = ", ".join(sorted({str(labels[index]) for index in unknown}))
        raise SystemExit(
            f"{table.origin} has labels that training does not know: {listed}. Known are"
            f" {', '.join(name for name, index in ids.items() if index != IGNORED_LABEL)}."
            f" The first is in {table.place(unknown[0]).removeprefix(table.origin + ': ')}."
        )
    return [ids[str(label)] for label in labels]


def _numbers(table: Table, labels: list[Any]) -> list[float]:
    for index, label in enumerate(labels):
        if not _is(float, str(label)) or not math.isfinite(float(label)):
            raise SystemExit(f"{table.place(index)} has label {label!r}; regression needs finite numbers.")
    return [float(label) for label in labels]


# ---- which rows


def _sample(rows: Dataset, most: int | None) -> Dataset:
    return rows if most is None or most >= len(rows) else rows.shuffle(seed=SHUFFLE_SEED).select(range(most))


def _hold_out(rows: Dataset) -> tuple[Dataset, Dataset]:
    """Nine tenths and one tenth, by a hash of the texts: the same for every seed, and equal texts stay
    together.
    """

    def in_tenth(row: dict[str, Any]) -> bool:
        text = f"{row['text']}\0{row.get('text_pair', '')}".lower()
        return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10 == 0

    held_out = [index for index, row in enumerate(rows) if in_tenth(row)]
    rest = sorted(set(range(len(rows))) - set(held_out))
    if not held_out or not rest:
        raise SystemExit(
            f"{len(rows)} training rows are too few to hold out a tenth for --calibrate_max_drop."
        )
    return rows.select(rest), rows.select(held_out)
