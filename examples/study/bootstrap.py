"""Is one recipe better than another, or were it the seeds and the rows? Intervals of paired differences.

Both recipes are judged with the same seeds on the same rows, and so are their resamples: each draws seeds
and evaluation rows with replacement, the same for both. Resamples of n seeds spread by (n - 1) / n of the
variance that n seeds have, which with three of them is far too little: distances from their mean are drawn
out by as much. Where there are no predictions (as of a point of a curve) the interval is Student's, over
seeds alone; of one seed there is none: its bounds are not numbers.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from scipy.special import stdtrit

from study import characters

Run = dict[str, Any]  # a result, as one_run.py wrote it
OfExits = Callable[[np.ndarray], np.ndarray]  # metrics of all exits (..., E) -> (...)
RESAMPLES = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    """How much more the first recipe has, and between what that lies at the level."""

    difference: float
    low: float
    high: float
    seeds: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def paired(pairs: Sequence[tuple[Sequence[Run], Sequence[Run]]], of_exits: OfExits) -> Interval:
    """Difference of two recipes in what is made of the metrics of all exits (their mean, the last): the mean
    over tasks. Each draws seeds of its own; tasks that are judged on the same rows draw them alike.

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
    found = [
        [float(of_exits(exits_of(one)) - of_exits(exits_of(other))) for one, other in zip(*pair, strict=True)]
        for pair in pairs
    ]
    if not all(has_predictions(run) for ones, others in pairs for run in (*ones, *others)):
        return over_seeds(found)
    means = [_resampled_means(*pair, of_exits, stream=task) for task, pair in enumerate(pairs)]
    low, high = np.quantile(np.mean(means, axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(_mean_over_tasks(found), float(low), float(high), min(map(len, found)))


def _mean_over_tasks(differences: Sequence[Sequence[float]]) -> float:
    return float(np.mean([np.mean(of_task) for of_task in differences]))


def _resampled_means(
    ones: Sequence[Run], others: Sequence[Run], of_exits: OfExits, stream: int
) -> np.ndarray:
    """Runs of one task -> the mean differences of the resamples (R,), whose seeds are drawn from a stream of
    random numbers.
    """
    differences = np.stack(
        [
            of_exits(on_drawn_rows(one)) - of_exits(on_drawn_rows(other))
            for one, other in zip(ones, others, strict=True)
        ],
        axis=1,
    )  # (R, S)
    seeds, of_all = differences.shape[1], differences.mean(axis=1)  # (R,)
    which = np.random.default_rng(stream).integers(seeds, size=(RESAMPLES, seeds))  # (R, S)
    of_drawn = np.take_along_axis(differences, which, axis=1).mean(axis=1)
    return of_all + np.sqrt(seeds / max(seeds - 1, 1)) * (of_drawn - of_all)


def on_drawn_rows(run: Run) -> np.ndarray:
    """(R, E): the metric at each exit on the rows that each resample draws: the same for all runs that are
    judged on the same rows, on whatever backbone.
    """
    answers = tuple(run["predictions"][layer] for layer in sorted(run["predictions"], key=int))
    return _on_drawn_rows(run["metric"], run["labels"], answers, run["rows"]["evaluation"])


@cache  # each run is compared with several
def _on_drawn_rows(metric: str, labels: str, answers: tuple[str, ...], rows: int) -> np.ndarray:
    return of_answers(metric, labels, answers, _row_weights(labels, rows))


@lru_cache(maxsize=4)
def _row_weights(labels: str, rows: int) -> np.ndarray:
    """(R, N): how often each resample draws each row of a data set, which is known by its labels."""
    draws = np.random.default_rng(crc32(labels.encode()))
    return draws.multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES).astype(float)


def over_seeds(tasks: Sequence[Sequence[float]]) -> Interval:
    """For each task differences of one number, seed by seed -> the mean over tasks, and its interval over
    seeds alone: Student's, with the degrees of freedom of Welch and Satterthwaite.
    """
    mean, seeds = _mean_over_tasks(tasks), np.array([len(of_task) for of_task in tasks])  # (K,)
    if seeds.min() < 2:
        return Interval(mean, np.nan, np.nan, 1)
    variances = np.array([np.var(of_task, ddof=1) for of_task in tasks]) / seeds  # (K,), of each task's mean
    if not variances.any():
        return Interval(mean, mean, mean, int(seeds.min()))
    freedom = variances.sum() ** 2 / (variances**2 / (seeds - 1)).sum()
    half = float(stdtrit(freedom, (1 + LEVEL) / 2) * np.sqrt(variances.sum()) / len(tasks))
    return Interval(mean, mean - half, mean + half, int(seeds.min()))


def exits_of(run: Run) -> np.ndarray:
    """(E,): the metric at each exit, from the first on."""
    return np.array([run["exits"][layer] for layer in sorted(run["exits"], key=int)])


def has_predictions(run: Run) -> bool:
    return "predictions" in run and run["metric"] in FROM_COUNTS


def of_answers(metric: str, labels: str, answers: Sequence[str], weights: np.ndarray) -> np.ndarray:
    """Labels of N rows and the answers of E exits, as text (characters.py), and weights (R, N), how often a
    resample has each row -> (R, E), the metric at each exit.
    """
    rows = weights.shape[1]
    predicted = np.stack([characters.read(of_exit, rows) for of_exit in answers])  # (E, N)
    return FROM_COUNTS[metric](weights, predicted, characters.read(labels, rows))


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
