"""Certified thresholds: against a plain restatement, against known risks, and with bad input."""

import json
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import build, tiny_rows, tiny_tokenizer
from transformers.utils import logging as library_logging

from modeling_romebert import (
    POLICIES,
    Calibration,
    RomeBertForSequenceClassification,
    RomeBertTrainer,
    RomeBertTrainingArguments,
    calibrate,
    calibrate_from_logits,
    make_policy,
)
from modeling_romebert.data.fingerprint import sample_of
from modeling_romebert.evaluation.risk_bounds import binomial_p_value
from modeling_romebert.evaluation.sweep import replay
from modeling_romebert.model_card import model_card

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
LAYERS = [1, 2, 4]
QUIET = {"tokenizer": tiny_tokenizer(), "progress": False}


def exits_that_learn(count, classes=2, seed=0, noise=(2.0, 1.2, 0.9)):
    """exit_logits (N, 3, C) that get better with depth, and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    signal = torch.nn.functional.one_hot(labels, classes).float() * 3
    shared = torch.randn(count, classes, generator=generator)
    exits = [
        signal + scale * (0.7 * shared + 0.7 * torch.randn(count, classes, generator=generator))
        for scale in noise
    ]
    return torch.stack(exits, dim=1), labels.numpy()


def sized(count, **settings):
    logits, labels = exits_that_learn(count, **settings)
    return {"exit_logits": logits, "labels": labels, "exit_layers": LAYERS}


# ---- what is certified


@pytest.mark.parametrize("policy", ["entropy", "confidence", "margin", "vote", "patience"])
@pytest.mark.parametrize("risk", ["disagreement", "harm"])
def test_it_is_the_cheapest_before_the_first_failure(policy, risk):
    """Row by row, threshold by threshold, with the counts and the binomial written out."""
    logits, labels = exits_that_learn(600)
    found = calibrate_from_logits(
        logits, labels, exit_layers=LAYERS, policy=policy, risk=risk, max_drop=0.1, confidence=0.9
    )
    full, best = logits[:, -1].argmax(-1).numpy(), None
    for threshold in POLICIES[policy].grid(3, fine=True)[1:]:
        left_at = replay(make_policy(policy, threshold=threshold), logits, SINGLE)
        early = logits[torch.arange(600), left_at].argmax(-1).numpy()
        wrong = early != full if risk == "disagreement" else (full == labels) & (early != labels)
        if binomial_p_value(int(wrong.sum()), 600, 0.1) > 0.1:
            break
        cost = float(np.mean(np.array(LAYERS)[left_at]) / 4)
        if best is None or cost < best[0] - 1e-12:
            best = cost, float(wrong.mean()), float(np.mean(early == labels)), threshold
    assert found.certified and found.cost == pytest.approx(best[0]) and found.cost < 1
    assert (found.observed, found.with_exits) == pytest.approx(best[1:3])
    assert found.policy.to_dict() == make_policy(policy, threshold=best[3]).to_dict()
    assert found.observed < found.bound <= 0.1 + 1e-5
    assert found.full_depth == pytest.approx(np.mean(full == labels))


def test_a_gap_is_never_jumped():
    """Texts that leave second get worse, and those that leave third would make up for it: it ends before."""
    sure = torch.tensor([8.0, 0.0])
    early, full = [1.0, -0.3, 0.1], [1.0, 1.0, -1.0]
    logits = torch.stack(
        [torch.stack([scale * sure, last * sure]) for scale, last in zip(early, full, strict=True)]
    )
    logits = logits.repeat_interleave(torch.tensor([500, 200, 1300]), dim=0)  # (N, 2, 2)
    found = calibrate_from_logits(
        logits, np.zeros(2000, int), exit_layers=[1, 2], max_drop=0.05, confidence=0.9
    )
    assert found.certified and found.exit_shares == [0.25, 0.75] and found.observed == 0
    all_out = replay(make_policy("entropy", threshold=1.0), logits, SINGLE)
    assert (all_out == 0).all() and logits[:, 0].argmax(-1).float().mean() == 0.1  # better than full depth


def test_fixed_sequence_of_another_library():
    fwer = pytest.importorskip("mapie.risk_control.fwer_control", reason="comes with the extra `test`")
    for p_values in ([0.01, 0.02, 0.2, 0.01], [0.5, 0.0], [0.0, 0.0]):
        theirs = fwer.FWERFixedSequenceTesting().run(np.array(p_values), 0.1)
        failed = next((i for i, p in enumerate(p_values) if p > 0.1), len(p_values))
        assert theirs.tolist() == list(range(failed))


def test_the_promise_is_kept():
    """Draws from a pool, judged by the pool's own drop. examples/benchmarks/calibration.py has every risk."""
    logits, labels = exits_that_learn(4000)
    thresholds = POLICIES["entropy"].grid(3, fine=True)
    full, broken, draws = logits[:, -1].argmax(-1).numpy(), 0, 25
    true = {}
    for threshold in thresholds:
        left_at = replay(make_policy("entropy", threshold=threshold), logits, SINGLE)
        early = logits[torch.arange(4000), left_at].argmax(-1).numpy()
        true[threshold] = np.mean(full == labels) - np.mean(early == labels)
    generator = np.random.default_rng(0)
    for _ in range(draws):
        draw = generator.integers(0, 4000, 500)
        found = calibrate_from_logits(
            logits[draw], labels[draw], exit_layers=LAYERS, max_drop=0.05, confidence=0.8
        )
        broken += true[found.policy.threshold] > 0.05
    assert broken / draws <= 0.2 + 2 * np.sqrt(0.16 / draws)


