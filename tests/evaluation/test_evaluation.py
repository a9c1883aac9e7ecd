"""Replayed policies are the walk, and reported figures are those counted by hand."""

import dataclasses
import logging
import os
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from tiny import LAYERS, build, padded_batch, tiny_tokenizer

from modeling_romebert import POLICIES, ExitReport, calibrate, evaluate_exits, score
from modeling_romebert.evaluation.exit_logits import collect_exit_logits
from modeling_romebert.evaluation.provenance import read_json, write_json
from modeling_romebert.evaluation.report import CurvePoint, area_under_curve
from modeling_romebert.evaluation.sweep import replay

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
SWEPT = [{"name": name} for name in ("entropy", "confidence", "margin", "patience", "vote")]
SWEPT.append({"name": "patient_confidence", "patience": 2})
NAMES = [policy["name"] for policy in SWEPT]
QUIET = {"tokenizer": tiny_tokenizer(), "progress": False}


def model_and_rows(problem_type=SINGLE, count=20, **settings):
    """A tiny model and rows of 1 to 40 tokens; their labels are its own answers, some of them changed."""
    model = build(num_labels=1 if problem_type == REGRESSION else 3, problem_type=problem_type, **settings)
    ids, mask = padded_batch(count)
    rows = [
        {"input_ids": row[: int(attended.sum())].tolist()} for row, attended in zip(ids, mask, strict=True)
    ]
    generator, last = torch.Generator().manual_seed(5), alone(model, rows)[:, -1]
    labels = {
        SINGLE: (last.argmax(-1) + torch.randint(2, (count,), generator=generator)) % 3,
        MULTI: ((last > 0) ^ (torch.rand(last.shape, generator=generator) < 0.3)).float(),
        REGRESSION: last[:, 0] + torch.randn(count, generator=generator),
    }[problem_type]
    return model, [{**row, "label": label} for row, label in zip(rows, labels.tolist(), strict=True)]


@torch.no_grad()
def alone(model, rows):
    """exit_logits (N, E, C), row by row."""
    return torch.cat([model(torch.tensor([row["input_ids"]])).exit_logits for row in rows])


# ---- collecting


def test_logits_and_labels_come_in_the_order_of_the_dataset_and_without_dropout():
    model, rows = model_and_rows()
    expected = alone(model, rows)
    exit_logits, labels, _ = collect_exit_logits(
        model.train(), rows, QUIET["tokenizer"], batch_size=7, progress=False
    )
    assert exit_logits.shape == (20, LAYERS, 3) and exit_logits.dtype == torch.float32
    torch.testing.assert_close(exit_logits, expected, rtol=0, atol=1e-5)
    assert labels.tolist() == [row["label"] for row in rows]


def test_rows_may_be_text_pairs_or_tokens_and_the_dataset_a_generator():
    model, tokenizer = build(), QUIET["tokenizer"]
    pair = tokenizer("a film", "was bad", return_tensors="pt")
    assert pair["token_type_ids"].unique().tolist() == [0, 1]
    dataset = [
        {"text": "a film", "text_pair": "was bad", "label": 0},
        {**{name: value[0].tolist() for name, value in pair.items()}, "labels": 1, "idx": 7},
    ]
    exit_logits, labels, _ = collect_exit_logits(model, (row for row in dataset), **QUIET)
    expected = model(**pair).exit_logits
    torch.testing.assert_close(exit_logits, expected.expand(2, -1, -1), rtol=0, atol=1e-5)
    assert labels.tolist() == [0, 1]


# ---- replay and the walk


@pytest.mark.parametrize("exit_layers", [[1, 2, 3, 4], [1, 3, 4], [4]])
@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
@pytest.mark.parametrize("policy", SWEPT, ids=NAMES)
@torch.no_grad()
@pytest.mark.slow
def test_replay_is_the_walk(policy, problem_type, exit_layers):
    model, (ids, mask) = build(problem_type=problem_type, exit_layers=exit_layers), padded_batch()
    exit_logits = model(ids, mask).exit_logits
    seen = set()
    for threshold in [2, 3] if policy["name"] == "patience" else [0.35, 0.65, 0.95]:
        settings = {**policy, "threshold": threshold}
        left_at = replay(settings, exit_logits, problem_type)
        walked = model(ids, mask, exit_policy=settings).exit_layer
        assert torch.tensor(exit_layers)[left_at].tolist() == walked.tolist()
        seen |= set(left_at.tolist())
    assert len(exit_layers) == 1 or len(seen) > 1


