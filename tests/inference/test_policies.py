"""Policies read scores as their formulas say, remember agreement row by row, and refuse settings that mean
nothing.
"""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_romebert import POLICIES, ExitPolicy, make_policy
from modeling_romebert.confidence import confidence, log_probabilities, margin, normalized_entropy
from modeling_romebert.exit_policies import as_policy

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
NAN, INF = math.nan, math.inf
ALL = [
    {"name": "entropy", "threshold": 0.613},
    {"name": "confidence", "threshold": 0.613},
    {"name": "margin", "threshold": 0.313},
    {"name": "patience", "patience": 2},
    {"name": "patient_confidence", "threshold": 0.513, "patience": 2},
    {"name": "vote", "threshold": 1.213},
]
SCORES = {"entropy": normalized_entropy, "confidence": confidence, "margin": margin}


def name_of(policy):
    return policy["name"]


def of(*probabilities):
    """Probabilities -> logits (B, C)."""
    return torch.tensor(probabilities).log()


def walk(policy, exit_logits, problem_type=SINGLE):
    """exit_logits (E, B, C) -> what `leaves` says at every exit (E, B), nobody leaving."""
    policy = as_policy(policy).start(len(exit_logits), problem_type)
    return [policy.leaves(index, logits).tolist() for index, logits in enumerate(exit_logits)]


# ---- scores, by hand


