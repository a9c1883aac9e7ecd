"""The functions behind the page of examples/demo.py; tests/page/ has the page itself, in a browser."""

import csv
import json
import re

import demo as example
import pytest
from support.demo_parts import answer, curve, exits_table
from support.exit_trace import ExitSeen, Times, times_of, trace
from tiny import build, spread_exits, tiny_texts, tiny_tokenizer, write_rows

from modeling_romebert import make_policy, score

TEXTS = tiny_texts(30)
POLICY = {"name": "entropy", "threshold": 0.6}
EVALUATION = {
    "metric": "accuracy",
    "num_examples": 500,
    "policy": {"name": "entropy"},
    "curve": [
        {"threshold": threshold, "cost": cost, "metric": metric}
        for threshold, cost, metric in ((0.0, 1.0, 0.9), (0.6, 0.5, 0.88), (1.0, 0.25, 0.8))
    ],
}


@pytest.fixture(scope="module")
def model():
    return spread_exits(build(exit_policy=POLICY), TEXTS)


@pytest.fixture
def demo(here, model) -> example.Demo:
    model.save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    return example.Demo("model", max_rows=20)


# ---- one text, exit by exit


def test_a_trace_is_what_the_model_says_at_each_exit(model):
    """Label and confidence of every exit, and the exit of `score`."""
    tokenizer, seen = tiny_tokenizer(), set()
    for text, result in zip(TEXTS, score(model, tokenizer, TEXTS), strict=True):
        exits = list(trace(model, tokenizer, text, make_policy(**POLICY)))
        probabilities = model(**tokenizer(text, return_tensors="pt")).exit_logits[0].softmax(dim=-1)  # (E, C)
        assert [one.layer for one in exits] == model.exit_layers
        assert [one.confidence for one in exits] == pytest.approx(
            probabilities.amax(dim=-1).tolist(), abs=1e-5
        )
        assert [one.label for one in exits] == [
            f"LABEL_{index}" for index in probabilities.argmax(dim=-1).tolist()
        ]
        (left,) = [one for one in exits if one.state == "leaves"]
        assert (left.layer, left.label) == (result["exit_layer"], result["label"])
        assert all(
            one.state == ("goes on" if one.layer < left.layer else "not run") for one in exits if one != left
        )
        seen.add(left.layer)
    assert len(seen) > 2


def test_times_are_medians_of_turns(model):
    """A clock that ticks once per look: a run takes one tick."""
    ticks = iter(range(1000))
    policy = make_policy(**POLICY)
    assert times_of(model, tiny_tokenizer(), "good", policy, lambda: next(ticks)) == Times(1000, 1000)


# ---- markup


EXITS = [
    ExitSeen(1, "a<b", 0.6, "goes on"),
    ExitSeen(2, "good", 0.9, "leaves"),
    ExitSeen(3, "good", 0.95, "not run"),
]


def test_the_table_has_a_row_per_exit_with_labels_for_screen_readers():
    table = exits_table(EXITS, 3)
    assert re.findall(r'<th scope="row">(.*?)</th>', table) == ["1 of 3", "2 of 3", "3 of 3"]
    assert re.findall(r'aria-label="(.*?)"', table) == ["confidence 60%", "confidence 90%", "confidence 95%"]
    assert "a&lt;b" in table and "<strong>leaves</strong>" in table and table.count("opacity") == 1
    assert "<caption>" in table and table.count('scope="col"') == 4


def test_the_answer_is_spoken_as_it_comes():
    assert 'role="status" aria-live="polite"' in answer(EXITS, 3)
    assert "Layer 1 of 3: not sure yet." in answer(EXITS[:1], 3)
    assert "after layer 2 of 3: 1 layer saved." in answer(EXITS[:2], 3)
    assert "1.5 ms, and 4.0 ms at full depth" in answer(EXITS, 3, Times(1.5, 4.0))


def test_the_curve_marks_the_threshold():
    drawn = curve(EVALUATION, 0.55)
    assert "At this threshold 50% of the layers are run and the accuracy is 88.0%, on 500 examples" in drawn
    points = re.search(r'points="(.*?)"', drawn)[1].split()
    marked = re.search(r'cx="(.*?)" cy="(.*?)"', drawn).groups()
    assert len(points) == 3 and ",".join(marked) == points[1] and 'role="img"' in drawn
    assert "holds no evaluation" in curve(None, 0.5)