@torch.no_grad()
def test_replay_is_the_walk_on_regression():
    model, (ids, mask) = build(num_labels=1), padded_batch()
    policy = {"name": "patience", "patience": 2, "tolerance": 1.0}
    left_at = replay(policy, model(ids, mask).exit_logits, REGRESSION)
    assert (left_at + 1).tolist() == model(ids, mask, exit_policy=policy).exit_layer.tolist()
    assert left_at.unique().tolist() == [1, 2, 3]


# ---- the report


@pytest.mark.parametrize("policy", SWEPT, ids=NAMES)
def test_report_is_what_is_counted_by_hand(policy):
    model, rows = model_and_rows(exit_layers=[1, 2, 4])
    report = evaluate_exits(model, rows, policy=policy, batch_size=8, **QUIET)
    labels = torch.tensor([row["label"] for row in rows])
    predicted = alone(model, rows).argmax(-1)  # (N, E)
    assert (report.metric, report.num_examples, report.num_layers, report.exit_layers) == (
        "accuracy",
        20,
        4,
        [1, 2, 4],
    )
    assert report.exits == pytest.approx([(predicted[:, e] == labels).sum().item() / 20 for e in range(3)])
    assert report.mean == pytest.approx(sum(report.exits) / 3)
    assert report.policy == policy
    assert [point.threshold for point in report.curve] == POLICIES[policy["name"]].grid(3)
    for point in report.curve:
        settings = {**policy, "threshold": point.threshold}
        walked = [model(torch.tensor([row["input_ids"]]), exit_policy=settings) for row in rows]
        layers = [output.exit_layer.item() for output in walked]
        answers = torch.tensor([output.logits.argmax().item() for output in walked])
        assert point.cost == pytest.approx(sum(layers) / (20 * 4))
        assert point.metric == pytest.approx((answers == labels).sum().item() / 20)
        assert point.agreement == pytest.approx((answers == predicted[:, -1]).sum().item() / 20)
        assert point.exit_shares == pytest.approx([layers.count(layer) / 20 for layer in (1, 2, 4)])
        assert (point.saving, point.speedup) == (1 - point.cost, 1 / point.cost)
    assert report.curve[0].cost == 1 and report.curve[0].metric == report.exits[-1]
    assert len({point.cost for point in report.curve}) >= 3


@pytest.mark.parametrize(
    ("problem_type", "policy", "metric"),
    [
        (SINGLE, "entropy", "accuracy"),
        (MULTI, "entropy", "f1_micro"),
        (REGRESSION, {"name": "patience", "tolerance": 1.0}, "pearson"),
    ],
)
def test_default_metric_of_each_problem_type(problem_type, policy, metric):
    model, rows = model_and_rows(problem_type)
    report = evaluate_exits(model, rows, policy=policy, **QUIET)
    exit_logits = alone(model, rows)
    labels = np.asarray([row["label"] for row in rows])
    assert report.metric == metric
    for value, logits in zip(report.exits, exit_logits.unbind(1), strict=True):
        expected = {
            SINGLE: lambda z: (z.argmax(-1).numpy() == labels).mean(),
            MULTI: lambda z: sklearn_metrics.f1_score(labels, (z > 0).numpy(), average="micro"),
            REGRESSION: lambda z: np.corrcoef(z[:, 0].numpy(), labels)[0, 1],
        }[problem_type](logits)
        assert value == pytest.approx(expected, abs=1e-6)
    assert len({point.cost for point in report.curve}) >= 3


def test_own_metric_and_own_thresholds():
    def share_of_class_0(predictions, references):
        return float((predictions == 0).mean())

    model, rows = model_and_rows()
    report = evaluate_exits(model, rows, metric=share_of_class_0, thresholds=[0.5, 0.25], **QUIET)
    assert report.metric == "share_of_class_0"
    assert [point.threshold for point in report.curve] == [0.5, 0.25]
    last = alone(model, rows)[:, -1].argmax(-1)
    assert report.exits[-1] == pytest.approx((last == 0).float().mean().item())


