"""The benchmark of training steps: its arithmetic by hand, what its steps move, a run on a tiny shape, and
one that goes on.
"""

import json
from pathlib import Path

import pytest
import torch
from benchmarks import training_cost
from benchmarks.training_cost import GradientBytes, parse_shape, peak_bytes, summary
from torch.profiler import ProfilerActivity, profile

TINY = [
    "--shapes",
    "2x24",
    "--batch_size",
    "4",
    "--rounds",
    "1",
    "--device",
    "cpu",
    "--output",
    "figures.json",
]
STEPS = list(training_cost.NAMES)


# ---- arithmetic


def test_ratios_by_hand():
    """The second round is slow for all sides, which ratios within rounds do not see: 1.5 / 1 and 3.5 / 2,
    median 1.625.
    """
    measured = {step: [1.0, 2.0] for step in STEPS}
    measured["romebert, protect_last"] = [1.5, 3.5]
    measured["deebert, stage 2"] = [0.25, 0.5]
    figures = summary(measured, dict.fromkeys(STEPS, 0), GradientBytes(0, 0))
    step = figures["steps"]["romebert, protect_last"]
    assert step["seconds"] == 2.5 and step["seconds_in_each_round"] == [1.5, 3.5]
    assert step["over_joint"] == {"median": 1.625, "quartile_1": 1.5625, "quartile_3": 1.6875}
    assert figures["over_deebert"]["romebert, off"]["median"] == pytest.approx(0.8)  # 1 / 1.25 and 2 / 2.5
    assert figures["over_deebert"]["romebert, protect_last"]["median"] == pytest.approx((1.2 + 1.4) / 2)


def test_memory_of_the_projection_by_hand():
    peaks = dict.fromkeys(STEPS, 100) | {
        "romebert, off": 110,
        "romebert, protect_exits": 150,
        "romebert, protect_last": 145,
    }
    figures = summary({step: [1.0] for step in STEPS}, peaks, GradientBytes(all=60, shared=40))["projection"]
    assert figures["extra_bytes"] == {"romebert, protect_exits": 40, "romebert, protect_last": 35}
    assert (
        figures["bound_bytes"] == 100
        and figures["gradient_bytes"] == 60
        and figures["shared_gradient_bytes"] == 40
    )


def test_peak_is_above_what_was_there_before():
    """+4, +6, -4, +1 on top of 10: 20 at most, and 10 were there.

    The trace is not in order of time, nor of memory alone.
    """

    def event(time, total, change):
        return {"name": "[memory]", "ts": time, "args": {"Total Allocated": total, "Bytes": change}}

    events = [
        event(2, 20, 6),
        event(1, 14, 4),
        {"name": "aten::mm", "ts": 1},
        {"name": "process_name"},
        event(4, 17, 1),
    ]
    assert peak_bytes([*events, event(3, 16, -4)]) == 10
    assert peak_bytes([{"name": "aten::mm", "ts": 1}]) == 0


