"""Proven bounds: what was counted on a sample -> a p-value against "the risk is at least this", or an upper
bound.

    0/1 losses               binomial_p_value     exact (Clopper and Pearson 1934)
    losses of -1, 0 and 1    signed_p_value       exact, at the worst spread (Berger and Boos 1994)
    bounded losses           betting_p_value      capital of a bet (Waudby-Smith and Ramdas, arXiv 2010.09686)

All are valid for independent rows of one distribution and any number of them: under the null hypothesis
`risk >= target` a p-value is below a with probability at most a. Which losses they are of is in risks.py,
which thresholds are tested in what order in fixed_sequence.py.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, betaincinv, gammaln, ndtri

Floats = NDArray[np.float64]

NUISANCE = 0.02  # of the error that is allowed, the part that bounds how often rows differ
CELLS = 48  # into which what is unknown is cut


def binomial_p_value(errors: ArrayLike, num_examples: int, target: float) -> Floats:
    """P(Binomial(N, target) <= errors), for each count: small where so few errors speak against the target.

    Args:
        errors: counts, of any shape. Whole numbers: `0.29 * 100` is below 29, and its floor one error too
            kind.
        num_examples: N, at least 1.
        target: the risk of the null hypothesis, in (0, 1).

    Raises:
        ValueError: counts that are no integers, or not in 0..N.

    Example:
        >>> binomial_p_value([5, 6], 1000, 0.01).round(3).tolist()  # 5 of 1,000 certify 1 % at 90 %
        [0.066, 0.129]
    """
    return np.asarray(bdtr(_counts("errors", errors, num_examples), num_examples, target), dtype=float)


def allowed_errors(num_examples: int, target: float, confidence: float) -> int:
    """The most errors among N examples that certify a 0/1 risk below the target; -1 where not even none does.

    Example:
        >>> [allowed_errors(n, 0.01, 0.9) for n in (229, 230, 1000, 5000)]
        [-1, 0, 5, 40]
    """
    p = binomial_p_value(np.arange(int(num_examples * target) + 2), num_examples, target)
    return int(np.searchsorted(p, 1 - confidence, side="right")) - 1


def examples_needed(target: float, confidence: float) -> int:
    """How many examples certify a 0/1 risk below the target when none of them is wrong.

    Example:
        >>> examples_needed(0.01, 0.9)
        230
    """
    return math.ceil(math.log(1 - confidence) / math.log1p(-target))


def signed_p_value(
    losses: ArrayLike, gains: ArrayLike, num_examples: int, target: float, confidence: float
) -> Floats:
    """p-value against `P(loss) - P(gain) >= target`, from how many of N rows lost and how many gained.

    Small values of S = losses - gains + z sqrt(losses + gains + 1), z the normal quantile of the confidence,
    speak against it. How often rows differ, q = P(loss) + P(gain), is unknown: its upper bound u at
    confidence 1 - b comes from the counts, and p = b + the largest P_q(S <= seen) over q up to u (Berger and
    Boos 1994, lemma 1). S takes the spread into account, so that this hardly depends on q.

    Between two values of q the largest chance is bounded: S rises with losses and falls with gains, so fewer
    losses and more gains than the cell has can only make S smaller. Each chance is an exact double sum.

    Args:
        losses, gains: counts, of the same shape.
        num_examples: N.
        target: in (-1, 1).
        confidence: sets z and b = `NUISANCE` * (1 - confidence), before data are seen; the p-value is valid
            whatever it is.

    Raises:
        ValueError: counts that are no integers, or not in 0..N.

    Example:
        >>> signed_p_value([5, 25], [5, 25], 1000, 0.01, 0.9).round(3).tolist()  # none lost, on balance
        [0.009, 0.105]
    """
    lost = _counts("losses", losses, num_examples)
    gained = _counts("gains", gains, num_examples)
    lost, gained = np.broadcast_arrays(lost, gained)
    pairs = zip(lost.flat, gained.flat, strict=True)
    p = [_signed_tail(int(a), int(b), num_examples, float(target), float(confidence)) for a, b in pairs]
    return np.asarray(p, dtype=float).reshape(lost.shape)


@lru_cache(maxsize=65536)
def _signed_tail(losses: int, gains: int, n: int, target: float, confidence: float) -> float:
    """One p-value of `signed_p_value`."""
    differ, part, z = losses + gains, NUISANCE * (1 - confidence), float(ndtri(confidence))
    u = float(betaincinv(differ + 1, n - differ, 1 - part)) if differ < n else 1.0
    if u < abs(target):  # a difference is at most q
        return part if target > 0 else 1.0
    edges = np.linspace(math.sqrt(abs(target)), math.sqrt(u), CELLS + 1) ** 2
    loss, gain = (edges[:-1] + target) / 2, (edges[1:] - target) / 2  # least and most of each cell
    loss, gain = loss[:, None], np.minimum(gain, 1 - loss)[:, None]  # (CELLS, 1)
    q = np.minimum(loss + gain, 1 - 1e-12)
    spread = 10 * np.sqrt(n * q[-1, 0]) + 20
    m = np.arange(max(0, math.floor(n * q[0, 0] - spread)), min(n, math.ceil(n * q[-1, 0] + spread)) + 1)
    seen = losses - gains + z * math.sqrt(differ + 1)
    most = np.floor((seen + 1e-9 + m - z * np.sqrt(m + 1)) / 2)  # losses among m rows, for S <= seen
    within = np.where(most < 0, 0.0, bdtr(np.clip(most, 0, m), m, np.minimum(loss / q, 1.0)))
    weight = _binomial_pmf(m, n, q)
    left_out = np.maximum(0.0, 1.0 - weight.sum(axis=1))  # counted as if it spoke for the null
    return min(1.0, part + float(((weight * within).sum(axis=1) + left_out).max()))


def _binomial_pmf(k: NDArray[np.int64], n: int, p: Floats) -> Floats:
    log = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1) + k * np.log(p) + (n - k) * np.log1p(-p)
    return np.exp(log)


def betting_p_value(losses: ArrayLike, target: float, confidence: float, low: float = 0.0) -> Floats:
    """p-value against `mean >= target` for losses in [low, 1], by betting on smaller ones.

    The capital K_t = prod_i (1 - l_i (x_i - m)) with x and m the losses and the target brought to [0, 1] does
    not grow on average while the mean is m or more, so it ever reaches 1/p with probability at most p
    (Ville). l_i is that of Waudby-Smith and Ramdas, arXiv 2010.09686, for a fixed N: from the losses before
    i, and at most 3/4 of what could lose all. The order counts: the rows are shuffled, always alike.

    Args:
        losses: (N,) or (K, N): of K thresholds.
        target: in (low, 1).
        confidence: what the bets are tuned for; the p-value is valid whatever it is.
        low: the smallest loss there can be: 0, or -1 for signed ones.

    Returns: (), or (K,).

    Raises:
        ValueError: losses that are not within [low, 1], or no rows.

    Example:
        >>> float(betting_p_value(np.zeros(500), 0.01, 0.9).round(3))
        0.024
    """
    x = np.atleast_2d(np.asarray(losses, dtype=float))
    if x.shape[1] == 0 or not (x.min() >= low - 1e-12 and x.max() <= 1 + 1e-12):
        raise ValueError(f"losses: give at least one, all in {low:g}..1.")
    x, m = (x - low) / (1 - low), (target - low) / (1 - low)  # (K, N)
    x = x[:, np.random.default_rng(0).permutation(x.shape[1])]
    n = x.shape[1]
    seen = np.arange(1, n + 1)
    mean = (0.5 + np.cumsum(x, axis=1)) / (seen + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2, axis=1)) / (seen + 1)
    before = np.concatenate([np.full((len(x), 1), 0.25), variance[:, :-1]], axis=1)
    bet = np.minimum(np.sqrt(2 * math.log(1 / (1 - confidence)) / (n * before)), 0.75 / (1 - m))
    capital = np.cumsum(np.log1p(-bet * (x - m)), axis=1).max(axis=1)
    p = np.exp(-np.maximum(capital, 0.0))
    return p[0] if np.ndim(losses) == 1 else p


def upper_bound(p_value: Callable[[float], float], confidence: float, low: float) -> float:
    """The smallest target that a sample certifies, up to 1e-5 above: an upper bound of its risk at this
    confidence.

    Args:
        p_value: of a target; it falls as the target rises.
        low: no target below it is tried.
    """
    high = 1.0
    while high - low > 1e-5:
        middle = (low + high) / 2
        if p_value(middle) <= 1 - confidence:
            high = middle
        else:
            low = middle
    return high


def _counts(name: str, values: ArrayLike, num_examples: int) -> NDArray[np.int64]:
    counts = np.asarray(values)
    if not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(
            f"{name} are of type {counts.dtype}: give counts as integers, such as (loss > 0).sum(); a rate"
            " times the number of examples may lose one to rounding."
        )
    if counts.size and (counts.min() < 0 or counts.max() > num_examples):
        raise ValueError(f"{name}: {counts.min()}..{counts.max()} is not within 0..{num_examples}.")
    return counts.astype(np.int64)