def by_hand_report():
    """Four layers, exits after 2 and 4 that are right on 0.6 and 0.8; one point of cost 0.75 that is right on
    0.75.
    """
    point = CurvePoint(threshold=0.3, cost=0.75, metric=0.75, agreement=0.9, exit_shares=[0.5, 0.5])
    return ExitReport("accuracy", 100, 4, [2, 4], [0.6, 0.8], {"name": "entropy"}, [point], model="tiny")


def test_area_under_the_curve_by_hand():
    # (0.5, 0.6), (0.75, 0.75), (1, 0.8): 0.25 * 0.675 + 0.25 * 0.775 = 0.3625, over a width of 0.5.
    assert by_hand_report().area == pytest.approx(0.725)
    assert area_under_curve([1.0, 0.5, 0.75], [0.8, 0.6, 0.75]) == pytest.approx(0.725)  # in any order
    assert area_under_curve([0.5, 0.5, 1.0], [0.8, 0.8, 0.8]) == pytest.approx(0.8)
    assert area_under_curve([1.0, 1.0], [0.5, 0.75]) == 0.625


def test_table_shows_every_figure():
    lines = by_hand_report().table().splitlines()
    assert lines[:5] == [
        "| exit after layer | accuracy |",
        "|---|---|",
        "| 2 | 0.6000 |",
        "| 4 | 0.8000 |",
        "| mean | 0.7000 |",
    ]
    assert lines[6] == "| entropy threshold | cost | speedup (layers) | accuracy | same as full depth |"
    assert lines[8] == "| 0.3 | 0.750 | 1.33 | 0.7500 | 0.9000 |"
    assert lines[-1] == "area under the curve: 0.7250, on 100 examples"


def test_json_round_trip(tmp_path):
    model, rows = model_and_rows()
    for report in (by_hand_report(), evaluate_exits(model, rows, **QUIET)):
        report.to_json(tmp_path / "deep" / "report.json")
        assert ExitReport.from_json(tmp_path / "deep" / "report.json") == report
    content = read_json(tmp_path / "deep" / "report.json")
    assert (content["mean"], content["area"]) == (report.mean, report.area)
    assert content["curve"][5] == {
        **dataclasses.asdict(report.curve[5]),
        "saving": report.curve[5].saving,
        "speedup": report.curve[5].speedup,
    }
    assert set(content["provenance"]["versions"]) == {"romebert", "torch", "transformers", "python"}


def test_plot_is_a_picture(tmp_path):
    by_hand_report().plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_plot_without_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"drawing needs matplotlib: pip install 'romebert\[plot\]'"):
        by_hand_report().plot(tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()


def test_regression_of_several_numbers():
    """Against a mean over the numbers, which were cut to the first."""
    model = build(num_labels=2, problem_type=REGRESSION)
    ids, _ = padded_batch(8)
    rows = [{"input_ids": row.tolist()} for row in ids]
    last = alone(model, rows)[:, -1]  # (N, 2)
    labels = last + torch.randn(last.shape, generator=torch.Generator().manual_seed(0))
    rows = [row | {"label": label} for row, label in zip(rows, labels.tolist(), strict=True)]
    report = evaluate_exits(model, rows, policy={"name": "patience", "tolerance": 1.0}, **QUIET)
    assert report.exits[-1] == pytest.approx(
        np.mean([np.corrcoef(last[:, k], labels[:, k])[0, 1] for k in range(2)]), abs=1e-5
    )


# ---- errors


@pytest.mark.parametrize("function", [evaluate_exits, calibrate])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"metric": "bleu"},
            "metric='bleu' is unknown; choose from accuracy, f1, f1_macro, f1_micro, f1_weighted, .*, or"
            " give a function",
        ),
        ({"policy": "oracle"}, "exit policy 'oracle' is unknown; choose from entropy, confidence"),
        (
            {"policy": {"name": "entropy", "patience": 2}},
            "'entropy': got an unexpected keyword argument 'patience'",
        ),
        ({"policy": "patient_confidence"}, "patience=None: give the number of exits"),
        ({"policy": {"name": "entropy", "threshold": 0.2}}, "leave threshold out; it is what is varied"),
        ({"policy": {"name": "entropy", "thresholds": [0.2]}}, "leave thresholds out; it is what is varied"),
        ({"policy": {"name": "patience", "patience": 2}}, "leave patience out; it is what is varied"),
    ],
)
def test_settings_that_mean_nothing_fail_before_the_model_runs(function, settings, message):
    def never():
        raise AssertionError("the dataset was read")
        yield

    with pytest.raises(ValueError, match=message):
        function(build(), never(), **settings, **QUIET)


