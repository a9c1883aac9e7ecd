"""Entities and their scores: seqeval is the oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import metrics as seqeval
from transformers import EvalPrediction

from modeling_romebert.evaluation.entities import entities, marks_entities, token_metrics, token_scores

TAGS = ["O", *(f"{mark}-{kind}" for mark in "BIES" for kind in ("PER", "LOC", "A-B"))]
texts = st.lists(st.lists(st.sampled_from(TAGS), min_size=1, max_size=12), min_size=1, max_size=6)


@settings(derandomize=True, deadline=None, max_examples=300, database=None)
@given(tags=st.lists(st.sampled_from(TAGS), max_size=15))
def test_entities_are_those_of_seqeval(tags):
    found = [(kind, first, last + 1) for kind, first, last in seqeval.sequence_labeling.get_entities(tags)]
    assert entities(tags) == found


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@settings(derandomize=True, deadline=None, max_examples=100, database=None)
@given(tags=texts, seed=st.integers(0, 10**6))
def test_scores_are_those_of_seqeval(tags, seed):
    generator = np.random.default_rng(seed)
    predicted = [
        [tag if generator.random() < 0.7 else str(generator.choice(TAGS)) for tag in row] for row in tags
    ]
    found = token_scores(predicted, tags)
    if not any(tag != "O" for row in (*tags, *predicted) for tag in row):
        assert set(found) == {"accuracy"}
        return
    expected = {
        "precision": seqeval.precision_score(tags, predicted, zero_division=0),
        "recall": seqeval.recall_score(tags, predicted, zero_division=0),
        "f1": seqeval.f1_score(tags, predicted, zero_division=0),
        "accuracy": seqeval.accuracy_score(tags, predicted),
    }
    assert found == pytest.approx(expected)


def test_parts_of_speech_have_no_entities():
    assert token_scores([["NOUN", "VERB"]], [["NOUN", "NOUN"]]) == {"accuracy": 0.5}
    assert not marks_entities(["O", "B-PER", "NOUN"])


NAMES = ["O", "B-PER", "I-PER"]
LABELS = np.array([[-100, 1, 2, -100], [0, 1, -100, 0]])
PREDICTED = np.array([[1, 1, 2, 2], [0, 0, 1, 0]])
LOGITS = np.eye(3)[PREDICTED]  # (N, T, C)
EXPECTED = {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "accuracy": 0.8}


def test_metrics_of_a_trainer_count_labelled_tokens():
    assert token_metrics(NAMES)(EvalPrediction(LOGITS, LABELS)) == pytest.approx(EXPECTED)
    tensors = EvalPrediction(torch.tensor(LOGITS).bfloat16(), torch.tensor(LABELS))
    assert token_metrics(NAMES)(tensors) == pytest.approx(EXPECTED)


def test_metrics_of_a_trainer_take_batches():
    lists = EvalPrediction([LOGITS[:1, :3], LOGITS[1:]], [LABELS[:1, :3], LABELS[1:]])
    assert token_metrics(NAMES)(lists) == pytest.approx(EXPECTED)
    metric = token_metrics(NAMES)
    assert metric(EvalPrediction(LOGITS[:1], LABELS[:1]), compute_result=False) == {}
    assert metric(EvalPrediction(LOGITS[1:], LABELS[1:]), compute_result=True) == pytest.approx(EXPECTED)
    # It starts anew.
    last = metric(EvalPrediction(LOGITS[:1], LABELS[:1]), compute_result=True)
    assert last == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "accuracy": 1.0}


def test_metrics_are_the_same_names_where_nothing_is_found():
    nothing = EvalPrediction(np.eye(3)[np.zeros((1, 2), int)], np.zeros((1, 2), int))
    assert token_metrics(NAMES)(nothing) == {"precision": 0, "recall": 0, "f1": 0, "accuracy": 1}
