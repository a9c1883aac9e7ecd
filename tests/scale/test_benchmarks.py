"""examples/benchmarks/scale.py and serving.py, small: every side runs, and answers as it should."""

import pytest
from benchmarks import load, scale, serving
from scored import TEXTS
from tiny import write_rows

from modeling_romebert.evaluation.provenance import read_json


@pytest.fixture
def texts(here) -> str:
    """Enough of them for each split to have some."""
    rows = [{"text": text, "label": ("dull", "fine")[number % 2]} for number, text in enumerate(TEXTS)]
    return write_rows("texts.jsonl", rows)


def test_many_rows(texts, model, monkeypatch):
    """Every side labels all rows. Its seconds are made up: so few are lost in the noise of a start."""
    run_side = scale.run_side

    def timed(side, workers, of_model, path):
        _, peak = run_side(side, workers, of_model, path)
        return {"quarter.csv": 2.0, "rows.csv": 3.5}[path.name], peak

    monkeypatch.setattr(scale, "run_side", timed)
    arguments = ["--model", model, "--dataset", texts, "--rows", "3000", "--output_file", "scale.json"]
    scale.main([*arguments, "--sides", "score", "score_file", "daft", "--workers", "2"])
    results = read_json("scale.json")
    assert [(one["side"], one["workers"]) for one in results["sides"]] == [
        *(("score", None), ("score_file", None), ("daft", 2))
    ]
    assert results["agree"] > 0.99
    for side in results["sides"]:
        assert (side["texts_per_second"], side["seconds_to_start"]) == (1500, 1.5) and side["peak_mb"] > 0
    table = scale.table(results)
    assert "| score_file.py |" in table and "Daft, 2 workers of one thread" in table and " MB |" in table
    with pytest.raises(SystemExit, match="--sides spark: choose from score, score_file, daft, ray"):
        scale.main([*arguments, "--sides", "spark"])


def test_a_server_under_load(texts, model, monkeypatch):
    monkeypatch.setattr(serving, "WARM_UP", 20)
    arguments = ["--model", model, "--dataset", texts, "--seconds", "1", "--most_requests", "100"]
    serving.main([*arguments, "--loads", "0.5", "--threads", "1", "--output_file", "serving.json"])
    results = read_json("serving.json")
    assert set(results["sides"]) == set(serving.SIDES)
    for name, side in results["sides"].items():
        assert side["saturation"] > 0 and side["metrics"]["queue"]["under_way"] == 0
        for one in side["loads"]:
            assert one["answered"] == one["sent"] == 100 and one["failed"] == one["wrong"] == 0
            assert 0 < one["p50_ms"] <= one["p95_ms"] <= one["p99_ms"]
            assert (one["mean_exit_layer"] == 4) == (name == "whole, full depth")
        assert side["metrics"]["requests"]["400"] >= 1
    assert serving.table(results).count("| continuous |") == 3


def test_a_caller_sees_what_is_wrong():
    """Answers that are another text's, refusals and no answer at all are told apart."""
    answers = load.Answers(sent=4, seconds=[0.1, 0.2], wrong=1, failed=1, duration=2.0, layers=5)
    answers.refused[503] = 1
    summary = answers.summary()
    assert (summary["answered"], summary["wrong"], summary["failed"]) == (2, 1, 1)
    assert summary["refused"] == {"503": 1} and summary["per_second"] == 1.0
    assert summary["p50_ms"] == pytest.approx(150) and summary["mean_exit_layer"] == 2.5