@pytest.mark.parametrize("function", [evaluate_exits, calibrate])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the dataset has no rows"),
        (
            [{"text": "a film", "label": 0}, {"text": "a film", "idx": 1}],
            r"row 1 has no 'labels' \(or 'label'\); it has text, idx",
        ),
        (
            [{"sentence": "a film", "label": 0}],
            "row 0 has neither 'input_ids' nor 'text'; it has sentence, label",
        ),
        (
            [{"text": "a film", "label": 0}, {"text": " ", "label": 0}],
            "row 1 has an empty text, ' '; leave such rows out",
        ),
        ([{"text": 7, "label": 0}], "row 0 has the text 7, which is no string; leave such rows out"),
        ([{"text": None, "label": 0}], "row 0 has the text None, which is no string"),
        (
            [{"text": "a \ud800", "label": 0}],
            "row 0: it is not Unicode: surrogates not allowed at character 2",
        ),
        ([{"text": "a", "text_pair": 7, "label": 0}], "row 0 has the text 7, which is no string"),
        (
            [{"input_ids": [], "label": 0}],
            r"row 0 has no tokens: its input_ids are \[\]\. Leave such rows out",
        ),
        ([{"input_ids": None, "label": 0}], "row 0 has no tokens: its input_ids are None"),
        (
            [{"input_ids": [[2, 3]], "label": 0}],
            r"row 0 has input_ids of another shape than a list of token ids: \[\[2, 3\]\]",
        ),
        ([{"input_ids": "a film", "label": 0}], "row 0 has input_ids of another shape .*: a film"),
        (
            [{"input_ids": [5] * 65, "label": 0}],
            r"row 0 has 65 tokens, .* positions for 64\. Tokenise with truncation=True, max_length=64",
        ),
        (["a film"], "row 0 is a str; give dicts with labels, and input_ids or text"),
        ({"train": [], "test": []}, "the dataset is a dict; give one of its splits: train, test"),
    ],
)
def test_rows_that_cannot_be_evaluated(function, rows, message):
    with pytest.raises((ValueError, TypeError), match=message):
        function(build(), rows, **QUIET)


def test_texts_longer_than_the_positions_are_cut_as_score_does(caplog, monkeypatch):
    """To the positions of the model, also where the tokenizer would let more through."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer, model = tiny_tokenizer(), build()
    tokenizer.model_max_length = 10**6
    texts = ["good " * 100, "a film", "bad film " * 31]  # the last has 62 words, and two special tokens
    rows = [{"text": text, "label": 0} for text in texts]
    exit_logits, _, _ = collect_exit_logits(model, rows, tokenizer, progress=False)
    assert "1 of 3 texts were longer than 64 tokens and were cut" in caplog.text
    scored = list(score(model, tokenizer, texts, exit_policy=False, top_k=None, function_to_apply="none"))
    for row, results in zip(exit_logits[:, -1], scored, strict=True):
        assert sorted(row.tolist(), reverse=True) == pytest.approx(
            [result["score"] for result in results], abs=1e-5
        )


@pytest.mark.parametrize("function", [evaluate_exits, calibrate])
def test_entropy_is_refused_for_regression(function):
    model, rows = model_and_rows(REGRESSION, count=3)
    with pytest.raises(ValueError, match="'entropy' needs class probabilities"):
        function(model, rows, **QUIET)


# ---- files


def test_written_json_is_read_back(tmp_path):
    content = {"a": [1, 2.5, None], "é": {"b": True}}
    write_json(tmp_path / "new" / "x.json", content)
    assert read_json(tmp_path / "new" / "x.json") == content
    assert os.listdir(tmp_path / "new") == ["x.json"]


@pytest.mark.parametrize(
    ("failing", "error", "message"),
    [("content", TypeError, "not JSON serializable"), ("replace", OSError, "disk full")],
)
def test_a_write_that_fails_leaves_the_old_file_and_no_other(failing, error, message, tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    if failing == "replace":
        monkeypatch.setattr(os, "replace", Mock(side_effect=OSError("disk full")))
    with pytest.raises(error, match=message):
        write_json(path, {"new": object() if failing == "content" else 2})
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["x.json"]