@pytest.mark.parametrize(
    ("probabilities", "entropy", "largest", "gap"),
    [
        ([0.5, 0.5], 1, 0.5, 0),
        ([0.25, 0.25, 0.25, 0.25], 1, 0.25, 0),
        ([0.5, 0.5, 1e-30, 1e-30], 0.5, 0.5, 0),  # ln 2 / ln 4
        ([0.5, 0.25, 0.125, 0.125], 0.875, 0.5, 0.25),  # 1.75 bits of 2
        ([0.75, 0.25], (0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / math.log(2), 0.75, 0.5),
    ],
)
def test_scores_by_hand(probabilities, entropy, largest, gap):
    log_p = log_probabilities(of(probabilities) + 7, SINGLE)  # what is added to all logits does not matter
    assert log_p.shape == (1, len(probabilities))
    assert normalized_entropy(log_p).item() == pytest.approx(entropy, abs=1e-6)
    assert confidence(log_p).item() == pytest.approx(largest)
    assert margin(log_p).item() == pytest.approx(gap, abs=1e-6)


def test_several_labels_are_judged_by_the_least_sure():
    """Logits ln 3 and -ln 9 are yes with 3/4 and no with 9/10: the first is less sure."""
    log_p = log_probabilities(torch.tensor([[math.log(3), -math.log(9)]]), MULTI)
    assert log_p.shape == (1, 2, 2)
    torch.testing.assert_close(log_p.exp(), torch.tensor([[[0.25, 0.75], [0.9, 0.1]]]))
    assert confidence(log_p).item() == pytest.approx(0.75)
    assert margin(log_p).item() == pytest.approx(0.5)
    assert normalized_entropy(log_p).item() == pytest.approx(
        (0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / math.log(2)
    )


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_large_logits_are_sure_and_not_nan(problem_type, dtype):
    log_p = log_probabilities(torch.tensor([[6e4, -6e4, -6e4]], dtype=dtype), problem_type)
    assert (normalized_entropy(log_p).item(), confidence(log_p).item(), margin(log_p).item()) == (0, 1, 1)
    assert log_p.dtype == torch.float32


@pytest.mark.parametrize("name", ["entropy", "confidence", "margin"])
def test_a_score_equal_to_the_threshold_stays(name):
    logits = of([0.7, 0.2, 0.1])
    score = SCORES[name](log_probabilities(logits, SINGLE)).item()
    step = 1e-6 if name == "entropy" else -1e-6  # entropy leaves below, the others above
    assert walk({"name": name, "threshold": score}, [logits]) == [[False]]
    assert walk({"name": name, "threshold": score + step}, [logits]) == [[True]]
    assert walk({"name": name, "threshold": score - step}, [logits]) == [[False]]


@pytest.mark.parametrize("name", ["entropy", "confidence", "margin"])
def test_one_threshold_per_exit(name):
    logits = of([0.7, 0.3], [0.9, 0.1])  # entropies 0.88, 0.47; confidences 0.7, 0.9; margins 0.4, 0.8
    thresholds = {"entropy": [0.4, 0.5, 0.9], "confidence": [0.95, 0.8, 0.6], "margin": [0.9, 0.6, 0.3]}[name]
    policy = make_policy(name, thresholds=thresholds)
    assert walk(policy, [logits] * 3) == [[False, False], [False, True], [True, True]]
    assert [policy.threshold_at(index) for index in range(3)] == thresholds


# ---- memory, by hand: A and B are rows that say class 0 and 1 with confidence 0.8, a and b with 0.6

ROWS = {"A": [0.8, 0.2], "B": [0.2, 0.8], "a": [0.6, 0.4], "b": [0.4, 0.6]}


def said(exits):
    """A word, one letter per exit, for a single row -> exit_logits (E, 1, C); `?` is NaN."""
    return [torch.full((1, 2), NAN) if letter == "?" else of(ROWS[letter]) for letter in exits]


@pytest.mark.parametrize(
    ("policy", "exits", "expected"),
    [
        ({"name": "patience", "patience": 1}, "AB", "xx"),
        ({"name": "patience", "patience": 2}, "AaBbb", ".x.xx"),
        ({"name": "patience", "patience": 3}, "AABBBB", "....xx"),
        ({"name": "patience", "patience": 2}, "A?AA", "...x"),  # what is not finite agrees with nothing
        ({"name": "patient_confidence", "patience": 2, "threshold": 0.7}, "AABBaAA", ".x.x..x"),
        ({"name": "patient_confidence", "patience": 1, "threshold": 0.7}, "aAbB", ".x.x"),
        (
            {"name": "patient_confidence", "patience": 2, "threshold": 0.7},
            "aAA",
            "..x",
        ),  # the first one was not sure
        ({"name": "patient_confidence", "patience": 2, "threshold": 0.7}, "A?AA", "...x"),
        ({"name": "patient_confidence", "patience": 2, "thresholds": [0.5, 0.5, 0.9]}, "aaA", ".x."),
        ({"name": "vote", "threshold": 1.5}, "AAA", ".xx"),  # 0.8, 1.6, 2.4
        ({"name": "vote", "threshold": 1.5}, "aaa", "..x"),  # 0.6, 1.2, 1.8
        (
            {"name": "vote", "threshold": 1.5},
            "AbbB",
            "...x",
        ),  # 0.8, 0.6, 1.2, 2.0: a new run starts with its own confidence
        ({"name": "vote", "threshold": 1.5}, "A?AA", "...x"),  # 0.8, 0, 0.8, 1.6
        ({"name": "vote", "thresholds": [0.7, 2.0, 1.9]}, "AaA", "x.x"),  # 0.8, 1.4, 2.2
    ],
)
def test_runs_of_agreement_by_hand(policy, exits, expected):
    assert walk(policy, said(exits)) == [[mark == "x"] for mark in expected]


def test_patience_on_regression_compares_numbers_strictly_within_the_tolerance():
    numbers = [1.0, 1.4, 1.9, 1.5, 1.25]  # steps 0.4, 0.5, 0.4, 0.25
    exit_logits = [torch.tensor([[number]]) for number in numbers]
    two = {"name": "patience", "patience": 2, "tolerance": 0.5}
    assert walk(two, exit_logits, REGRESSION) == [[False], [True], [False], [True], [True]]
    assert walk({**two, "patience": 3}, exit_logits, REGRESSION) == [
        [False],
        [False],
        [False],
        [False],
        [True],
    ]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"name": "patience", "patience": 2}, ".x.x"),
        ({"name": "patient_confidence", "patience": 2, "threshold": 0.55}, ".x.."),
        # least sure 0.75, 0.6 (sum 1.35), 0.88 (a new run), 0.5 (sum 1.38)
        ({"name": "vote", "thresholds": [1.3, 1.3, 1.3, 1.4]}, ".x.."),
    ],
)
def test_several_labels_agree_only_when_all_do(policy, expected):
    three, half_more = math.log(3), math.log(1.5)  # 3/4 and 3/5
    exit_logits = [
        torch.tensor([[three, three]]),  # yes yes
        torch.tensor([[half_more, three]]),  # yes yes
        torch.tensor([[half_more * 5, -math.log(9)]]),  # yes no
        torch.tensor([[three, -0.0001]]),  # yes no, barely
    ]
    assert walk(policy, exit_logits, MULTI) == [[mark == "x"] for mark in expected]


