"""Is one recipe better than another, or were it the seeds and the rows? Paired bootstrap intervals.

Both recipes are judged with the same seeds on the same rows, and so are their resamples: each draws seeds
and evaluation rows with replacement, the same for both. Where there are no predictions (as of a point of a
curve), only seeds are drawn, which with three of them says little more than whether all agree, and with one
of them nothing: its bounds are not numbers.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from study import characters

Run = dict[str, Any]  # a result, as one_run.py wrote it
OfExits = Callable[[np.ndarray], np.ndarray]  # metrics of all exits (..., E) -> (...)
RESAMPLES = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    """How much more the first recipe has, and between what the level's share of the resamples lies."""

    difference: float
    low: float
    high: float
    seeds: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def paired(pairs: Sequence[tuple[Sequence[Run], Sequence[Run]]], of_exits: OfExits) -> Interval:
    """Difference of two recipes in what is made of the metrics of all exits (their mean, the last): the mean
    over tasks. Each draws seeds of its own, and rows of its own unless a task before it has the same ones (as
    a data set on two backbones).

    Args:
        pairs: for each task the runs of both recipes, seed by seed.

    Raises:
        ValueError: the seeds of a pair are others, or none; or its rows are.
    """
    for ones, others in pairs:
        if not ones or [run["seed"] for run in ones] != [run["seed"] for run in others]:
            raise ValueError("paired runs have the same seeds, at least one, in the same order.")
        rows = {(run.get("digests") or {}).get("evaluation") for run in (*ones, *others)}
        if len(rows) > 1:
            raise ValueError(
                f"runs of {ones[0]['task']}, {ones[0]['backbone']} are judged on other rows:"
                f" {ones[0]['recipe']} and {others[0]['recipe']}. Delete those of the old rows and run them"
                " anew."
            )
    labels = [ones[0].get("labels") for ones, _ in pairs]
    found = [
        _differences(ones, others, of_exits, seeds_stream=task, rows_stream=labels.index(labels[task]))
        for task, (ones, others) in enumerate(pairs)
    ]
    low, high = _bounds(np.mean([means for _, means in found], axis=0))
    fewest = min(len(ones) for ones, _ in pairs)
    return Interval(float(np.mean([difference for difference, _ in found])), low, high, fewest)


def _differences(
    ones: Sequence[Run], others: Sequence[Run], of_exits: OfExits, seeds_stream: int, rows_stream: int
) -> tuple[float, np.ndarray]:
    """Runs of one task -> the mean difference over seeds, and those of the resamples (R,), which draw from
    streams of random numbers.
    """
    found = np.array(
        [of_exits(exits_of(one)) - of_exits(exits_of(other)) for one, other in zip(ones, others, strict=True)]
    )
    if not all(has_predictions(run) for run in (*ones, *others)):
        return float(found.mean()), _means_over_seeds(found, seeds_stream)
    weights = _row_weights(ones[0]["rows"]["evaluation"], rows_stream)  # (R, N)
    differences = np.stack(
        [
            of_exits(resampled(one, weights)) - of_exits(resampled(other, weights))
            for one, other in zip(ones, others, strict=True)
        ],
        axis=1,
    )  # (R, S)
    drawn = np.take_along_axis(differences, _seeds(len(found), seeds_stream), axis=1)
    return float(found.mean()), drawn.mean(axis=1)


def _seeds(count: int, stream: int) -> np.ndarray:
    """(R, S): which seeds each resample draws."""
    return np.random.default_rng([stream, 0]).integers(count, size=(RESAMPLES, count))


def _means_over_seeds(differences: np.ndarray, stream: int) -> np.ndarray:
    """Differences (S,) -> their means in the resamples of seeds alone (R,); of one seed no numbers."""
    if len(differences) == 1:
        return np.full(RESAMPLES, np.nan)
    return differences[_seeds(len(differences), stream)].mean(axis=1)


@lru_cache(maxsize=16)
def _row_weights(rows: int, stream: int) -> np.ndarray:
    """(R, N): how often each resample draws each row."""
    draws = np.random.default_rng([stream, 1]).multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES)
    return draws.astype(float)


def _bounds(resampled: np.ndarray) -> tuple[float, float]:
    """(R,) -> between what the level's share of them lies."""
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def over_seeds(tasks: Sequence[Sequence[float]]) -> Interval:
    """For each task differences of one number, seed by seed -> the mean over tasks, and its interval over
    seeds alone.
    """
    found = [np.asarray(differences, float) for differences in tasks]
    means = [_means_over_seeds(differences, task) for task, differences in enumerate(found)]
    low, high = _bounds(np.mean(means, axis=0))
    mean = float(np.mean([differences.mean() for differences in found]))
    return Interval(mean, low, high, min(map(len, found)))


def exits_of(run: Run) -> np.ndarray:
    """(E,): the metric at each exit, from the first on."""
    return np.array([run["exits"][layer] for layer in sorted(run["exits"], key=int)])


def has_predictions(run: Run) -> bool:
    return "predictions" in run and run["metric"] in FROM_COUNTS


def resampled(run: Run, weights: np.ndarray) -> np.ndarray:
    """weights (R, N), how often a resample has each row -> (R, E), the metric at each exit."""
    rows, answers = run["rows"]["evaluation"], run["predictions"]
    exits = [characters.read(answers[layer], rows) for layer in sorted(answers, key=int)]
    predicted, labels = np.stack(exits), characters.read(run["labels"], rows)  # (E, N), (N,)
    return FROM_COUNTS[run["metric"]](weights, predicted, labels)


def _accuracy(weights: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return weights @ (predicted == labels).T.astype(float) / weights.sum(axis=1, keepdims=True)


def _counts(weights: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of two classes -> how many are both, are predicted and are labelled class 1, and how many there are."""
    yes, true = (predicted == 1).astype(float), (labels == 1).astype(float)
    total = weights.sum(axis=1, keepdims=True)
    return weights @ (yes * true).T, weights @ yes.T, weights @ true[:, None], total


def _f1(weights: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    both, yes, true, _ = _counts(weights, predicted, labels)
    return 2 * both / np.maximum(yes + true, 1)


def _matthews(weights: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    both, yes, true, total = _counts(weights, predicted, labels)
    spread = np.sqrt(yes * (total - yes) * true * (total - true))
    return _over_spread(total * both - yes * true, spread)


def _pearson(weights: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    total = weights.sum(axis=1, keepdims=True)
    predicted = predicted - predicted.mean(axis=1, keepdims=True)  # so that squares stay small
    labels = labels - labels.mean()
    mean, mean_label = weights @ predicted.T / total, weights @ labels[:, None] / total  # (R, E), (R, 1)
    product = weights @ (predicted * labels).T / total - mean * mean_label
    variance = weights @ np.square(predicted).T / total - mean**2
    spread = np.sqrt(variance * (weights @ np.square(labels)[:, None] / total - mean_label**2))
    return _over_spread(product, spread)


def _over_spread(values: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """values / spread (R, E); 0 where all answers or all labels are alike."""
    return np.where(spread > 0, values / np.where(spread > 0, spread, 1), 0.0)


FROM_COUNTS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews,
    "pearson": _pearson,
}
