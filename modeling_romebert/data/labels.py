"""What a dataset's label means to a model: one rule for training, evaluation and calibration.

    class id, whole number as a float, name that the config knows,
    a one-element list or array of these                              -> class id, or -100 for none
    C targets in 0..1, or the names of the classes that apply         -> C targets
    finite number, or C of them                                       -> number, or C numbers

What has exactly one meaning is mapped. Anything else is refused, with its row, its value and what is allowed.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from datasets import ClassLabel
from torch import Tensor
from transformers.utils import logging

from ..configuration_romebert import ProblemType
from ..losses import IGNORED_LABEL

logger = logging.get_logger(__name__)

LABEL_COLUMNS = ("labels", "label", "label_ids")  # as the collators of transformers know them
SHOWN_NAMES = 10  # of a model with many classes, in a message

Label = int | float | list[float]


class LabelReader:
    """Labels as a dataset holds them -> labels as the model's loss takes them.

    Args:
        config: of the model: `num_labels`, `id2label`, `label2id` and `problem_type`. One that is unset is
            settled by the first label that is read, by the rule of `infer_problem_type`.

    Raises:
        ValueError: `id2label` and `label2id` contradict each other; on reading, a label without exactly one
            meaning.

    Example:
        >>> from modeling_romebert import RomeBertConfig
        >>> read = LabelReader(RomeBertConfig(id2label={0: "no", 1: "yes"}))
        >>> [read(label, "row 0") for label in ("yes", 1, 1.0, [0], -100)]
        [1, 1, 1, 0, -100]
        >>> read("ja", "row 7")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: row 7 has label 'ja'; single_label_classification takes class ids 0..1, the names ...
    """

    def __init__(self, config: Any):
        self.num_labels: int = config.num_labels
        self.problem_type: str | None = config.problem_type
        self.has_own_names = has_own_names(config)
        self.ids = ids_by_name(config)

    def __call__(self, value: Any, where: str) -> Label:
        """One label -> a class id, -100, a number, or C targets. `where` begins the message: "row 3"."""
        plain = _plain(value)
        if plain is None:
            raise ValueError(
                f"{where} has no label (None). Leave such rows out with dataset.filter{self._or_ignored()}."
            )
        if self.problem_type is None:
            several = (
                ProblemType.MULTI_LABEL.value if isinstance(plain, list) else ProblemType.SINGLE_LABEL.value
            )
            self.problem_type = ProblemType.REGRESSION.value if self.num_labels == 1 else several
        meanings: dict[str, Callable[[Any], Label | None]] = {
            ProblemType.SINGLE_LABEL: self._class_id,
            ProblemType.MULTI_LABEL: self._targets,
            ProblemType.REGRESSION: self._numbers,
        }
        meaning = meanings[self.problem_type](plain)
        if meaning is None:
            raise ValueError(
                f"{where} has label {_shown(value)}; {self.problem_type} takes"
                f" {self._allowed()}.{self._hint(plain)}"
            )
        return meaning

    def of_row(self, row: Mapping[str, Any], where: str) -> tuple[str, Label]:
        """A row -> the name of its label column, and its label.

        Raises:
            ValueError: no label, one without exactly one meaning, or two columns that differ.
        """
        given = {column: row[column] for column in LABEL_COLUMNS if row.get(column) is not None}
        if not given:
            if any(column in row for column in LABEL_COLUMNS):
                self(None, where)
            raise ValueError(f"{where} has no 'labels' (or 'label'); it has {', '.join(map(str, row))}.")
        column, *others = given
        if not others:
            return column, self(given[column], where)
        both = " and ".join(f"{name}={_shown(value)}" for name, value in given.items())
        drop = " or ".join(f"dataset.remove_columns({name!r})" for name in (others[0], column))
        way_out = f"Keep one of the columns: {drop}."
        try:
            meanings = [self(value, where) for value in given.values()]
        except ValueError as error:
            raise ValueError(
                f"{where} has two labels, {both}, and not both can be read: {error} {way_out}"
            ) from None
        if any(meaning != meanings[0] for meaning in meanings):
            raise ValueError(f"{where} has two labels that differ, {both}. {way_out}")
        return column, meanings[0]

    @staticmethod
    def classes_of(label: Any) -> list[int]:
        """The classes that a single label, or each of several tokens' labels, names; none for -100."""
        labels = label if isinstance(label, list) else [label]
        return [one for one in labels if one != IGNORED_LABEL]

    def _class_id(self, value: Any) -> int | None:
        if isinstance(value, str | bool):
            return self._id_of(str(value))
        if (
            isinstance(value, int | float)
            and value % 1 == 0
            and (0 <= value < self.num_labels or value == IGNORED_LABEL)
        ):
            return int(value)
        return None

    def _targets(self, value: Any) -> list[float] | None:
        entries = value if isinstance(value, list) else [value]
        if entries and all(isinstance(entry, str) for entry in entries):
            ids = {self._id_of(name) for name in entries}
            return None if None in ids else [float(index in ids) for index in range(self.num_labels)]
        if len(entries) == self.num_labels and all(
            isinstance(entry, int | float) and 0 <= entry <= 1 for entry in entries
        ):
            return [float(entry) for entry in entries]
        return None

    def _numbers(self, value: Any) -> float | list[float] | None:
        entries = value if isinstance(value, list) else [value]
        finite = all(
            isinstance(e, int | float) and not isinstance(e, bool) and math.isfinite(e) for e in entries
        )
        if not finite or len(entries) != self.num_labels:
            return None
        return [float(entry) for entry in entries] if self.num_labels > 1 else float(entries[0])

    def _id_of(self, name: str) -> int | None:
        return self.ids.get(name, self.ids.get(name.strip()))

    def _allowed(self) -> str:
        names = [repr(name) for name in self.ids]
        listed = ", ".join([*names[:SHOWN_NAMES], "..."] if len(names) > SHOWN_NAMES else names)
        if self.problem_type == ProblemType.SINGLE_LABEL:
            return f"class ids 0..{self.num_labels - 1}, the names {listed}, or {IGNORED_LABEL} for none"
        if self.problem_type == ProblemType.MULTI_LABEL:
            return f"{self.num_labels} targets in 0..1, or a list of the names {listed}"
        return "finite numbers" if self.num_labels == 1 else f"{self.num_labels} finite numbers"

    def _hint(self, value: Any) -> str:
        """What may have led to a label that was refused, and the way out."""
        if self.problem_type == ProblemType.REGRESSION:
            return ""
        if isinstance(value, int | float) and value == -1:
            return (
                " -1 is the mark of GLUE's test rows, whose labels are not public: use a split that has"
                " labels, or leave the column out to predict them."
            )
        if isinstance(value, float) and math.isnan(value):
            return f" Leave such rows out with dataset.filter{self._or_ignored()}."
        if isinstance(value, list) and not value:
            return " A row to which no class applies has a target of 0 for each."
        if isinstance(value, list) and self.problem_type == ProblemType.SINGLE_LABEL:
            return ' For several labels in a row set config.problem_type = "multi_label_classification".'
        if isinstance(value, str) and not self.has_own_names:
            return (
                " The model has no names of its own: give id2label and label2id to from_pretrained, or"
                " encode the column with dataset.class_encode_column, whose names it then takes."
            )
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and self.problem_type == ProblemType.SINGLE_LABEL
        ):
            return " The number of classes is config.num_labels."
        return ""

    def _or_ignored(self) -> str:
        single = self.problem_type in (None, ProblemType.SINGLE_LABEL) and self.num_labels > 1
        return f", or label them {IGNORED_LABEL}" if single else ""


