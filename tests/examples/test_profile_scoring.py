"""The profile of bulk scoring sees every part, its parts add up, and its arithmetic is right."""

import itertools
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmarks import profile_scoring
from benchmarks.profile_scoring import Stopwatch
from tiny import LAYERS, build, spread_exits, tiny_texts, tiny_tokenizer

from modeling_romebert import EarlyExitPipeline
from modeling_romebert.early_exit import ActiveBatch

PARTS = {"tokenising", "embedding", "results", "layers", "exits", "batches"}


def test_parts_within_a_part_do_not_count_for_it(monkeypatch):
    clock = iter([0, 1, 3, 10, 20, 40])
    monkeypatch.setattr(profile_scoring.time, "perf_counter", lambda: next(clock))
    stopwatch = Stopwatch()
    inner, other = stopwatch.timed("inner", lambda: "found"), stopwatch.timed("other", lambda: None)
    assert stopwatch.timed("outer", lambda: (inner(), other())[0])() == "found"
    assert stopwatch.seconds == {"inner": 2, "other": 10, "outer": 28}  # of 40 in all


def test_a_part_that_fails_counts(monkeypatch):
    clock = iter([0, 5, 8, 9])
    monkeypatch.setattr(profile_scoring.time, "perf_counter", lambda: next(clock))
    stopwatch = Stopwatch()

    def outer():
        with pytest.raises(ZeroDivisionError):
            stopwatch.timed("inner", lambda: 1 / 0)()

    stopwatch.timed("outer", outer)()
    assert stopwatch.seconds == {"inner": 3, "outer": 6}


@pytest.mark.parametrize("exit_policy", [False, {"name": "entropy", "threshold": 0.0}])
def test_every_part_is_seen(exit_policy):
    counts: Counter[str] = Counter()

    class Counting(Stopwatch):
        def timed(self, part, function):
            def run(*args, **kwargs):
                counts[part] += 1
                return function(*args, **kwargs)

            return run

    texts = tiny_texts(20)
    model = build()
    classify = EarlyExitPipeline(model=model, tokenizer=tiny_tokenizer())
    before = ActiveBatch.step
    with profile_scoring.in_parts(Counting()):
        results = classify(texts, exit_policy=exit_policy, batch_size=20)
    assert all(result["exit_layer"] == LAYERS for result in results)
    steps = 1 if exit_policy is False else len(model.exit_layers)
    assert (counts["tokenising"], counts["embedding"]) == (1, 1)  # of one batch
    assert counts["layers"] == counts["exits"] == steps and counts["batches"] == 2 * steps + 1
    assert ActiveBatch.step is before  # nothing is left behind


def test_figures_of_a_policy():
    full = {"tokenising": 1.0, "embedding": 0.5, "results": 0.5, "layers": 16.0, "exits": 2.0, "batches": 0.0}
    early = {"tokenising": 1.0, "embedding": 0.5, "results": 0.5, "layers": 5.0, "exits": 0.5, "batches": 0.5}
    row = profile_scoring.figures("early", "fp32", [early], [full], cost=0.25, by_tokens=0.3)
    assert row["total"] == 8 and row["seconds"] == early
    assert row["added_to_layers"] == pytest.approx(3 / 5)
    assert row["saving_on_the_clock"] == pytest.approx(20 / 8 * 0.25)
    assert row["at_most"] == pytest.approx(
        20 / (2 + 0.3 * 18) * 0.25
    )  # 18 of 20 seconds shrink with the tokens
    row = profile_scoring.figures("full depth", "fp32", [full], [full], cost=1, by_tokens=1)
    assert row["saving_on_the_clock"] == row["at_most"] == 1


@pytest.mark.slow
def test_profile_of_a_model(quick, capsys):
    quick()
    threads = torch.get_num_threads()
    settings = [
        "--model=run/model",
        "--dataset=own.csv",
        "--rounds=2",
        "--texts=3",
        "--bf16=True",
        "--output_file=profile.json",
    ]
    profile_scoring.main(settings)
    results = json.loads(Path("profile.json").read_text())
    assert results["texts"] == 3 and results["machine"]["threads"] == 1 and torch.get_num_threads() == threads
    policies = ("full depth", "calibrated", "cost near 0.5", "cost near 0.3")
    assert [(row["precision"], row["policy"]) for row in results["profile"]] == [
        (precision, policy) for precision in ("fp32", "bf16") for policy in policies
    ]
    for row in results["profile"]:
        assert row["seconds"].keys() == PARTS and row["seconds"]["layers"] > 0 < row["seconds"]["tokenising"]
        assert 0 < row["cost"] <= 1 and row["added_to_layers"] > 0
        assert row["at_most"] == 1 if row["policy"] == "full depth" else row["at_most"] > 0
    assert profile_scoring.table(results) in capsys.readouterr().out


def test_parts_add_up_to_the_whole(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(profile_scoring, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    texts = tiny_texts(200)
    classify = EarlyExitPipeline(model=spread_exits(build(), texts), tokenizer=tiny_tokenizer())
    stopwatch, whole = Stopwatch(), Stopwatch()
    with profile_scoring.one_thread(), profile_scoring.in_parts(stopwatch):
        whole.timed("all", stopwatch.timed("results", classify))(
            texts, exit_policy={"name": "entropy", "threshold": 0.6}
        )
    assert stopwatch.seconds.keys() == PARTS
    assert (
        sum(stopwatch.seconds.values()) == whole.seconds["all"] - 2
    )  # a tick from each look at the clock to the next
