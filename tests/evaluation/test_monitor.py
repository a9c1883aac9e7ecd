"""The monitor: silent while the promise holds, heard when texts change, never in the way of results."""

import logging

import numpy as np
import pytest
import torch
from tiny import WORDS, build, spread_exits, tiny_texts, tiny_tokenizer
from transformers import pipeline

from modeling_romebert import ExitMonitor, calibrate, score

TEXTS = tiny_texts(400, seed=3)


def certified(**settings):
    """A tiny model whose certificate is of `TEXTS`."""
    model = spread_exits(build(num_labels=2), TEXTS)
    rows = [{"text": text} for text in TEXTS]
    calibrate(model, rows, tiny_tokenizer(), risk="disagreement", max_drop=0.2, progress=False, **settings)
    assert model.config.calibration["certified"]
    return model


def test_results_stay_what_they_are_and_counts_are_those_of_full_depth():
    model, tokenizer = certified(), tiny_tokenizer()
    monitor = ExitMonitor.from_config(model.config, 1.0)
    early = list(score(model, tokenizer, TEXTS))
    watched = list(score(model, tokenizer, TEXTS, monitor=monitor))
    assert [one["label"] for one in watched] == [one["label"] for one in early]
    assert [one["exit_layer"] for one in watched] == [one["exit_layer"] for one in early]
    full = list(score(model, tokenizer, TEXTS, exit_policy=False))
    differs = sum(one["label"] != other["label"] for one, other in zip(early, full, strict=True))
    assert (monitor.texts, monitor.compared, monitor.differed) == (400, 400, differs)
    assert monitor.exits == [sum(one["exit_layer"] == layer for one in early) for layer in (1, 2, 3, 4)]
    assert monitor.holds and "Nothing speaks against the promise" in monitor.report()


def test_pipeline_takes_a_share_for_lists_and_single_texts():
    classify = pipeline(
        "early-exit-classification", model=certified(), tokenizer=tiny_tokenizer(), monitor=0.5
    )
    classify(TEXTS[:100])
    for text in TEXTS[100:140]:
        classify(text)
    assert classify.monitor.texts == 140 and 40 < classify.monitor.compared < 100
    assert classify.monitor.limit == 0.2
    classify(TEXTS[:20], monitor=False)
    classify(TEXTS[0], monitor=False)
    assert classify.monitor.texts == 140


def test_texts_that_another_policy_decides_are_not_looked_at(caplog):
    """Nothing was promised of them: not of a list, not of one text, not at full depth."""
    classify = pipeline(
        "early-exit-classification", model=certified(), tokenizer=tiny_tokenizer(), monitor=1.0
    )
    classify(TEXTS[:20])
    for policy in ({"exit_threshold": 1.0}, {"exit_policy": False}):
        classify(TEXTS[:200], **policy)
        classify(TEXTS[0], **policy)
    assert (classify.monitor.texts, classify.monitor.compared) == (20, 20)
    assert (
        caplog.text.count("they are not looked at") == 1 and "Texts leave at other exits" not in caplog.text
    )
    by_hand = ExitMonitor(limit=0.5, share=1.0)
    list(score(classify.model, tiny_tokenizer(), TEXTS[:20], exit_policy=False, monitor=by_hand))
    assert (by_hand.texts, by_hand.differed) == (20, 0)


@pytest.mark.slow
def test_a_shift_is_caught(caplog, monkeypatch):
    """Words in another order of frequency, on which exits disagree: said once, and shares have moved."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model, tokenizer = certified(), tiny_tokenizer()
    pool = [f"{one} {other}" for one in WORDS for other in WORDS]
    early = [result["label"] for result in score(model, tokenizer, pool)]
    full = [result["label"] for result in score(model, tokenizer, pool, exit_policy=False)]
    shifted = [text for text, a, b in zip(pool, early, full, strict=True) if a != b]
    assert len(shifted) > 10
    monitor = ExitMonitor.from_config(model.config, 0.2, seed=0)
    list(score(model, tokenizer, TEXTS, monitor=monitor))
    assert monitor.holds and not caplog.text
    list(score(model, tokenizer, (shifted * 100)[:400], monitor=monitor, window=50))
    assert not monitor.holds and caplog.text.count("The promise does not hold for these texts") == 1


def test_false_alarms_are_rare_however_often_one_looks():
    """At the very limit, looking after each of 2,000 texts: an alarm in at most a twentieth of 200 runs."""
    generator, alarms = np.random.default_rng(0), 0
    for _ in range(200):
        monitor = ExitMonitor(limit=0.05)
        monitor.observe((generator.random(1000) < 0.05).astype(float).tolist())
        alarms += not monitor.holds  # once False it stays
    assert alarms / 200 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def test_a_doubled_rate_is_found():
    monitor, texts = ExitMonitor(limit=0.01), 0
    generator = np.random.default_rng(1)
    while monitor.holds:
        monitor.observe([float(generator.random() < 0.03)])
        texts += 1
    assert 50 < texts < 2000


def test_drift_of_shares():
    monitor = ExitMonitor(limit=0.1, exit_shares=[0.5, 0.3, 0.2], num_examples=1000)
    assert monitor.drift is None
    monitor.count_exits([0] * 500 + [1] * 300 + [2] * 200)
    assert monitor.drift == 0
    monitor.count_exits([2] * 1000)
    assert monitor.drift == pytest.approx(0.4 - 0.026, abs=0.001)  # half of the texts moved 0.8 of the way
    assert "Texts leave at other exits than at calibration" in monitor.report()


def test_several_labels_and_numbers_are_compared():
    monitor = ExitMonitor(limit=0.5, tolerance=0.1)
    monitor.compare(torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 1.0]]), "multi_label_classification")
    assert monitor.differed == 0.5
    monitor.compare(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.05], [2.5]]), "regression")
    assert (monitor.compared, monitor.differed) == (3, 1.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 0}, r"limit=0 is not in \(0, 1\)"),
        ({"limit": 0.1, "share": 2}, r"share=2 is not in \(0, 1\]"),
        ({"limit": 0.1, "confidence": 1}, r"confidence=1 is not in \(0, 1\)"),
    ],
)
def test_values_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        ExitMonitor(**settings)


@pytest.mark.parametrize(
    ("monitor", "message"),
    [(0.1, "holds no certificate of the exit policy in use"), (True, "monitor=True: give the share")],
)
def test_no_promise_to_watch(monitor, message):
    with pytest.raises(ValueError, match=message):
        score(build(exit_policy={"name": "entropy", "threshold": 0.5}), tiny_tokenizer(), [], monitor=monitor)