def _plain(value: Any) -> Any:
    """numpy and torch values as Python's; what is alone in a list or an array stands for itself."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        entries = [_plain(entry) for entry in value]
        return entries[0] if len(entries) == 1 else entries
    return value


def _shown(value: Any) -> str:
    plain = value.tolist() if isinstance(value, Tensor | np.ndarray | np.generic) else value
    text = repr(plain)
    return text if len(text) <= 80 else f"{text[:77]}..."


# ---- names


def default_names(num_labels: int) -> dict[int, str]:
    """What transformers calls the classes of a model that was told no names."""
    return {index: f"LABEL_{index}" for index in range(num_labels)}


def has_own_names(config: Any) -> bool:
    return {int(index): name for index, name in config.id2label.items()} != default_names(config.num_labels)


def ids_by_name(config: Any) -> dict[str, int]:
    """Names that have exactly one id, by `id2label` and `label2id`; a `label2id` of default names beside
    other names has no say.

    Raises:
        ValueError: the two contradict each other.
    """
    names = {int(index): str(name) for index, name in config.id2label.items()}
    ids = {name: index for index, name in names.items() if list(names.values()).count(name) == 1}
    defaults = {name: index for index, name in default_names(config.num_labels).items()}
    given = (
        {}
        if config.label2id == defaults
        else {str(name): int(index) for name, index in (config.label2id or {}).items()}
    )
    for name, index in given.items():
        if ids.get(name, index) != index:
            raise ValueError(
                f"config.label2id says that {name!r} is class {index}, and config.id2label class"
                f" {ids[name]}; make them agree."
            )
    return ids | {
        name: index
        for name, index in given.items()
        if name not in names.values() and 0 <= index < config.num_labels
    }


def take_class_names(config: Any, dataset: Any, name: str) -> None:
    """Names of a `ClassLabel` column: they become the model's where it has none of its own, and must not
    contradict those it has.

    Args:
        config: of the model; `id2label` and `label2id` may be set.
        dataset: of any kind; only one of `datasets` can have such a column.
        name: of the argument, for messages.

    Raises:
        ValueError: a class has another id here than in the model; or the column holds lists of ids, which are
            no targets.
    """
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping):
        return
    for column in LABEL_COLUMNS:
        feature = features.get(column)
        of_list = getattr(feature, "feature", None)
        if config.classifies_tokens:
            feature, of_list = of_list, None
        if isinstance(of_list, ClassLabel) and of_list.num_classes == config.num_labels:
            raise ValueError(
                f"{name}: the column {column!r} holds lists of class ids. Map each list to"
                f" {config.num_labels} targets of 0.0 and 1.0: dataset.map(lambda row:"
                f" {{{column!r}: [float(i in row[{column!r}]) for i in range({config.num_labels})]}},"
                " features=...), or to the names of its classes."
            )
        if isinstance(feature, ClassLabel):
            _take_names(config, feature.names, name, column)


def _take_names(config: Any, names: list[str], dataset: str, column: str) -> None:
    if not names or names == [str(index) for index in range(len(names))]:
        return  # names that are the ids themselves say nothing
    own = {int(index): str(label) for index, label in config.id2label.items()}
    if config.problem_type == ProblemType.REGRESSION or config.num_labels == 1:
        return
    if not has_own_names(config) and len(names) == config.num_labels:
        config.id2label = dict(enumerate(names))
        config.label2id = {label: index for index, label in enumerate(names)}
        return
    same = {label.lower(): index for index, label in own.items()}
    moved = [(index, label) for index, label in enumerate(names) if same.get(label.lower(), index) != index]
    if moved:
        index, label = moved[0]
        raise ValueError(
            f"{dataset}: in its column {column!r} {label!r} is class {index}, and in config.id2label class"
            f" {same[label.lower()]}. Give its rows the model's ids:"
            f" dataset.align_labels_with_mapping(model.config.label2id, {column!r})."
        )
    if differing := [
        (label, own.get(index))
        for index, label in enumerate(names)
        if label.lower() != str(own.get(index)).lower()
    ]:
        told = ", ".join(f"{label!r} is {of_model!r}" for label, of_model in differing[:SHOWN_NAMES])
        logger.warning_once(
            f"{dataset}: classes have other names than in config.id2label ({told}); their ids are taken as"
            f" they are, of {len(names)} classes for the model's {config.num_labels}."
        )


def say_ignored(ignored: int, rows: int, name: str) -> None:
    """Tell how many rows have no class."""
    if ignored:
        logger.warning(f"{name}: {ignored} of {rows} rows have the label {IGNORED_LABEL} and are left out.")
