"""evaluate_exits and calibrate for tokens: replayed is run, figures have oracles, promises are kept."""

import json

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score
from tiny import LAYERS
from tiny_tokens import TAGS, alone, build_tokens, piece_tokenizer, tagged, tokenised
from transformers import AutoModelForTokenClassification

from modeling_romebert import ExitReport, RomeBertConfig, calibrate, evaluate_exits, export_onnx
from modeling_romebert.data.token_rows import read_token_rows
from modeling_romebert.evaluation.token_calibration import Losses
from modeling_romebert.evaluation.token_evaluation import find_token_metric
from modeling_romebert.evaluation.token_outcomes import Outcome, TokenOutcomes

TOKENIZER = piece_tokenizer()
ROWS = tagged(40, seed=21)
UNITS = [{}, {"unit": "token", "window": 1}, {"unit": "token", "window": 5}]
QUIET = {"progress": False}


def words_alone(policy):
    """Each row by itself: predicted tags of its words, and layers that its tokens ran."""
    model, tags, layers = build_tokens(), [], []
    for row in tokenised([row["tokens"] for row in ROWS]):
        logits, ran = alone(model, row, policy)
        first = [i for i, w in enumerate(row["word_ids"]) if w >= 0 and row["word_ids"][i - 1] != w]
        tags.append([TAGS[index] for index in logits[first].argmax(-1).tolist()])
        layers += ran.tolist()
    return tags, layers


@pytest.mark.parametrize(
    "policy",
    [
        *({"name": "entropy", **unit} for unit in UNITS),
        {"name": "patient_confidence", "patience": 2},
        {"name": "confidence", "ask_every": 2, "unit": "token", "window": 3},
    ],
    ids=str,
)
def test_a_curve_is_what_rows_do_alone(policy):
    report = evaluate_exits(
        build_tokens(), ROWS, TOKENIZER, policy=policy, thresholds=[0.3, 0.6, 0.9], batch_size=7, **QUIET
    )
    right = [[TAGS[label] for label in row["labels"]] for row in ROWS]
    deep, _ = words_alone({"name": "entropy", "threshold": 0.0})
    assert report.metric == "f1" and report.num_examples == len(ROWS)
    assert report.exits[-1] == pytest.approx(f1_score(right, deep))
    for point in report.curve:
        tags, layers = words_alone({**policy, "threshold": point.threshold})
        assert point.metric == pytest.approx(f1_score(right, tags))
        assert point.cost == pytest.approx(np.mean(layers) / LAYERS)
        shares = np.bincount(layers, minlength=LAYERS + 1)[1:] / len(layers)
        assert point.exit_shares == pytest.approx(shares.tolist())
        same = [[a == b for a, b in zip(*pair, strict=True)] for pair in zip(tags, deep, strict=True)]
        assert point.agreement == pytest.approx(np.mean([one for row in same for one in row]))
        assert point.texts_agreement == pytest.approx(np.mean([all(row) for row in same]))
    assert len({point.cost for point in report.curve}) > 1


def test_the_report_is_kept_and_told_by_the_card(tmp_path):
    model = build_tokens()
    report = evaluate_exits(model, ROWS, TOKENIZER, metric="accuracy", thresholds=[0.5], **QUIET)
    report.to_json(tmp_path / "report.json")
    assert ExitReport.from_json(tmp_path / "report.json") == report
    model.save_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| exit after layer | accuracy |" in card and f"| {LAYERS} | {report.exits[-1]:.4f} |" in card


@pytest.mark.parametrize(
    ("metric", "names", "message"),
    [
        ("f2", TAGS, "metric='f2' is unknown; choose from f1, precision, recall, accuracy"),
        ("f1", ["NOUN", "VERB"], "metric='f1' is of entities, and the labels NOUN, VERB mark none"),
    ],
)
def test_a_metric_without_a_meaning_is_refused(metric, names, message):
    config = RomeBertConfig(num_hidden_layers=1, hidden_size=8, id2label=dict(enumerate(names)))
    with pytest.raises(ValueError, match=message):
        find_token_metric(metric, config)
    assert find_token_metric(None, config)[0] == ("f1" if names is TAGS else "accuracy")


def test_a_metric_of_one_s_own_sees_tags():
    def share_of_o(predicted, tags):
        return float(np.mean([tag == "O" for row in predicted for tag in row]))

    report = evaluate_exits(build_tokens(), ROWS, TOKENIZER, metric=share_of_o, thresholds=[0.0], **QUIET)
    deep, _ = words_alone({"name": "entropy", "threshold": 0.0})
    assert report.metric == "share_of_o"
    assert report.exits[-1] == pytest.approx(np.mean([tag == "O" for row in deep for tag in row]))


# ---- calibration


