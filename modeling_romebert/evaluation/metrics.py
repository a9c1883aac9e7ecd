"""How good predictions are: metrics by name or of one's own, and the predictions that logits stand for.

Higher is better in all of them. Used on the logits of one exit, by the `Trainer`, by `evaluate_exits` and by
`calibrate`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor
from transformers import EvalPrediction
from transformers.trainer_pt_utils import nested_numpify

from ..configuration_romebert import ProblemType
from ..losses import IGNORED_LABEL

Metric = Callable[[np.ndarray, np.ndarray], float]

MORE_THAN_TWO = (
    "metric='f1' is of one class against one other, and here are more:"
    " take 'f1_macro', 'f1_micro' or 'f1_weighted'."
)


def _accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    return float(np.mean(predictions == references))


def _f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """Of class 1 against class 0."""
    from sklearn.metrics import f1_score

    if predictions.ndim > 1 or max(predictions.max(initial=0), references.max(initial=0)) > 1:
        raise ValueError(MORE_THAN_TWO)
    return float(f1_score(references, predictions, zero_division=0))


def _averaged_f1(average: str) -> Metric:
    """Over classes, or over labels where there are several: equally, by their rows, or counting all decisions
    together.
    """

    def f1(predictions: np.ndarray, references: np.ndarray) -> float:
        from sklearn.metrics import f1_score

        return float(f1_score(references, predictions, average=average, zero_division=0))

    return f1


def _matthews(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(references, predictions))


def _correlation(name: str) -> Metric:
    def correlation(predictions: np.ndarray, references: np.ndarray) -> float:
        from scipy import stats

        if predictions.ndim > 1:  # several numbers per row: the mean over them
            return float(
                np.mean(
                    [correlation(one, other) for one, other in zip(predictions.T, references.T, strict=True)]
                )
            )
        if np.ptp(predictions) == 0 or np.ptp(references) == 0:
            # Undefined for a constant; a model that says the same of everything correlates with nothing
            return 0.0
        return float(getattr(stats, name)(predictions, references).statistic)

    return correlation


# predictions and references: (N,) class ids or numbers, (N, C) of 0 and 1 for several labels, or of several
# numbers.
METRICS: dict[str, Metric] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_macro": _averaged_f1("macro"),
    "f1_micro": _averaged_f1("micro"),
    "f1_weighted": _averaged_f1("weighted"),
    "matthews_correlation": _matthews,
    "pearson": _correlation("pearsonr"),
    "spearmanr": _correlation("spearmanr"),
}
DEFAULT_METRIC: dict[str, str] = {
    ProblemType.SINGLE_LABEL: "accuracy",
    ProblemType.MULTI_LABEL: "f1_micro",
    ProblemType.REGRESSION: "pearson",
}
# Problem types that a metric says nothing of.
MEANINGLESS = {
    **dict.fromkeys(("accuracy", "f1", "f1_macro", "f1_micro", "f1_weighted"), (ProblemType.REGRESSION,)),
    "matthews_correlation": (ProblemType.REGRESSION, ProblemType.MULTI_LABEL),
    **dict.fromkeys(("pearson", "spearmanr"), (ProblemType.MULTI_LABEL,)),
}


def find_metric(
    metric: str | Metric, problem_type: str | None = None, num_labels: int | None = None
) -> tuple[str, Metric]:
    """A name in `METRICS`, or a function (predictions, references) -> number of which higher is better -> its
    name and itself.

    Args:
        problem_type, num_labels: what it is to judge; left out, whether it can is found when it is called.

    Returns:
        Its name; and itself, made to say so where its result is not one finite number.

    Raises:
        ValueError: an unknown name, or a metric that has no meaning for the problem type or the number of
            classes.
    """
    if callable(metric):
        name = getattr(metric, "__name__", type(metric).__name__)
        return name, _as_number(name, metric)
    if metric not in METRICS:
        raise ValueError(
            f"metric={metric!r} is unknown; choose from {', '.join(METRICS)}, or give a function of"
            " predictions and references."
        )
    if problem_type in MEANINGLESS.get(metric, ()):
        choices = ", ".join(
            name for name in METRICS if problem_type not in MEANINGLESS.get(name, ()) and name != "f1"
        )
        raise ValueError(
            f"metric={metric!r} has no meaning for problem_type={problem_type!r}; choose from {choices}."
        )
    if metric == "f1" and (problem_type == ProblemType.MULTI_LABEL or (num_labels or 0) > 2):
        raise ValueError(MORE_THAN_TWO)
    return metric, METRICS[metric]


def _as_number(name: str, metric: Callable[[np.ndarray, np.ndarray], Any]) -> Metric:
    """A function of someone else's -> the same, with a number as its result, or an error that says what it
    gave.
    """

    def checked(predictions: np.ndarray, references: np.ndarray) -> float:
        found = metric(predictions, references)
        value = found.tolist() if isinstance(found, np.ndarray | np.generic | Tensor) else found
        if isinstance(value, Real) and math.isfinite(value):
            return float(value)
        way_out = "return one finite number, of which higher is better"
        if isinstance(found, Mapping):
            entries = ", ".join(map(repr, found))
            way_out = f"return one of its entries, {entries}, as a number of which higher is better"
        elif isinstance(value, Real):
            way_out = (
                f"for these {len(references)} rows return a finite number that stands for it, such as 0.0"
            )
        raise ValueError(f"metric={name} gave {value!r}, of type {type(found).__name__}; {way_out}.")

    return checked


def predictions_of(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """logits (N, C) -> class ids (N,), 0/1 per label (N, C), or numbers: (N,), (N, C) where there are
    several.
    """
    if problem_type == ProblemType.SINGLE_LABEL:
        return logits.argmax(axis=-1)
    if problem_type == ProblemType.MULTI_LABEL:
        return (logits > 0).astype(int)
    return logits[:, 0] if logits.shape[1] == 1 else logits


def default_metric(problem_type: str) -> Callable[..., dict[str, float]]:
    """A `compute_metrics` for `Trainer`: accuracy for a single label, micro F1 for several, Pearson's r for
    regression.
    """
    return compute_metrics([DEFAULT_METRIC[problem_type]], problem_type)


def compute_metrics(names: Sequence[str], problem_type: str) -> Callable[..., dict[str, float]]:
    """Names in `METRICS` -> a `compute_metrics` for `Trainer` that reports them, of the rows that have a
    label.

    It takes the logits as a `Trainer` hands them over: of all rows, as a list of batches
    (`eval_do_concat_batches=False`), or batch by batch (`batch_eval_metrics=True`). Rows labelled -100 are
    left out; without any other row the figures are not a number.

    Example:
        >>> accuracy = compute_metrics(["accuracy"], "single_label_classification")
        >>> logits = np.array([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
        >>> accuracy(EvalPrediction(logits, np.array([1, 0, -100])))
        {'accuracy': 0.5}
        >>> accuracy(EvalPrediction(logits, np.array([1, 1, 1])), compute_result=False)
        {}
        >>> accuracy(EvalPrediction(logits, np.array([0, 0, 0])), compute_result=True)
        {'accuracy': 0.5}
    """
    metrics = dict(find_metric(name, problem_type) for name in names)
    batches: list[tuple[np.ndarray, np.ndarray]] = []  # predictions and references

    def compute(prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        logits, labels = prediction.predictions, prediction.label_ids
        pairs = zip(logits, labels, strict=True) if isinstance(logits, list) else [(logits, labels)]
        batches.extend(_scored_rows(*pair, problem_type) for pair in pairs)
        if not compute_result:
            return {}
        predictions, references = map(np.concatenate, zip(*batches, strict=True))
        batches.clear()
        if not len(references):
            return dict.fromkeys(metrics, float("nan"))
        return {name: metric(predictions, references) for name, metric in metrics.items()}

    return compute


def _scored_rows(logits: Any, labels: Any, problem_type: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) and labels of a batch -> predictions and references of the rows that have a label."""
    # Where a model gives more, or is asked for more than labels, logits and labels come first.
    logits, labels = (part[0] if isinstance(part, tuple) else part for part in (logits, labels))
    logits, labels = (
        nested_numpify(part) if isinstance(part, Tensor) else np.asarray(part) for part in (logits, labels)
    )
    predictions = predictions_of(logits, problem_type)
    references = labels.reshape(predictions.shape)  # (N, 1) is a label per row too
    if problem_type == ProblemType.SINGLE_LABEL:
        labelled = references != IGNORED_LABEL
        return predictions[labelled], references[labelled]
    return predictions, references