# ---- rows: the rule of each policy in plain Python for one row, against a batch that is compacted


def decisions_of(row, problem_type):
    """Logits of a row -> probabilities of its decisions, as lists."""
    pairs = [[0.0, z] for z in row] if problem_type == MULTI else [row]
    powers = [[math.exp(z - max(pair)) for z in pair] for pair in pairs]
    return [[x / sum(each) for x in each] for each in powers]


def leaves_at(policy, exits, problem_type):
    """Exits (E, C) of one row as lists -> index of the exit where it leaves, E - 1 at the latest."""
    name, threshold, run, before = policy["name"], policy.get("threshold"), 0.0, None
    for index, row in enumerate(exits[:-1]):
        if not all(map(math.isfinite, row)):
            run, before = 0.0, None
            continue
        if problem_type == REGRESSION:
            sure, said_now = 1.0, row[0]
            same = before is not None and abs(said_now - before) < policy["tolerance"]
        else:
            decisions = decisions_of(row, problem_type)
            sure = min(max(each) for each in decisions)
            said_now = [each.index(max(each)) for each in decisions]
            same = said_now == before
        if name == "entropy":
            entropies = [-sum(p * math.log(p) for p in each) / math.log(len(each)) for each in decisions]
            leaves = max(entropies) < threshold
        elif name == "confidence":
            leaves = sure > threshold
        elif name == "margin":
            leaves = min(sorted(each)[-1] - sorted(each)[-2] for each in decisions) > threshold
        else:
            counts = name != "patient_confidence" or sure > threshold
            run = (run if same else 0.0) + (sure if name == "vote" else 1.0) if counts else 0.0
            leaves = run > threshold if name == "vote" else run >= policy["patience"]
        before = said_now
        if leaves:
            return index
    return len(exits) - 1


def leave_in_a_batch(policy, exit_logits, problem_type):
    """exit_logits (B, E, C) -> exit index of each row; rows that leave are taken out as the walk does it."""
    policy = as_policy(policy).start(exit_logits.shape[1], problem_type)
    rows, left_at = list(range(len(exit_logits))), [exit_logits.shape[1] - 1] * len(exit_logits)
    for index in range(exit_logits.shape[1] - 1):
        leave = policy.leaves(index, exit_logits[rows, index]).tolist()
        for row, gone in zip(rows, leave, strict=True):
            if gone:
                left_at[row] = index
        stay = [position for position, gone in enumerate(leave) if not gone]
        policy.keep(torch.tensor(stay, dtype=torch.long))
        rows = [rows[position] for position in stay]
        if not rows:
            break
    return left_at


logit = st.sampled_from([-3.0, -1.5, -0.75, 0.25, 0.5, 1.0, 2.0, 4.0])
anything = st.one_of(logit, logit, logit, logit, st.sampled_from([NAN, INF, -INF]))


@st.composite
def cases(draw):
    problem_type = draw(st.sampled_from([SINGLE, MULTI, REGRESSION]))
    rows, exits = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    classes = 1 if problem_type == REGRESSION else draw(st.integers(2, 3))
    count = rows * exits * classes
    values = draw(st.lists(draw(st.sampled_from([logit, anything])), min_size=count, max_size=count))
    policy = draw(st.sampled_from(ALL))
    if problem_type == REGRESSION:
        policy = {"name": "patience", "patience": draw(st.integers(1, 3)), "tolerance": 0.6}
    return policy, torch.tensor(values).view(rows, exits, classes), problem_type