def test_losses_are_of_texts():
    model = build_tokens()
    rows = [{"tokens": ["a", "b"], "labels": [0, 1]}, {"tokens": ["c", "d", "e"], "labels": [0, -100, 2]}]
    outcomes = TokenOutcomes(model, read_token_rows(model, rows, TOKENIZER), TOKENIZER, **QUIET)
    outcomes.full_depth = np.array([0, 1, 0, 3, 2])  # all right
    outcome = Outcome(np.array([0, 4, 0, 0, 2]), np.ones(9, dtype=int))  # wrong in row 0, unlabelled in row 1

    def losses(risk, per):
        return Losses(outcomes, risk, per)(outcome).tolist()

    assert losses("disagreement", "row") == [1, 1] and losses("disagreement", "token") == [1 / 2, 1 / 3]
    assert losses("harm", "row") == losses("drop", "row") == [1, 0]
    assert losses("harm", "token") == losses("drop", "token") == [1 / 2, 0]
    outcomes.full_depth = np.array([3, 1, 0, 3, 3])  # wrong in both rows, the first word and the last
    assert losses("harm", "row") == [0, 0] and losses("drop", "row") == [0, -1]
    assert losses("harm", "token") == [1 / 2, 0] and losses("drop", "token") == [0, -1 / 2]
    assert Losses(outcomes, "drop", "row")(outcome).dtype == np.int8


@pytest.mark.parametrize("unit", [UNITS[0], UNITS[2]], ids=str)
@pytest.mark.parametrize("per", ["row", "token"])
def test_the_cheapest_threshold_that_keeps_the_promise_is_chosen(unit, per, tmp_path):
    model, rows = build_tokens(), tagged(150, seed=22, longest=4)
    promise = {"max_drop": 0.3, "risk": "disagreement", "per": per, "policy": {"name": "entropy", **unit}}
    found = calibrate(model, rows, TOKENIZER, **promise, **QUIET)
    assert found.certified and found.observed <= found.bound <= 0.3 and found.cost < 1
    assert found.per == per and model.config.exit_policy == found.policy.to_dict()
    threshold = found.policy.threshold
    report = evaluate_exits(model, rows, TOKENIZER, policy=promise["policy"], thresholds=[threshold], **QUIET)
    (point,) = report.curve
    assert point.cost == pytest.approx(found.cost)
    if per == "row":
        assert found.observed == pytest.approx(1 - point.texts_agreement)
    words = "at most 0.3 of the texts have a word" if per == "row" else "of a text on average at most 0.3"
    assert words in str(found)
    model.save_pretrained(tmp_path)
    again = AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert again.config.calibration == json.loads(json.dumps(found.to_dict()))
    assert words in (tmp_path / "README.md").read_text()


def test_nothing_is_promised_on_few_examples():
    model = build_tokens()
    found = calibrate(model, ROWS, TOKENIZER, max_drop=0.01, risk="disagreement", **QUIET)
    assert not found.certified and "40 examples are too few" in found.reason
    assert found.cost == 1.0 and found.observed == 0.0


@pytest.mark.parametrize("unit", UNITS[:2], ids=str)
def test_a_budget_is_kept(unit):
    model = build_tokens()
    found = calibrate(model, ROWS, TOKENIZER, cost=0.7, policy={"name": "entropy", **unit}, **QUIET)
    assert found.cost <= 0.7 and found.budget == 0.7 and not found.certified
    low, high = found.drop_interval
    assert low <= found.observed <= high
    with pytest.raises(ValueError, match=r"cost=0\.1 is below 0\.25"):
        calibrate(model, ROWS, TOKENIZER, cost=0.1, **QUIET)


def test_unlabelled_words_will_do_for_disagreement():
    model, rows = build_tokens(), [{"tokens": row["tokens"]} for row in tagged(100, seed=23, longest=3)]
    found = calibrate(model, rows, TOKENIZER, max_drop=0.5, risk="disagreement", **QUIET)
    assert found.certified and found.full_depth is None
    with pytest.raises(ValueError, match="row 0 has no 'labels'"):
        calibrate(model, rows, TOKENIZER, max_drop=0.5, risk="harm", **QUIET)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per": "word"}, "per='word' is unknown; choose from row, token"),
        ({"temperature": True}, "temperature and tolerance are for classifiers of whole texts"),
        ({"policy": {"name": "entropy", "threshold": 0.1}}, "leave threshold out"),
        ({"metric": "f2"}, "metric='f2' is unknown"),
    ],
)
def test_arguments_of_calibrate_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        calibrate(build_tokens(), ROWS, TOKENIZER, **settings)


def test_answers_that_are_not_finite_are_refused():
    model = build_tokens()
    with torch.no_grad():
        model.exits[str(LAYERS)].classifier.bias[0] = torch.nan
    with pytest.raises(ValueError, match="answers at full depth of some words are not finite"):
        calibrate(model, ROWS, TOKENIZER, **QUIET)


def test_tokens_are_not_exported(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match="model classifies tokens, and bundles hold classifiers of whole"):
        export_onnx(build_tokens(), TOKENIZER, tmp_path / "bundle")
