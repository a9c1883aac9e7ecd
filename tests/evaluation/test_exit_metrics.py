"""What evaluation tells of every exit, by whichever way a Trainer gets at its predictions."""

import numpy as np
import pytest
import torch
from stock_and_ours import LAYERS, OURS, label_and_scores, of_label_and_scores, our_model, trainer_of
from tiny import tiny_rows, tiny_tokenizer
from trainer_scenarios import (
    BEST,
    BY_BATCH,
    BatchAccuracy,
    accuracy,
    accuracy_of_batches,
    accuracy_of_ids,
    argmax,
    overwrites,
    report_by_class,
    without_labels,
)
from transformers import DataCollatorWithPadding, EvalPrediction

from modeling_romebert import RomeBertTrainingArguments
from modeling_romebert.evaluation.metrics import compute_metrics as metrics_by_name
from modeling_romebert.training.exit_metrics import figures_of_all_exits


def exit_logits_of(rows):
    batch = DataCollatorWithPadding(tiny_tokenizer())(rows)
    with torch.no_grad():
        logits = our_model().eval()(batch["input_ids"], batch["attention_mask"]).exit_logits  # (B, E, C)
    return logits.unbind(1), batch["labels"]


WAYS = {
    "whole": ({}, {"compute_metrics": accuracy}),
    "default": ({}, {}),
    "default-by-batch": (BY_BATCH, {}),
    "default-apart": ({"eval_do_concat_batches": False}, {}),
    "by-name-by-batch": (
        BY_BATCH,
        {"compute_metrics": metrics_by_name(["accuracy"], "single_label_classification")},
    ),
    "accumulated": ({"eval_accumulation_steps": 1}, {"compute_metrics": accuracy}),
    "apart": ({"eval_do_concat_batches": False}, {"compute_metrics": accuracy_of_batches}),
    "by-batch": (BY_BATCH, {"compute_metrics": BatchAccuracy()}),
    "by-batch-of-ids": (
        BY_BATCH,
        {"compute_metrics": BatchAccuracy(), "preprocess_logits_for_metrics": argmax},
    ),
    "ids": ({}, {"compute_metrics": accuracy_of_ids, "preprocess_logits_for_metrics": argmax}),
    "tuples": (
        {},
        {"compute_metrics": of_label_and_scores, "preprocess_logits_for_metrics": label_and_scores},
    ),
    "objects": (
        {"eval_use_gather_object": True},
        {"compute_metrics": accuracy},
    ),  # the last batch of 2 rows, at 3 exits
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_the_figures_of_each_exit(tmp_path, way):
    """Twice, as an evaluation starts anew. 10 rows in batches of 4."""
    settings, given = WAYS[way]
    logits, labels = exit_logits_of(tiny_rows(10, seed=1))
    expected = [(of_exit.argmax(-1) == labels).double().mean().item() for of_exit in logits]
    assert len(set(expected)) > 1
    trainer = trainer_of(OURS, tmp_path, settings, given)
    for _ in range(2):
        found = trainer.evaluate()
        assert [found[f"eval_accuracy_exit_{layer}"] for layer in range(1, LAYERS + 1)] == pytest.approx(
            expected
        )
        assert found["eval_accuracy"] == pytest.approx(expected[-1])
        assert found["eval_accuracy_mean"] == pytest.approx(np.mean(expected))


def test_batches_of_one_exit_follow_each_other(tmp_path):
    """The last exit's as they come; each exit's from the first to the one that asks for the result, with its
    labels and inputs.
    """
    calls = []

    def metric(prediction, compute_result):
        calls.append(
            (
                prediction.predictions.clone(),
                prediction.label_ids.clone(),
                prediction.inputs["labels"].clone(),
                compute_result,
            )
        )
        prediction.label_ids.zero_()

    trainer = trainer_of(
        OURS, tmp_path, BY_BATCH | {"include_for_metrics": ["inputs"]}, {"compute_metrics": metric}
    )
    trainer.evaluate()
    logits, labels = exit_logits_of(tiny_rows(10, seed=1))
    assert [result for *_, result in calls] == [False, False, True] * LAYERS
    for number, exit_ in enumerate((LAYERS - 1, *range(LAYERS - 1))):
        seen, seen_labels, inputs = (
            torch.cat([call[part] for call in calls[3 * number : 3 * number + 3]]) for part in range(3)
        )
        assert torch.allclose(seen, logits[exit_], atol=1e-5)
        assert torch.equal(seen_labels, labels) and torch.equal(inputs, labels)


def test_report_by_class_of_every_exit(tmp_path):
    """Nested, and each exit names the classes that it predicts."""
    rows = [row | {"labels": 0} for row in tiny_rows(10, seed=1)]
    logits, labels = exit_logits_of(rows)
    expected = [report_by_class(EvalPrediction(of_exit.numpy(), labels.numpy())) for of_exit in logits]
    assert len({frozenset(of_exit) for of_exit in expected}) > 1
    found = trainer_of(OURS, tmp_path, {}, {"compute_metrics": report_by_class}).evaluate(eval_dataset=rows)
    for layer, of_exit in enumerate(expected, start=1):
        names = {name for name in found if name.endswith(f"_exit_{layer}")}
        assert names == {f"eval_{name}_exit_{layer}" for name in of_exit}
        for name, value in of_exit.items():
            assert found[f"eval_{name}_exit_{layer}"] == (
                pytest.approx(value) if isinstance(value, float) else value
            )
    assert {name for name in expected[-1] if f"eval_{name}" in found} == set(expected[-1])
    assert not [name for name in found if name.endswith("avg_mean")]


@pytest.mark.parametrize(
    ("per_exit", "besides"),
    [
        ([{"a": 1}, {"a": 2.0}], {"a_exit_1": 1, "a_exit_2": 2.0, "a_mean": 1.5}),
        ([{"a": 1.0}, {"a": None}], {"a_exit_1": 1.0, "a_exit_2": None}),
        ([{"a": True}, {"a": False}], {"a_exit_1": True, "a_exit_2": False}),
        (
            [{"a": np.float32(0.5)}, {"a": torch.tensor(1.0)}],
            {"a_exit_1": 0.5, "a_exit_2": 1.0, "a_mean": 0.75},
        ),
        ([{"b": 1.0}, {"a": 1.0}], {"a_exit_2": 1.0, "b_exit_1": 1.0}),
        (
            [{"a": 0.0, "a_mean": 7.0}, {"a": 1.0, "a_mean": 9.0}],
            {
                "a_exit_1": 0.0,
                "a_exit_2": 1.0,
                "a_mean_exit_1": 7.0,
                "a_mean_exit_2": 9.0,
                "a_mean_mean": 8.0,
            },
        ),
        ([{}, {}], {}),
    ],
    ids=["numbers", "none", "truth", "numpy-and-torch", "other-names", "a-name-like-ours", "nothing"],
)
def test_figures_side_by_side(per_exit, besides):
    found = figures_of_all_exits(per_exit, [1, 2])
    assert found == {
        **besides,
        **{name: v.item() if torch.is_tensor(v) else v for name, v in per_exit[-1].items()},
    }


def test_metric_that_is_no_dict(tmp_path):
    with pytest.raises(
        TypeError,
        match=r"compute_metrics returned None for the exit after layer 1; it returns a dict of names",
    ):
        trainer_of(OURS, tmp_path, {}, {"compute_metrics": print}).evaluate()


def test_metric_that_overwrites_its_arguments(tmp_path):
    _, labels = exit_logits_of(tiny_rows(10, seed=1))
    found = trainer_of(OURS, tmp_path, {}, {"compute_metrics": overwrites}).evaluate()
    assert {found[f"eval_labels_exit_{layer}"] for layer in range(1, LAYERS + 1)} == {int((labels + 1).sum())}


def test_metric_that_predicts(tmp_path):
    """Another loop inside the loop."""
    rows = without_labels(tiny_rows(6))

    def metric(prediction):
        return {"said": trainer.predict(rows).predictions.tolist(), "hits": len(prediction.predictions)}

    trainer = trainer_of(
        OURS, tmp_path, {}, {"compute_metrics": metric, "preprocess_logits_for_metrics": argmax}
    )
    found = trainer.evaluate()
    assert (
        found["eval_said"]
        == found["eval_said_exit_1"]
        == exit_logits_of(tiny_rows(6))[0][-1].argmax(-1).tolist()
    )


def test_evaluation_after_one_that_failed(tmp_path):
    trainer = trainer_of(
        OURS, tmp_path, BY_BATCH, {"compute_metrics": lambda prediction, compute_result: {}[0]}
    )
    with pytest.raises(KeyError):
        trainer.evaluate()
    trainer.compute_metrics = BatchAccuracy()
    assert trainer.evaluate()["eval_rows_exit_1"] == 10


def test_best_model_by_one_exit(tmp_path):
    """The metric of the first exit is best after its second evaluation, that of the last after its first."""
    values = {1: iter([0.1, 0.9, 0.2]), 2: iter([0.5] * 3), 3: iter([0.9, 0.1, 0.2])}
    layer = iter([1, 2, 3] * 3)
    settings = BEST | {"metric_for_best_model": "good_exit_1"}
    trainer = trainer_of(
        OURS, tmp_path, settings, {"compute_metrics": lambda prediction: {"good": next(values[next(layer)])}}
    )
    trainer.train()
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (0.9, 2)


@pytest.mark.parametrize(
    ("metric", "given", "greater"),
    [
        ("loss", None, False),
        ("eval_log_loss_exit_2", None, False),
        ("log_loss_mean", None, False),
        ("log_loss_mean", True, True),
        ("accuracy_exit_2", None, True),
        ("lossless_mean", None, True),
    ],
)
def test_loss_of_an_exit_is_better_when_less(tmp_path, metric, given, greater):
    """As transformers has it for a name that ends in loss."""
    settings = RomeBertTrainingArguments(
        str(tmp_path), metric_for_best_model=metric, greater_is_better=given, use_cpu=True
    )
    assert settings.greater_is_better is greater


@pytest.mark.parametrize(
    ("problem", "logits", "labels", "expected"),
    [
        ("single_label_classification", [[0, 1], [1, 0], [0, 1]], [[1], [1], [1]], {"accuracy": 2 / 3}),
        ("single_label_classification", [[0, 1], [1, 0], [0, 1]], [1, -100, 0], {"accuracy": 1 / 2}),
        ("single_label_classification", [[0, 1]], [-100], {"accuracy": float("nan")}),
        ("regression", [[0], [1], [3]], [[0], [2], [6]], {"pearson": 1.0}),
        ("regression", [[0, 0], [1, 1], [3, 3]], [[0, 0], [2, -2], [6, -6]], {"pearson": 0.0}),
    ],
    ids=["list", "ignored", "all-ignored", "number-in-a-list", "several-numbers"],
)
def test_default_metric_on_labels_as_they_come(problem, logits, labels, expected):
    prediction = EvalPrediction(np.array(logits, dtype=np.float32), np.array(labels))
    assert metrics_by_name(list(expected), problem)(prediction) == pytest.approx(expected, nan_ok=True)