def test_several_labels_and_regression():
    generator = torch.Generator().manual_seed(0)
    last = torch.randn(800, 1, 3, generator=generator)
    logits = torch.cat([last + 0.05 * torch.randn(800, 2, 3, generator=generator), last], dim=1)
    labels = (last[:, 0] > 0).int().numpy()
    found = calibrate_from_logits(
        logits, labels, exit_layers=LAYERS, problem_type=MULTI, max_drop=0.1, metric="accuracy"
    )
    assert found.certified and found.cost < 0.26 and found.full_depth == 1
    numbers = calibrate_from_logits(
        logits[..., :1],
        last[:, 0, 0].numpy(),
        exit_layers=LAYERS,
        problem_type=REGRESSION,
        policy={"name": "patience", "tolerance": 0.5},
        max_drop=0.1,
    )
    assert numbers.certified and numbers.tolerance == 0.5 and numbers.policy.patience == 1
    assert numbers.observed == 0


# ---- nothing to certify, and odd data


def test_too_few_examples_run_full_depth_and_say_how_many_are_needed():
    found = calibrate_from_logits(**sized(10), max_drop=0.01, confidence=0.9, risk="harm")
    assert not found.certified and found.cost == 1 and found.observed == 0
    assert (
        "10 examples are too few for max_drop=0.01 at confidence=0.9: at least 230 are needed" in found.reason
    )
    left_at = replay(found.policy, sized(10)["exit_logits"], SINGLE)
    assert (left_at == 2).all() and "every text runs every layer" in str(found)


def test_exits_that_lose_too_much_say_so():
    logits, labels = exits_that_learn(2000, noise=(9.0, 9.0, 0.2))
    found = calibrate_from_logits(10 * logits, labels, exit_layers=LAYERS, risk="harm", max_drop=0.01)
    assert not found.certified and "Allow a larger max_drop, or train" in found.reason