def test_peak_of_real_allocations():
    """Two tensors of 4 MB alive at once; a third one comes after the first is gone."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        first = torch.ones(1000, 1000)
        second = first + 1
        del first
        third = second + 1
        del second, third
    assert peak_bytes(training_cost.trace_events(profiler)) == pytest.approx(8_000_000, abs=1000)


def test_shapes_are_read():
    assert parse_shape("12x384") == (12, 384)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("12-384", r"--shapes 12-384: give LAYERSxHIDDEN"),
        ("x384", "give LAYERSxHIDDEN"),
        ("1x384", "two layers or more"),
        ("12x0", "give LAYERSxHIDDEN"),
        ("2x32", "divided among 12 heads; give a multiple of 12"),
    ],
)
def test_shape_that_cannot_be_built(shape, message):
    with pytest.raises(SystemExit, match=message):
        parse_shape(shape)


def test_absent_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device cuda: torch sees no GPU here; use --device cpu"):
        training_cost.choose_device("cuda")
    assert training_cost.choose_device("auto") == training_cost.choose_device("cpu") == "cpu"


# ---- steps


def moved(before: dict[str, torch.Tensor], model: torch.nn.Module) -> set[str]:
    """Where weights changed: the backbone, and the exits by layer."""
    changed = {name for name, weight in model.named_parameters() if not torch.equal(before[name], weight)}
    return {
        name.split(".")[0] if name.startswith("backbone") else ".".join(name.split(".")[:2])
        for name in changed
    }


def test_stages_move_what_they_train(tmp_path, monkeypatch):
    """One `train` is one step of each stage: first the backbone and the last exit, then the other exits
    alone.
    """
    trainer, meter = training_cost.make_trainer({"objective": "deebert"}, 3, 24, 8, 4, "cpu", str(tmp_path))
    seen = []
    monkeypatch.setattr(meter, "on_step_begin", lambda *_, **__: seen.append(copy_of(trainer.model)))
    monkeypatch.setattr(meter, "on_step_end", lambda *_, **__: seen.append(moved(seen[-1], trainer.model)))
    trainer.train()
    assert seen[1::2] == [{"backbone", "exits.3"}, {"exits.1", "exits.2"}]


def copy_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_all_sides_start_from_the_same_weights_and_tokens(tmp_path):
    made = [
        training_cost.make_trainer(side, 2, 24, 8, 4, "cpu", str(tmp_path))[0]
        for side in training_cost.SIDES.values()
    ]
    first = made[0]
    for trainer in made[1:]:
        assert moved(copy_of(first.model), trainer.model) == set()
        rows = zip(first.train_dataset, trainer.train_dataset, strict=True)
        assert all(
            torch.equal(one["input_ids"], other["input_ids"]) and one["labels"] == other["labels"]
            for one, other in rows
        )


# ---- the script


@pytest.mark.slow
def test_figures_of_a_tiny_encoder(here, capsys):
    training_cost.main([*TINY, "--lengths", "8"])
    results = json.loads(Path("figures.json").read_text())
    (run,) = results["runs"]
    check_structure(run)
    assert (
        results["batch_size"] == 4
        and results["device"] == "cpu"
        and {"versions", "machine", "date"} <= results.keys()
    )
    assert training_cost.table(results) in capsys.readouterr().out


def test_run_that_was_stopped_goes_on_and_other_settings_are_refused(here, capsys, monkeypatch):
    measured = []

    def measure(*arguments):
        """Takes down the title of what it has measured; interrupted the first time at the second length."""
        measured.append(arguments[-1])
        if len(measured) == 2:
            raise KeyboardInterrupt
        return {step: [float(len(measured))] for step in STEPS}, dict.fromkeys(STEPS, 0), GradientBytes(0, 0)

    monkeypatch.setattr(training_cost, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        training_cost.main([*TINY, "--lengths", "8", "12"])
    left = json.loads(Path("figures.json").read_text())
    assert [(run["layers"], run["hidden_size"], run["length"]) for run in left["runs"]] == [(2, 24, 8)]

    training_cost.main([*TINY, "--lengths", "12", "8"])
    results = json.loads(Path("figures.json").read_text())
    assert measured == ["2 x 24, 8 tokens", "2 x 24, 12 tokens", "2 x 24, 12 tokens"]
    assert results["runs"][0] == left["runs"][0] and [run["length"] for run in results["runs"]] == [8, 12]
    assert "2 x 24, 8 tokens: measured earlier" in capsys.readouterr().out

    before = Path("figures.json").read_bytes()
    with pytest.raises(SystemExit, match=r"rounds: was 1, is 2.*Choose another --output, or delete it"):
        training_cost.main([*TINY, "--lengths", "8", "--rounds", "2"])
    assert Path("figures.json").read_bytes() == before


def check_structure(run: dict) -> None:
    """Sizes of the gradients by formula, and one reading of each step."""
    layers, hidden, vocabulary, positions, exits = (
        run["layers"],
        run["hidden_size"],
        30522,
        512,
        run["layers"],
    )
    matrices = 4 * hidden**2 + 2 * hidden * 4 * hidden  # of a layer
    layer = (
        matrices + 4 * hidden + 5 * hidden + 4 * hidden
    )  # biases of attention, of the feed-forward; two norms
    head = hidden**2 + hidden + 2 * hidden + 2
    weights = (vocabulary + positions + 2 + 2) * hidden + layers * layer + exits * head
    assert run["projection"]["gradient_bytes"] == 4 * weights
    assert run["projection"]["shared_gradient_bytes"] == 4 * (layers - 1) * matrices
    assert list(run["steps"]) == STEPS
    for step in run["steps"].values():
        assert len(step["seconds_in_each_round"]) == 1 and step["seconds"] > 0
    peaks = {name: step["peak_bytes"] for name, step in run["steps"].items()}
    assert peaks["joint"] >= 4 * weights  # the gradients, at least, are alive at the end of the backward pass
    assert peaks["deebert, stage 2"] < peaks["deebert, stage 1"]  # no gradients of the frozen backbone
    assert all(
        0 < extra <= run["projection"]["bound_bytes"] for extra in run["projection"]["extra_bytes"].values()
    )


def test_table_has_a_column_for_each_run():
    run = {"layers": 2, "hidden_size": 24, "length": 8}
    run |= summary(
        {step: [0.5] for step in STEPS}, dict.fromkeys(STEPS, 3 * 2**20), GradientBytes(2**21, 2**20)
    )
    lines = training_cost.table({"runs": [run, run | {"length": 16}]}).splitlines()
    assert lines[0] == "| time of a step / time of a joint step | 2 x 24, 8 tokens | 2 x 24, 16 tokens |"
    assert "| joint, seconds | 0.5 | 0.5 |" in lines and "| DeeBERT, stage 2 | 1.00 | 1.00 |" in lines
    assert "| RomeBERT, no projection | 0.50 | 0.50 |" in lines and "| DeeBERT, stage 2 | 3 | 3 |" in lines
    assert lines[-3:] == [
        "| added by the projection | 0 | 0 |",
        "| one gradient of all weights | 2 | 2 |",
        "| one gradient of the shared weights | 1 | 1 |",
    ]