@given(cases())
@settings(deadline=None, max_examples=400)
def test_batch_with_compaction_is_the_rule_row_by_row(case):
    policy, exit_logits, problem_type = case
    expected = [leaves_at(policy, row, problem_type) for row in exit_logits.tolist()]
    assert leave_in_a_batch(policy, exit_logits, problem_type) == expected


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
@pytest.mark.parametrize("policy", ALL, ids=name_of)
def test_many_rows_leave_at_every_exit_as_the_rule_says(policy, problem_type):
    exit_logits = 1.3 * torch.randn(300, 4, 2, generator=torch.Generator().manual_seed(0))
    expected = [leaves_at(policy, row, problem_type) for row in exit_logits.tolist()]
    assert leave_in_a_batch(policy, exit_logits, problem_type) == expected
    assert len(set(expected)) >= 3


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
@pytest.mark.parametrize("name", ["entropy", "confidence", "margin"])
def test_large_logits_are_sure(name, problem_type):
    policy = make_policy(name, threshold=1e-6 if name == "entropy" else 1 - 1e-6).start(2, problem_type)
    assert policy.leaves(0, torch.tensor([[6e4, -6e4, -6e4]], dtype=torch.float16)).tolist() == [True]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
@pytest.mark.parametrize("policy", ALL, ids=name_of)
def test_a_row_that_is_not_finite_never_leaves(policy, problem_type, bad):
    logits = torch.tensor([[9.0, -9.0], [bad, -9.0], [9.0, bad]])
    said_last = walk(policy, [logits] * 3, problem_type)[-1]
    assert said_last == [True, False, False]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_number_that_is_not_finite_never_leaves(bad):
    policy = {"name": "patience", "patience": 1, "tolerance": 0.5}
    assert walk(policy, [torch.tensor([[1.0], [bad]])] * 3, REGRESSION) == [[True, False]] * 3


# ---- objects


@pytest.mark.parametrize("policy", ALL, ids=name_of)
def test_start_gives_independent_copies_without_memory(policy):
    original = as_policy(policy)
    one, two = original.start(3, SINGLE), original.start(3, SINGLE)
    logits = of([0.7, 0.3])
    fresh = [original.start(3, SINGLE).leaves(0, logits).item()]
    for index in range(3):
        one.leaves(index, logits)
    assert [two.leaves(0, logits).item()] == fresh  # what `one` saw is not remembered by `two`
    assert original.to_dict() == one.to_dict() == policy


EVERY_FORM = [
    *ALL,
    {"name": "entropy", "thresholds": [0.1, 0.2]},
    {"name": "patience", "patience": 3, "tolerance": 0.25},
    {"name": "patient_confidence", "thresholds": [0.5, 1.0], "patience": 1},
    {"name": "vote", "threshold": 7},
]


@pytest.mark.parametrize("form", EVERY_FORM)
def test_settings_survive_a_round_trip(form):
    policy = make_policy(**form)
    assert isinstance(policy, POLICIES[form["name"]])
    assert policy.to_dict() == form
    assert make_policy(**json.loads(json.dumps(policy.to_dict()))).to_dict() == form
    assert eval(repr(policy), {"make_policy": make_policy}).to_dict() == form
    assert as_policy(form).to_dict() == form and as_policy(policy) is policy


def test_threshold_is_another_word_for_patience():
    for value in (2, 2.0):
        policy = make_policy("patience", threshold=value)
        assert policy.to_dict() == {"name": "patience", "patience": 2} and isinstance(policy.patience, int)


def test_table_has_every_policy_under_its_name():
    assert list(POLICIES) == ["entropy", "confidence", "margin", "patience", "patient_confidence", "vote"]
    assert all(policy.name == name and issubclass(policy, ExitPolicy) for name, policy in POLICIES.items())