# ---- the page's functions


def test_a_sentence(demo, model):
    (expected,) = score(model, tiny_tokenizer(), [TEXTS[0]])
    *steps, (line, table) = demo.classify(TEXTS[0], 0.6)
    assert len(steps) == 4 and [step[1].count("<tr") for step in steps] == [2, 3, 4, 5]
    assert f"after layer {expected['exit_layer']} of 4" in line and "ms at full depth" in line
    assert expected["label"] in line and table == steps[-1][1]
    assert list(demo.classify("  ", 0.6)) == [(example.said("Type a sentence first."), "")]


def test_the_threshold_moves_the_exit(demo):
    """Nobody leaves early at 0; everybody leaves at once at 1."""
    assert (demo.grid[0], demo.grid[-1], demo.threshold, demo.step) == (0.0, 1.0, 0.6, 0.005)
    assert "after layer 4 of 4" in list(demo.classify("good film", 0.0))[-1][0]
    assert "after layer 1 of 4" in list(demo.classify("good film", 1.0))[-1][0]


def test_what_the_page_promises(demo):
    assert "has no certificate" in demo.promise(0.6)
    config = demo.config
    config.calibration = {"policy": POLICY, "certified": False, "reason": "12 are too few.", "budget": None}
    config.calibration |= {"num_examples": 12, "cost": 1.0}
    assert "12 are too few" in demo.promise(0.6)
    assert demo.promise(0.7).startswith("Not certified at this threshold.")
    demo.model.evaluation = EVALUATION
    assert "accuracy is 80.0%" in demo.curve(0.99)
    demo.model.evaluation = {**EVALUATION, "policy": {"name": "patience"}}
    assert "holds no evaluation" in demo.curve(0.99)


@pytest.mark.parametrize(
    ("policy", "threshold", "step"),
    [
        ({"name": "patience", "patience": 2}, 2, 1),
        ({"name": "entropy", "thresholds": [0.2, 0.4, 0.6, 0.8]}, 0.5, 0.005),
        (None, 0.2, 0.005),
    ],
)
def test_other_policies_have_a_slider_too(here, model, policy, threshold, step):
    model.config.exit_policy, before = policy, model.config.exit_policy
    model.save_pretrained("model")
    model.config.exit_policy = before
    tiny_tokenizer().save_pretrained("model")
    demo = example.Demo("model", 20)
    assert (demo.threshold, demo.step) == (pytest.approx(threshold), step)
    for value in (demo.threshold, demo.grid[0], demo.grid[-1]):
        assert "saved" in list(demo.classify("good film", value))[-1][0]


def test_a_file(demo, model):
    write_rows("few.jsonl", [{"text": text} for text in [*TEXTS[:9], None]])
    line, shown, path = demo.label_file("few.jsonl", "text", 0.6)
    assert "10 rows, 1 with an error" in line and "% of the layers run" in line
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = list(score(model, tiny_tokenizer(), TEXTS[:9]))
    assert [row["label"] for row in rows[:9]] == [result["label"] for result in expected]
    assert [int(row["exit_layer"]) for row in rows[:9]] == [result["exit_layer"] for result in expected]
    assert rows[9]["error"].startswith("cannot classify None") and shown[0][:2] == [
        TEXTS[0],
        rows[0]["label"],
    ]


def test_what_is_wrong_with_a_file_is_said_on_the_page(demo):
    assert "Choose a file first." in demo.label_file(None, "text", 0.6)[0]
    write_rows("many.jsonl", [{"text": "good"}] * 21)
    line, shown, _ = demo.label_file("many.jsonl", "text", 0.6)
    assert "more than 20 rows; the others were left out" in line and len(shown) == 20
    assert "many.jsonl has no column review; it has text" in demo.label_file("many.jsonl", "review", 0.6)[0]
    with open("no.jsonl", "w") as file:
        file.write(json.dumps({"text": "a"}) + "\n{")
    assert "cannot be read" in demo.label_file("no.jsonl", "text", 0.6)[0]