def test_constant_confidences_leave_together_or_not_at_all():
    logits = torch.tensor([1.0, 0.0]).expand(400, 3, 2)
    found = calibrate_from_logits(logits, np.zeros(400, int), exit_layers=LAYERS)
    assert found.certified and found.cost == 0.25 and found.exit_shares == [1, 0, 0]
    ties = calibrate_from_logits(torch.zeros(400, 3, 2), None, exit_layers=LAYERS, risk="disagreement")
    assert ties.certified and ties.disagreement == 0  # undecided rows never leave by entropy


def test_one_class_only():
    logits, _ = exits_that_learn(500)
    found = calibrate_from_logits(logits, np.ones(500, int), exit_layers=LAYERS, max_drop=0.2)
    assert isinstance(found, Calibration) and 0 < found.cost <= 1


def test_early_logits_that_are_not_finite_do_not_leave():
    logits, labels = exits_that_learn(500)
    logits[:, 0] = torch.nan
    found = calibrate_from_logits(logits, labels, exit_layers=LAYERS, max_drop=0.3)
    assert found.exit_shares[0] == 0 and found.certified


# ---- errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_drop": 0}, "max_drop=0 is not between 0 and 1: it is what may be lost"),
        ({"max_drop": 1.0}, "max_drop=1.0 is not between 0 and 1"),
        ({"max_drop": float("nan")}, "max_drop=nan is not between 0 and 1"),
        ({"confidence": 95}, "confidence=95 is not between 0 and 1: it is the chance"),
        ({"confidence": True}, "confidence=True is not between 0 and 1"),
        ({"risk": "loss"}, "risk='loss' is unknown; choose from disagreement, harm, drop"),
        ({"labels": None}, 'labels=None, and risk="drop" compares with labels: .* risk="disagreement"'),
        ({"labels": [0]}, "labels has 1 rows, and exit_logits 50: give one for each"),
        ({"labels": [-100] * 50}, "no rows with a label"),
        ({"exit_layers": [1, 4]}, r"exit_logits has shape \(50, 3, 2\): give \(N, E, C\), with E = 2"),
        ({"problem_type": "ranking"}, "problem_type='ranking' is unknown; choose from single_label"),
        ({"problem_type": REGRESSION, "policy": "patience"}, "needs tolerance"),
        ({"policy": make_policy("entropy", threshold=0.1)}, "give a policy's name or its settings without"),
        ({"policy": {"name": "entropy", "threshold": 0.1}}, "leave threshold out; it is what is varied"),
        ({"policy": {"name": "entropy", "thresholds": [0.1] * 3}}, "leave thresholds out; it is what"),
        ({"policy": "full_depth"}, "exit policy 'full_depth' is unknown; choose from entropy"),
        ({"cost": 0.5, "speedup": 2}, "cost=0.5 and speedup=2: give one of them"),
        ({"cost": 0}, r"cost=0 is not in \(0, 1\]"),
        ({"speedup": 0.5}, "speedup=0.5: give a number from 1"),
        ({"cost": 0.1}, "cost=0.1 is below 0.25, the least that any threshold of this exit policy costs"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        calibrate_from_logits(**{**sized(50), **settings})


def test_answers_at_full_depth_that_are_not_finite_are_refused():
    given = sized(20)
    given["exit_logits"][3, -1, 0] = torch.inf
    with pytest.raises(ValueError, match="the answers at full depth of 1 of 20 rows are not finite"):
        calibrate_from_logits(**given)


def test_one_class_has_no_exits():
    with pytest.raises(ValueError, match="exit_logits has one class, of which every exit is sure"):
        calibrate_from_logits(torch.zeros(5, 3, 1), [0] * 5, exit_layers=LAYERS)


def test_data_that_the_model_was_trained_on_are_refused():
    model, rows = build(num_labels=2), tiny_rows(60)
    model.training_settings = {"rows_seen": sample_of(rows)}
    with pytest.raises(ValueError, match=r"trained on about \d+% of these 30 rows"):
        calibrate(model, rows[:30], **QUIET)
    assert model.config.calibration is None
    calibrate(model, tiny_rows(40, seed=9), **QUIET)


def test_rows_of_an_earlier_training_are_refused_too(tmp_path):
    """After another one, on other rows or on a stream, of the same model or of what was saved."""

    def trained(model, rows):
        settings = {"max_steps": 1, "report_to": "none", "use_cpu": True, "save_strategy": "no"}
        arguments = RomeBertTrainingArguments(str(tmp_path / "run"), **settings)
        RomeBertTrainer(model, arguments, train_dataset=rows, processing_class=tiny_tokenizer()).train()
        return model

    first, second, unseen = tiny_rows(60, seed=1), tiny_rows(60, seed=2), tiny_rows(40, seed=9)
    model = trained(trained(build(num_labels=2), first), second)
    model.save_pretrained(tmp_path / "saved")
    saved = RomeBertForSequenceClassification.from_pretrained(tmp_path / "saved")
    stream = Dataset.from_list(tiny_rows(16, seed=3)).to_iterable_dataset()
    for one in (model, trained(saved, stream)):
        for rows in (first, second):
            with pytest.raises(ValueError, match=r"trained on about \d+% of these 60 rows"):
                calibrate(one, rows, **QUIET)
        calibrate(one, unseen, **QUIET)


@pytest.mark.parametrize("change", ["exits", "temperature", "rounding"])
def test_rows_of_the_training_are_known_where_weights_changed_without_one(tmp_path, change):
    model, rows = build(num_labels=2), tiny_rows(60)
    model.training_settings = {"rows_seen": sample_of(rows)}
    model.save_pretrained(tmp_path / "trained")
    load = RomeBertForSequenceClassification.from_pretrained
    changed = load(tmp_path / "trained", **({"exit_layers": [2, 4]} if change == "exits" else {}))
    if change == "temperature":
        calibrate(changed, tiny_rows(60, seed=9), temperature=True, **QUIET)
    elif change == "rounding":
        changed.half().float()
    changed.save_pretrained(tmp_path / "changed")
    with pytest.raises(ValueError, match=r"trained on about \d+% of these 60 rows"):
        calibrate(load(tmp_path / "changed"), rows, **QUIET)


# ---- the certificate travels


def certified_model(**settings):
    model = build(num_labels=2)
    rows = [{"input_ids": row["input_ids"]} for row in tiny_rows(60)]
    return model, calibrate(model, rows, risk="disagreement", max_drop=0.3, **settings, **QUIET)


def test_texts_need_no_labels_for_disagreement():
    model, found = certified_model()
    assert found.certified and found.num_examples == 60 and found.full_depth is None
    assert model.config.exit_policy == found.policy.to_dict()
    labelled = calibrate(model, tiny_rows(60), risk="disagreement", max_drop=0.3, **QUIET)
    assert labelled.digest == found.digest and labelled.full_depth is not None


def test_certificate_is_saved_loaded_and_told(tmp_path):
    model, found = certified_model()
    model.save_pretrained(tmp_path)
    loaded = RomeBertForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.calibration == json.loads(json.dumps(found.to_dict()))
    card = (tmp_path / "README.md").read_text()
    assert (
        "Certified on 60 examples with 0.95 confidence, for texts like those: at most 0.3 of the answers"
        in card
    )
    assert "Measured with float32, cpu, romebert" in card
    loaded.config.exit_policy = {"name": "entropy", "threshold": 0.01}
    assert "Certified on" not in model_card(loaded.config)


def test_another_precision_is_said_once(caplog, monkeypatch):
    from modeling_romebert import score

    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    library_logging.warning_once.cache_clear()  # of what other tests were told
    model, _ = certified_model()
    list(score(model, QUIET["tokenizer"], ["a film"]))
    assert "certified in" not in caplog.text
    for _ in range(2):
        list(score(model.to(torch.bfloat16), QUIET["tokenizer"], ["a film"]))
    assert caplog.text.count("was certified in float32, and the model runs in bfloat16") == 1