# ---- errors


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            {"name": "oracle"},
            "'oracle' is unknown; choose from entropy, confidence, margin, patience, patient_confidence,"
            " vote",
        ),
        ({"name": "entropy"}, "'entropy' takes exactly one of threshold .* and thresholds"),
        (
            {"name": "margin", "threshold": 0.1, "thresholds": [0.1]},
            "'margin' takes exactly one of threshold",
        ),
        ({"name": "entropy", "threshold": 1.1}, r"'entropy': threshold=1\.1 is not in 0\.\.1"),
        ({"name": "confidence", "threshold": -0.1}, r"'confidence': threshold=-0\.1 is not in 0\.\.1"),
        ({"name": "margin", "threshold": NAN}, r"'margin': threshold=nan is not in 0\.\.1"),
        ({"name": "entropy", "threshold": True}, r"threshold=True is not in 0\.\.1"),
        ({"name": "entropy", "threshold": "0.2"}, r"threshold='0\.2' is not in 0\.\.1"),
        ({"name": "entropy", "thresholds": [0.2, 1.2]}, r"threshold=1\.2 is not in 0\.\.1"),
        ({"name": "patient_confidence", "threshold": 2, "patience": 1}, r"threshold=2 is not in 0\.\.1"),
        ({"name": "vote", "threshold": -1}, "'vote': threshold=-1 is not in 0 or more"),
        ({"name": "patience"}, "patience=None: give the number of exits .* a whole number from 1"),
        ({"name": "patience", "patience": 0}, "patience=0: give the number"),
        ({"name": "patience", "patience": 1.5}, r"patience=1\.5: give the number"),
        ({"name": "patience", "patience": INF}, "patience=inf: give the number"),
        ({"name": "patience", "patience": NAN}, "patience=nan: give the number"),
        ({"name": "patience", "patience": True}, "patience=True: give the number"),
        ({"name": "patience", "patience": 2, "threshold": 2}, "patience=2 and threshold=2: .* give one"),
        (
            {"name": "patience", "patience": 2, "tolerance": -1},
            "'patience': tolerance=-1 is not in 0 or more",
        ),
        ({"name": "patient_confidence", "threshold": 0.5}, "patience=None: give the number"),
        (
            {"name": "entropy", "threshold": 0.5, "patience": 2},
            "'entropy': got an unexpected keyword argument 'patience'",
        ),
        (
            {"name": "patience", "patience": 2, "thresholds": [1]},
            "'patience': got an unexpected keyword argument 'thresholds'",
        ),
        ({"threshold": 0.5}, "has no 'name'; choose from entropy, confidence"),
        (
            "entropy",
            "'entropy' takes exactly one of threshold .*add it, as in .*\"threshold\": .*exit_threshold=",
        ),
        ("patience", "'patience': patience=None: .* as in .*\"patience\": 2"),
        ("entropie", "'entropie' is unknown; choose from entropy"),
        (5, "exit_policy=5: give a policy or its settings"),
        (
            {"name": "vote", "threshold": np.array([0.5])},
            r"'vote': threshold=\[0\.5\] is not a number; thresholds takes one per exit",
        ),
        ({"name": "vote", "thresholds": np.float32(0.5)}, r"'vote': thresholds=0\.5 is not a list"),
        ({"name": "margin", "threshold": np.bool_(True)}, r"threshold=True is not in 0\.\.1"),
        ({"name": "margin", "threshold": torch.tensor(NAN)}, r"threshold=nan is not in 0\.\.1"),
        (
            {"name": "margin", "threshold": 0.1, "ask_every": np.float64(2)},
            r"ask_every=2\.0: give a whole number",
        ),
        (
            {"name": "margin", "threshold": 0.1, "ask_exits": torch.tensor([0, 1])},
            r"ask_exits=\[0, 1\]: give a list of layers",
        ),
    ],
)
def test_settings_that_mean_nothing(form, message):
    with pytest.raises(ValueError, match=message):
        as_policy(form)


@pytest.mark.parametrize("policy", [policy for policy in ALL if policy["name"] != "patience"], ids=name_of)
def test_policies_that_need_probabilities_refuse_regression(policy):
    with pytest.raises(
        ValueError, match=f'\'{policy["name"]}\' needs class probabilities.*"name": "patience"'
    ):
        as_policy(policy).start(4, REGRESSION)


def test_patience_on_regression_needs_a_tolerance():
    with pytest.raises(ValueError, match="'patience' needs tolerance"):
        make_policy("patience", patience=2).start(4, REGRESSION)


@pytest.mark.parametrize("name", ["entropy", "confidence", "margin", "patient_confidence", "vote"])
def test_thresholds_must_be_one_per_exit(name):
    more = {"patience": 1} if name == "patient_confidence" else {}
    policy = make_policy(name, thresholds=[0.1, 0.2, 0.3], **more)
    assert policy.start(3, SINGLE).thresholds == [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match="thresholds has 3 entries, but the model has 4 exits"):
        policy.start(4, SINGLE)


