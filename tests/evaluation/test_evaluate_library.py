"""The module for `evaluate`, and its evaluator on our pipeline."""

import datasets
import evaluate
import numpy as np
import pytest
import transformers
from evaluate.evaluator import TextClassificationEvaluator
from tiny import build, tiny_texts, tiny_tokenizer
from transformers import pipeline

from modeling_romebert.evaluation import exit_accuracy

PREDICTIONS, REFERENCES = [[0, 1], [1, 1], [0, 0]], [1, 1, 0]


@pytest.fixture
def metric(tmp_path):
    return evaluate.load(exit_accuracy.__file__, cache_dir=str(tmp_path))


def test_it_loads_from_its_path(metric):
    expected = {"accuracy": 1.0, "exit_1": 2 / 3, "exit_2": 1.0, "mean": 5 / 6}
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES) == pytest.approx(expected)
    assert metric.compute(
        predictions=np.array(PREDICTIONS), references=np.array(REFERENCES)
    ) == pytest.approx(expected)
    assert "RomeBERT" in metric.citation and "(N, E)" in metric.inputs_description


def test_batches_add_up(metric):
    for predicted, reference in zip(PREDICTIONS, REFERENCES, strict=True):
        metric.add(prediction=predicted, reference=reference)
    assert metric.compute()["exit_1"] == pytest.approx(2 / 3)


def test_it_combines(metric):
    both = evaluate.combine([metric, metric])
    found = both.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert any(name.endswith("mean") for name in found)


def test_evaluator_runs_our_pipeline(monkeypatch):
    """evaluate 0.4.6 asks transformers for a class that version 5 has not; with one of that name it runs."""
    from evaluate.evaluator import base

    for module in (transformers, base):
        if not hasattr(module, "TFPreTrainedModel"):
            monkeypatch.setattr(module, "TFPreTrainedModel", type("TFPreTrainedModel", (), {}), raising=False)
    policy = {"name": "entropy", "threshold": 0.5}
    model = build(num_labels=2, exit_policy=policy)
    classify = pipeline("early-exit-classification", model=model, tokenizer=tiny_tokenizer())
    texts = tiny_texts(20)
    labels = [model.config.label2id[result["label"]] for result in classify(texts)]
    found = TextClassificationEvaluator("early-exit-classification").compute(
        classify,
        datasets.Dataset.from_dict({"text": texts, "label": labels}),
        metric=_Same(),
        label_mapping=model.config.label2id,
    )
    assert found["same"] == 1.0


class _Same(evaluate.Metric):
    def _info(self):
        number = datasets.Value("int32")
        return evaluate.MetricInfo(
            description="",
            citation="",
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions, references):
        return {"same": float(np.mean(np.asarray(predictions) == np.asarray(references)))}
