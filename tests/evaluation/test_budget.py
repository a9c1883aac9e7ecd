"""A budget: never over it, never worse than one threshold, and honest about what it loses."""

from itertools import product

import numpy as np
import pytest
from test_calibration import LAYERS, SINGLE, exits_that_learn

from modeling_romebert import POLICIES, calibrate_from_logits, make_policy
from modeling_romebert.evaluation.budget import Problem, _best_joint, _best_single, _levels, drop_interval
from modeling_romebert.evaluation.risks import loss_table
from modeling_romebert.evaluation.sweep import replay

GRID = POLICIES["confidence"].grid(3, fine=True)


def problem_of(logits, labels, policy="confidence"):
    levels = _levels(logits, {"name": policy}, POLICIES[policy].grid(3, fine=True), LAYERS, SINGLE)
    table = loss_table("drop", logits, labels, SINGLE).astype(float)
    return Problem(table, levels, np.array(LAYERS) / 4)


@pytest.mark.parametrize("policy", ["entropy", "confidence", "margin"])
def test_levels_are_the_policy(policy):
    logits, labels = exits_that_learn(60)
    problem, grid = problem_of(logits, labels, policy), POLICIES[policy].grid(3, fine=True)
    for indices in ([3, 50, 0], [120, 7, 0], [206, 206, 0]):
        thresholds = [grid[index] for index in indices]
        left_at = replay(make_policy(policy, thresholds=thresholds), logits, SINGLE)
        assert problem.left_at(np.array(indices)).tolist() == left_at.tolist()


def test_joint_is_the_best_of_all_pairs():
    """Every pair of 23 thresholds at the two early exits."""
    logits, labels = exits_that_learn(150)
    whole = problem_of(logits, labels)
    coarse = Problem(whole.losses, whole.levels // 9, whole.costs)  # 207 thresholds -> 23
    every = [coarse.judge(np.array([*pair, 0])) for pair in product(range(23), repeat=2)]
    for budget in (0.4, 0.6, 0.8):
        single = _best_single(coarse, 23, budget)
        found = coarse.judge(_best_joint(coarse, single, 23, budget))
        best = min(loss for loss, cost in every if cost <= budget)
        assert found[1] <= budget + 1e-9 and found[0] <= coarse.judge(single)[0]
        assert found[0] <= best + 1 / 150 + 1e-9  # within one row of the optimum


@pytest.mark.parametrize("policy", ["entropy", "patience"])
def test_a_budget_is_kept_and_reported(policy):
    logits, labels = exits_that_learn(600)
    found = calibrate_from_logits(logits, labels, exit_layers=LAYERS, policy=policy, speedup=2)
    assert found.cost <= 0.5 and found.budget == 0.5 and not found.certified and found.max_drop is None
    low, high = found.drop_interval
    assert low < found.observed < high
    assert "to run at most 0.5 of the layers" in str(found) and "nothing was promised" in str(found)
    left_at = replay(found.policy, logits, SINGLE).numpy()
    assert np.array(LAYERS)[left_at].mean() / 4 == pytest.approx(found.cost)
    full_budget = calibrate_from_logits(logits, labels, exit_layers=LAYERS, policy=policy, cost=1)
    assert full_budget.with_exits >= full_budget.full_depth


@pytest.mark.parametrize("name", ["entropy", "patience"])
@pytest.mark.parametrize("asked", [{"ask_every": 2}, {"ask_exits": [2]}])
def test_a_budget_below_the_first_exit_that_is_asked_is_refused(name, asked):
    logits, labels = exits_that_learn(100)
    given = {"exit_layers": LAYERS, "policy": {"name": name, **asked}}
    least = LAYERS[1] / LAYERS[-1]
    with pytest.raises(ValueError, match=f"cost=0.3 is below {least:g}, the least that any threshold"):
        calibrate_from_logits(logits, labels, cost=0.3, **given)
    assert calibrate_from_logits(logits, labels, cost=least, **given).cost <= least


@pytest.mark.slow
def test_interval_holds_the_mean():
    """200 draws of losses whose mean is known: outside in at most a tenth."""
    generator, outside = np.random.default_rng(0), 0
    for _ in range(60):
        losses = generator.choice([-1, 0, 1], p=[0.05, 0.88, 0.07], size=300).astype(np.int8)
        low, high = drop_interval(losses, 0.9)
        outside += not low <= 0.02 <= high
    assert outside / 60 <= 0.1 + 2 * np.sqrt(0.09 / 60)