# ---- numbers of numpy and torch


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"name": "entropy", "threshold": np.float32(0.25)}, {"threshold": 0.25}),
        ({"name": "entropy", "threshold": np.float64(0.25)}, {"threshold": 0.25}),
        ({"name": "confidence", "threshold": np.int64(1)}, {"threshold": 1}),
        ({"name": "margin", "threshold": torch.tensor(0.25, dtype=torch.bfloat16)}, {"threshold": 0.25}),
        ({"name": "margin", "threshold": torch.nn.Parameter(torch.tensor(0.25))}, {"threshold": 0.25}),
        ({"name": "vote", "threshold": np.array(1.5)}, {"threshold": 1.5}),
        ({"name": "vote", "thresholds": np.array([1.5, 2])}, {"thresholds": [1.5, 2]}),
        ({"name": "entropy", "thresholds": torch.tensor([0.5, 0.25])}, {"thresholds": [0.5, 0.25]}),
        (
            {"name": "entropy", "thresholds": (np.float32(0.5), torch.tensor(0.25))},
            {"thresholds": [0.5, 0.25]},
        ),
        (
            {"name": "patience", "patience": np.int64(2), "tolerance": np.float32(0.5)},
            {"patience": 2, "tolerance": 0.5},
        ),
        ({"name": "patience", "threshold": torch.tensor(2)}, {"patience": 2}),
        (
            {"name": "patient_confidence", "threshold": 0.5, "patience": np.uint8(2)},
            {"threshold": 0.5, "patience": 2},
        ),
        ({"name": "margin", "threshold": 0.5, "ask_every": np.int32(2)}, {"threshold": 0.5, "ask_every": 2}),
        (
            {"name": "margin", "threshold": 0.5, "ask_every": torch.tensor(2)},
            {"threshold": 0.5, "ask_every": 2},
        ),
        (
            {"name": "margin", "threshold": 0.5, "ask_exits": np.array([4, 2])},
            {"threshold": 0.5, "ask_exits": [2, 4]},
        ),
        (
            {"name": "margin", "threshold": 0.5, "ask_exits": range(2, 5, 2)},
            {"threshold": 0.5, "ask_exits": [2, 4]},
        ),
        (
            {"name": "margin", "threshold": 0.5, "ask_exits": [np.int64(4), torch.tensor(2)]},
            {"threshold": 0.5, "ask_exits": [2, 4]},
        ),
    ],
    ids=str,
)
def test_settings_are_numbers_of_python_whatever_was_given(given, expected):
    policy = as_policy(given)
    expected = {"name": given["name"], **expected}
    assert policy.to_dict() == expected
    assert json.loads(json.dumps(policy.to_dict())) == expected
    assert as_policy(policy.to_dict()).to_dict() == expected


def test_another_threshold_keeps_the_rest():
    policy = make_policy("patient_confidence", thresholds=[0.5, 0.6], patience=2, ask_exits=[2])
    expected = {"name": "patient_confidence", "threshold": 0.25, "patience": 2, "ask_exits": [2]}
    assert (
        as_policy(policy, np.float32(0.25)).to_dict()
        == as_policy(policy.to_dict(), 0.25).to_dict()
        == expected
    )
    assert as_policy("patience", 3).to_dict() == as_policy(make_policy("patience", patience=2), 3).to_dict()


def test_a_policy_of_ones_own_takes_another_threshold():
    class Half(ExitPolicy):
        name = "half"

        def __init__(self, threshold=0.5):
            self.threshold = np.float32(threshold)

        def leaves(self, exit_index, logits):
            return logits[:, 0] > self.threshold

    policy = as_policy(Half().asking(2), 0.25)
    assert type(policy) is Half
    assert (
        policy.to_dict() == {"name": "half", "threshold": 0.25, "ask_every": 2}
        and type(policy.to_dict()["threshold"]) is float
    )


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_of_ours_rebatches(name):
    assert make_policy(
        name,
        **{"patience": 2} if "patien" in name else {},
        **{} if name == "patience" else {"threshold": 0.5},
    ).can_rebatch()
