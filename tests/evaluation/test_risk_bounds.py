"""Bounds against exact sums, another library, and draws from risks that are known."""

from fractions import Fraction
from itertools import product
from math import comb

import numpy as np
import pytest
from scipy.stats import beta, binom, norm

from modeling_romebert.evaluation.risk_bounds import (
    allowed_errors,
    betting_p_value,
    binomial_p_value,
    examples_needed,
    signed_p_value,
    upper_bound,
)


def exact_tail(errors, n, target):
    p = Fraction(target).limit_denominator(10**6)
    return float(sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(errors + 1)))


@pytest.mark.parametrize(("n", "target"), [(1, 0.5), (20, 0.1), (300, 0.01)])
def test_binomial_is_the_exact_sum(n, target):
    counts = np.arange(min(n, 6) + 1)
    ours = binomial_p_value(counts, n, target)
    assert ours == pytest.approx([exact_tail(int(k), n, target) for k in counts], rel=1e-9)
    assert ours == pytest.approx(binom.cdf(counts, n, target), rel=1e-9)


@pytest.mark.parametrize(
    ("n", "allowed"), [(229, -1), (230, 0), (500, 1), (872, 4), (1000, 5), (2000, 13), (5000, 40)]
)
def test_how_few_errors_are_allowed(n, allowed):
    """At 1 % and 90 %: for 229 examples 0.99 ** 229 is 0.1001, so one more is needed."""
    assert allowed_errors(n, 0.01, 0.9) == allowed
    assert examples_needed(0.01, 0.9) == 230


def test_a_rate_times_a_number_is_refused():
    with pytest.raises(ValueError, match="errors are of type float64: give counts as integers"):
        binomial_p_value(0.29 * 100, 100, 0.5)
    with pytest.raises(ValueError, match=r"losses: 3\.\.3 is not within 0\.\.2"):
        signed_p_value(3, 0, 2, 0.1, 0.9)


def test_upper_bound_is_clopper_and_pearsons():
    bound = upper_bound(lambda target: float(binomial_p_value(7, 400, target)), 0.95, 0.0)
    assert bound == pytest.approx(beta.ppf(0.95, 8, 393), abs=2e-5)


def largest_tail(n, target, lost, gained, confidence):
    """The largest P(S <= seen) over the spread, summed over all numbers of losses and gains."""
    z, part = norm.ppf(confidence), 0.02 * (1 - confidence)
    statistic = {
        (a, b): a - b + z * np.sqrt(a + b + 1) for a, b in product(range(n + 1), repeat=2) if a + b <= n
    }
    seen = [pair for pair, value in statistic.items() if value <= statistic[lost, gained] + 1e-9]
    u = beta.ppf(1 - part, lost + gained + 1, n - lost - gained)
    tails = [
        sum(
            comb(n, a) * comb(n - a, b) * ((q + target) / 2) ** a * ((q - target) / 2) ** b
            * (1 - q) ** (n - a - b)
            for a, b in seen
        )
        for q in np.linspace(abs(target), u, 25)
        if u >= abs(target)
    ]  # fmt: skip
    return part + max(tails, default=0.0 if target > 0 else 1.0)


@pytest.mark.parametrize("target", [0.25, -0.1])
@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (0, 3), (2, 3), (0, 12), (5, 6)])
def test_signed_is_the_exact_sum_at_the_worst_spread(lost, gained, target):
    exact = largest_tail(30, target, lost, gained, 0.9)
    ours = float(signed_p_value(lost, gained, 30, target, 0.9))
    assert min(exact, 1) - 1e-9 <= ours <= 1.1 * exact + 0.01  # never below, and not far above


@pytest.mark.parametrize("differ", [0.06, 0.15, 0.5])
def test_signed_keeps_its_level(differ):
    """2,000 draws at the edge of the null hypothesis: certified in at most a tenth of them."""
    shares = [(differ + 0.05) / 2, (differ - 0.05) / 2, 1 - differ]
    draws = np.random.default_rng(0).multinomial(150, shares, size=2000)
    pairs, counts = np.unique(draws[:, :2], axis=0, return_counts=True)
    likely = np.abs(pairs[:, 0] - pairs[:, 1] - 7.5) < 25  # others are certified, or not, for sure
    certified = signed_p_value(*pairs[likely].T, 150, 0.05, 0.9) <= 0.1
    sure = counts[~likely & (pairs[:, 0] < pairs[:, 1])].sum()
    assert (counts[likely][certified].sum() + sure) / 2000 <= 0.1 + 3 * np.sqrt(0.09 / 2000)


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_betting_keeps_its_level_and_certifies(low):
    generator = np.random.default_rng(1)
    at_the_edge = generator.choice([low, 0.0, 0.5, 1.0], p=[0.02, 0.92, 0.02, 0.04], size=(2000, 400))
    target = 0.02 * low + 0.05
    assert (betting_p_value(at_the_edge, target, 0.9, low) <= 0.1).mean() <= 0.1 + 3 * np.sqrt(0.09 / 2000)
    assert (betting_p_value(at_the_edge, target + 0.06, 0.9, low) <= 0.1).mean() > 0.9


def test_betting_by_hand():
    """Two losses of 0 against a mean of 1/2, with a bet of at most 1.5: 1 + 1.5 / 2, squared."""
    assert betting_p_value(np.zeros(2), 0.5, 0.999) == pytest.approx(1 / 1.75**2)
    with pytest.raises(ValueError, match=r"all in 0\.\.1"):
        betting_p_value([2.0], 0.5, 0.9)


def test_the_p_values_of_another_library():
    methods = pytest.importorskip("mapie.risk_control.methods", reason="comes with the extra `test`")
    errors, n = np.array([0, 5, 9, 20]), 1000
    theirs = methods.compute_hoeffding_bentkus_p_value(errors / n, n, np.array([0.01]), binary=True)
    assert np.minimum(theirs[:, 0], 1) == pytest.approx(binomial_p_value(errors, n, 0.01), rel=1e-6)
