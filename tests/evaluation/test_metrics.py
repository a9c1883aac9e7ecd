"""Metrics are their definitions, are refused where they mean nothing, and have to give a number."""

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import LAYERS, build, tiny_tokenizer

from modeling_romebert import calibrate, evaluate_exits
from modeling_romebert.evaluation.metrics import METRICS, compute_metrics, default_metric

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
QUIET = {"tokenizer": tiny_tokenizer(), "progress": False}


def test_classification_metrics_are_their_definitions():
    predictions, references = np.array([1, 1, 1, 0, 0, 0, 1, 0]), np.array([1, 1, 0, 0, 0, 1, 0, 0])
    # Of 4 said to be 1, 2 are; of 3 that are 1, 2 were found; tn = 3, fp = 2, fn = 1.
    assert METRICS["accuracy"](predictions, references) == 5 / 8
    assert METRICS["f1"](predictions, references) == pytest.approx(2 * 2 / (2 * 2 + 2 + 1))
    assert METRICS["matthews_correlation"](predictions, references) == pytest.approx(
        (2 * 3 - 2 * 1) / np.sqrt(4 * 3 * 5 * 4)
    )
    assert METRICS["f1"](np.zeros(4, int), np.array([1, 0, 1, 1])) == 0
    three = (
        np.array([0, 1, 2, 2, 1, 0, 2, 0]),
        np.array([0, 2, 2, 2, 1, 1, 2, 0]),
    )  # F1 of 4/5, 1/2 and 6/7, of 2, 2 and 4 rows
    assert METRICS["f1_macro"](*three) == pytest.approx((4 / 5 + 1 / 2 + 6 / 7) / 3)
    assert METRICS["f1_weighted"](*three) == pytest.approx((2 * 4 / 5 + 2 * 1 / 2 + 4 * 6 / 7) / 8)
    assert METRICS["f1_micro"](*three) == METRICS["accuracy"](*three) == 6 / 8
    several = np.array([[1, 0], [1, 1], [0, 0]]), np.array([[1, 1], [0, 1], [0, 0]])  # tp 2, fp 1, fn 1
    assert METRICS["f1_micro"](*several) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert METRICS["accuracy"](*several) == pytest.approx(4 / 6)


def test_correlations_are_scipy_s_and_0_for_a_constant():
    generator = np.random.default_rng(0)
    x = generator.normal(size=20)
    y = x + generator.normal(size=20)
    assert METRICS["pearson"](x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    ranks = [np.argsort(np.argsort(values)) for values in (x, y)]
    assert METRICS["spearmanr"](x, y) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert METRICS["spearmanr"](x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    for name in ("pearson", "spearmanr"):
        assert METRICS[name](np.ones(20), y) == METRICS[name](x, np.ones(20)) == 0


def test_metrics_for_a_trainer():
    class Prediction:
        predictions, label_ids = (
            np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]]),
            np.array([0, 1, 1, 1]),
        )

    assert default_metric(SINGLE)(Prediction) == {"accuracy": 0.75}
    assert compute_metrics(["accuracy", "f1"], SINGLE)(Prediction) == {
        "accuracy": 0.75,
        "f1": pytest.approx(0.8),
    }
    Prediction.label_ids = np.array([[1, 1], [0, 1], [1, 1], [0, 1]])
    assert default_metric(MULTI)(Prediction) == {"f1_micro": pytest.approx(10 / 11)}  # tp 5, fn 1
    Prediction.predictions, Prediction.label_ids = (
        Prediction.predictions[:, :1],
        np.array([[2.0], [0.0], [1.0], [0.0]]),
    )
    assert default_metric(REGRESSION)(Prediction) == {"pearson": pytest.approx(1)}


@pytest.mark.parametrize("function", [evaluate_exits, calibrate])
@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            float("nan"),
            r"metric=mine gave nan, of type float; for these 3 rows return a finite number "
            r"that stands for it",
        ),
        (
            {"f1": 0.5, "recall": 1.0},
            r"metric=mine gave \{.*\}, of type dict; return one of its entries, 'f1', 'recall', as a number",
        ),
        (
            None,
            r"metric=mine gave None, of type NoneType; return one finite number, of which higher is better",
        ),
        (np.array([0.5, 1.0]), r"metric=mine gave \[0\.5, 1\.0\], of type ndarray; return one finite number"),
    ],
)
def test_metric_that_gives_no_number(function, found, message):
    def mine(predictions, references):
        return found

    model = build()
    with pytest.raises(ValueError, match=message):
        function(model, [{"text": "a film", "label": 0}] * 3, metric=mine, **QUIET)
    assert model.config.exit_policy is None and model.evaluation is None


@pytest.mark.parametrize("found", [np.float32(0.5), np.array(0.5), torch.tensor(0.5), 0.5])
def test_metric_may_give_any_number(found):
    report = evaluate_exits(
        build(), [{"text": "a film", "label": 0}] * 3, metric=lambda *_: found, thresholds=[0.5], **QUIET
    )
    assert report.exits == [0.5] * LAYERS and all(type(value) is float for value in report.exits)


@pytest.mark.parametrize("function", [evaluate_exits, calibrate])
@pytest.mark.parametrize(
    ("problem_type", "metric", "message"),
    [
        (SINGLE, "f1", "here are more: take 'f1_macro', 'f1_micro' or 'f1_weighted'"),
        (MULTI, "f1", "here are more: take 'f1_macro', 'f1_micro' or 'f1_weighted'"),
        (
            MULTI,
            "pearson",
            "metric='pearson' has no meaning for problem_type='multi_label.*; choose from accuracy,"
            " f1_macro, f1_micro",
        ),
        (
            REGRESSION,
            "accuracy",
            "metric='accuracy' has no meaning for problem_type='regression'; choose from pearson, spearmanr",
        ),
    ],
)
def test_metrics_without_meaning_fail_before_the_model_runs(function, problem_type, metric, message):
    with pytest.raises(ValueError, match=message):
        function(
            build(num_labels=1 if problem_type == REGRESSION else 3, problem_type=problem_type),
            [],
            metric=metric,
            **QUIET,
        )


def test_f1_of_three_classes_in_a_trainer():
    class Prediction:
        predictions, label_ids = np.eye(3), np.array([0, 1, 2])

    with pytest.raises(ValueError, match="take 'f1_macro'"):
        compute_metrics(["f1"], SINGLE)(Prediction)
    assert compute_metrics(["f1_macro", "f1_weighted"], SINGLE)(Prediction) == {
        "f1_macro": 1,
        "f1_weighted": 1,
    }
