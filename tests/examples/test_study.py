"""examples/study: the grid, runs that are killed or fail, and what one run's file holds."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from study import bootstrap, cells, findings, one_run, run, tables
from support.glue_arguments import KINDS
from support.glue_arguments import parse as parse_glue
from support.recipes import as_arguments, shipped_recipes
from tiny import color, labelled
from tiny import train_and_validation_files as files

from modeling_romebert.evaluation.provenance import read_json, write_json

METHODS = [name for name, path in shipped_recipes().items() if path.parent.name == "methods"]


# ---- the grid


def test_the_grid_runs_every_recipe_of_a_method_that_there_is():
    assert sorted(cells.read_grid()["recipes"]) == sorted(METHODS)


@pytest.mark.parametrize("recipe", METHODS)
def test_a_recipe_holds_arguments_that_go_together_and_says_what_it_is(recipe):
    (cell,) = cells.cells_of(cells.read_grid(), ["rte"], ["e5-small"], [recipe], [1])
    where, data, training = parse_glue([*as_arguments(cell.arguments, KINDS, recipe), "--use_cpu"])
    assert (data.task_name, where.exit_pooling, training.learning_rate) == ("rte", "mean", 1e-4)
    assert len(tables.words_of(shipped_recipes()[recipe])) > 30


def test_first_seeds_come_first_and_recipes_win_over_tasks():
    grid = {
        "common": {"max_length": 9, "learning_rate": 1.0},
        "backbones": {"b": "x"},
        "tasks": {"t": {"backbones": ["b"], "seeds": [1, 2], "arguments": {"learning_rate": 2.0}}},
        "recipes": ["joint", "no-exits"],
    }
    found = cells.cells_of(grid)
    assert [(cell.seed, cell.recipe) for cell in found] == [
        *((1, "joint"), (1, "no-exits")),
        *((2, "joint"), (2, "no-exits")),
    ]
    given = {"max_length": 9, "learning_rate": 2.0}
    assert found[1].arguments == given | {"objective": "last", "exit_learning_rate_factor": 1.0}
    assert cells.cells_of(grid, more={"objective": "joint"})[1].arguments["objective"] == "joint"
    with pytest.raises(SystemExit, match="--tasks u: the grid has t"):
        cells.cells_of(grid, tasks=["u"])
    with pytest.raises(SystemExit, match="--recipe jont is unknown; choose from"):
        cells.cells_of(grid, recipes=["jont"])


def test_a_task_may_run_fewer_recipes_and_those_that_are_cut_once():
    of_task = {"backbones": ["b", "c"], "seeds": [1, 2], "recipes": ["joint", "kl-1"], "cut": ["kl-1"]}
    grid = {
        "common": {},
        "backbones": {"b": "x", "c": "y"},
        "tasks": {"t": {**of_task, "data": "d", "arguments": {}}},
        "recipes": ["paper"],
    }
    found = cells.cells_of(grid)
    first, second = ([(one.recipe, one.seed) for one in found if one.backbone == name] for name in "bc")
    assert first == [("joint", 1), ("kl-1", 1), ("joint", 2)] and second == [("joint", 1), ("joint", 2)]
    assert {cell.data for cell in found} == {"d"}
    assert [cell.seed for cell in cells.cells_of(grid, recipes=["kl-1"], seeds=[2])] == [2, 2]
    grid["tasks"]["whole"] = {**grid["tasks"]["t"], "large": True}
    assert cells.cells_of(grid) == found
    assert {cell.task for cell in cells.cells_of(grid, ["whole"])} == {"whole"}


def test_a_run_knows_its_files_by_what_they_hold(here, encoder):
    """Those of its data and its backbone, where they are files here."""
    given = files(labelled(4, color), labelled(2, color))
    own_files = {"train_file": given[1], "validation_file": given[3]}
    places = {"b": encoder, "c": "somebody/an-encoder-of-the-hub"}
    local, of_hub = (cells.Cell("t", "t", name, "joint", 1, {}) for name in "bc")
    local, of_hub = cells.with_places([local, of_hub], places, None, own_files, Path("runs"))
    assert list(local.made_of) == ["train_file", "validation_file", "backbone"]
    assert of_hub.made_of == {name: local.made_of[name] for name in own_files}
    (on_the_hub,) = cells.with_places([of_hub], places, None, {}, Path("runs"))
    assert on_the_hub.made_of == {} and on_the_hub.places == {"model_name_or_path": places["c"]}


# ---- runs


def cell(seed=1, rate=1.0, train_file="a") -> cells.Cell:
    """A run whose training file has such a digest."""
    return cells.Cell("t", "t", "b", "joint", seed, {"learning_rate": rate}, {}, {"train_file": train_file})


@pytest.fixture
def stand_in(here, monkeypatch):
    """Runs are a few lines of Python: seed 2 fails at a rate of 1, seed 4 is another process's, all others
    write a result.
    """
    code = """
import json, pathlib, sys
cell = json.loads(pathlib.Path(sys.argv[1], "cell.json").read_text())
if cell["seed"] == 2 and cell["arguments"]["learning_rate"] == 1:
    sys.exit("no seed 2 today")
if cell["seed"] == 4:
    sys.exit(75)
exits = {"1": 0.5, "2": 0.75}
kept = {"arguments": cell["arguments"], "seed": cell["seed"], "digests": cell["made_of"]}
found = {"metric": "m", "exits": exits, "mean_over_exits": 0.6, **kept}
pathlib.Path(cell["result"]).write_text(json.dumps(found))
"""
    monkeypatch.setattr(run, "python", lambda: [sys.executable, "-c", code])


@pytest.mark.parametrize("workers", [1, 2])
def test_what_has_a_result_is_not_run_and_what_fails_is_kept_apart(stand_in, capsys, workers):
    asked, results, runs = [cell(seed) for seed in (1, 2, 3)], Path("results"), Path("runs")
    assert run.missing(asked, results, False) == (asked, [])
    assert run.work(asked, results, runs, workers, keep=False) == 1
    assert sorted(str(path) for path in results.rglob("*.json")) == [
        "results/t/b/joint/1.json",
        "results/t/b/joint/3.json",
    ]
    failure = read_json("failed/results/t/b/joint/2.json")
    assert (failure["reason"], failure["returned"]) == ("no seed 2 today", 1)
    assert not cell(1).folder(runs).exists() and (cell(2).folder(runs) / "log.txt").exists()
    said = capsys.readouterr().out
    assert "t b joint seed 3: m 0.750 at the last exit, mean 0.600" in said and "[3/3]" in said
    assert run.missing(asked, results, False) == ([], asked[1:2])
    assert run.missing(asked, results, retry_failed=True) == (asked[1:2], [])


@pytest.mark.parametrize("other", [{"rate": 2.0}, {"train_file": "b"}], ids=str)
def test_results_of_other_arguments_or_files_are_said_aloud(stand_in, capsys, other):
    results = Path("results")
    run.work([cell()], results, Path("runs"), 1, keep=False)
    assert run.missing([cell(**other)], results, False) == ([], [])
    said = capsys.readouterr().out
    assert "1 results are of other arguments, data or weights" in said and "results/t/b/joint/1.json" in said
    assert cell(**other).folder(Path()) != cell().folder(Path())  # nor does it go on from their checkpoints


@pytest.mark.parametrize("other", [{"rate": 2.0}, {"train_file": "b"}], ids=str)
def test_what_failed_is_tried_again_with_other_arguments_or_files(stand_in, other):
    results, runs = Path("results"), Path("runs")
    run.work([cell(2)], results, runs, 1, keep=False)
    assert run.missing([cell(2, **other)], results, False) == ([cell(2)], [])
    assert run.missing([cell(2)], Path("results-2"), False) == ([cell(2)], [])  # a study of its own


def test_a_run_of_another_process_has_not_failed(stand_in, capsys):
    results = Path("results")
    assert run.work([cell(4)], results, Path("runs"), 1, keep=False) == 0
    assert "t b joint seed 4: is going on in another process" in capsys.readouterr().out
    assert run.missing([cell(4)], results, False) == ([cell(4)], [])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--set", "seed"], "--set seed: write NAME=VALUE"),
        (["--set", "max_steps=1"], "--set makes other runs than the grid's; say with --results"),
        (["--train_file", "a.csv"], "--train_file makes other runs than the grid's; say with --results"),
        (["--results", "r", "--train_file", "a.csv"], "--train_file is given without --validation_file"),
        (["--results", "r", "--validation_file", "a.csv"], "--validation_file is given without --train_file"),
        (
            ["--results", "r", "--train_file", "a.csv", "--validation_file", "b.csv"],
            "--train_file a.csv: there is no such file",
        ),
        (["--data", "absent", "--tasks", "rte"], "--data: there is no absent/rte/train.jsonl"),
    ],
)
def test_arguments_that_cannot_be_run(here, argv, message):
    with pytest.raises(SystemExit, match=message):
        run.main(argv)


# ---- one run


@pytest.fixture
def a_run(here, encoder):
    """One run in this process on own files and a tiny encoder -> what its result holds."""

    def one(recipe: str, label=color, **more) -> dict:
        given = files(labelled(48, label), labelled(20, label, seed=1))
        (found,) = cells.cells_of(
            cells.own_task(cells.read_grid(), given[1], given[3]),
            recipes=[recipe],
            seeds=[1],
            more={"num_train_epochs": 1, "use_cpu": True, "per_device_train_batch_size": 8, **more},
        )
        own_files = {"train_file": given[1], "validation_file": given[3]}
        (found,) = cells.with_places([found], {"minilm-l6": encoder}, None, own_files, Path("runs"))
        return one_run.run(vars(found), Path("run"))

    return one


def test_a_run_says_all_that_there_is_to_say(a_run):
    found = a_run("kl-0.3-protect-last")
    assert list(found["exits"]) == ["1", "2", "3", "4"] and found["metric"] == "accuracy"
    assert found["mean_over_exits"] == pytest.approx(np.mean(list(found["exits"].values())))
    assert list(found["policies"]) == [
        "confidence",
        "margin",
        "patience",
        "patient_confidence",
        "vote",
    ]
    assert found["policy"] == "entropy" and 0 < found["curve"][0]["cost"] <= 1
    for layer, predicted in found["predictions"].items():
        right = [one == other for one, other in zip(predicted, found["labels"], strict=True)]
        assert np.mean(right) == pytest.approx(found["exits"][layer])
    assert found["rows"] == {"train": 48, "evaluation": 20} and found["steps"] == 6
    assert 0 <= found["projected"] <= 1 and -1 <= found["gradient_cosine"] <= 1
    assert {"step", "loss_last", "loss_exits"} == found["losses"][0].keys()
    assert (
        found["settings"]["training"]["exit_scale"] == 0.3
        and found["settings"]["model"]["model_name_or_path"] == "minilm-l6"
    )
    assert len(found["digests"]["backbone"]) == len(found["digests"]["train"]) == 64
    assert found["training_seconds"] > 0 and found["device"] == "cpu" and found["threads"] >= 1
    assert str(Path.cwd()) not in json.dumps(found)


def test_numbers_are_judged_by_whether_exits_agree(a_run):
    found = a_run("joint-0.3", label=lambda number: number % 7 + 0.5)
    assert found["metric"] == "pearson" and found["policy"] == "patience" and found["policies"] == {}
    assert len(found["curve"]) > 1
    answers = [*found["predictions"].values()]
    assert bootstrap.of_answers("pearson", found["labels"], answers, np.ones((1, 20)))[0] == pytest.approx(
        list(found["exits"].values()), abs=1e-3
    )


def test_without_exits_only_the_last_is_told(a_run):
    found = a_run("half-depth")
    assert list(found["exits"]) == ["2"] and found["num_layers"] == 2 and found["policies"] == {}
    assert findings.at_cost(found, 0.5) == found["exits"]["2"] and findings.at_cost(found, 0.33) is None


def test_the_mix_is_an_argument_and_epochs_have_a_factor(a_run):
    found = a_run("layer-mix", num_train_epochs=2, epochs_factor=0.5)
    assert found["settings"]["model"]["exit_mix"] is True and found["steps"] == 6


def test_the_clock_goes_on_where_the_checkpoint_stopped():
    clock, state = (
        one_run.Clock(),
        SimpleNamespace(stateful_callbacks={"Clock": {"attributes": {"before": [100.0, 50.0]}}}),
    )
    clock.on_train_begin(None, state, None)
    seconds, cpu_seconds = clock.seconds
    assert 100 < seconds < 101 and 50 <= cpu_seconds < 51
    kept = clock.state()["attributes"]["before"]
    assert kept[0] >= seconds and one_run.Clock().state()["attributes"]["before"] == (0.0, 0.0)


def test_one_folder_one_process(tmp_path, capsys):
    with (
        one_run.alone(tmp_path),
        pytest.raises(SystemExit, match=str(cells.BUSY)),
        one_run.alone(tmp_path),
    ):
        raise AssertionError("two processes hold one folder")
    assert "this run is going on in another process" in capsys.readouterr().out


def test_a_run_that_was_begun_with_other_defaults_begins_anew(a_run, capsys):
    first = a_run("joint")
    settings = read_json("run/train/settings.json")
    settings["training"]["exit_scale"] = 7.0
    write_json("run/train/settings.json", settings)
    again = a_run("joint")
    said = capsys.readouterr().out
    assert "was begun when defaults were others" in said and "continuing from" not in said
    assert (again["exits"], again["losses"]) == (first["exits"], first["losses"])


@pytest.mark.slow
def test_a_study_of_own_files_that_is_killed_goes_on(a_run, encoder, monkeypatch):
    """The same command after a kill ends with what it would have ended with. Of 5 epochs, each of the five
    checkpoints is the end of one.
    """
    whole = a_run("joint", num_train_epochs=5)
    argv = ["--train_file", "train.jsonl", "--validation_file", "validation.jsonl", "--recipes", "joint"]
    argv += ["--models", f"minilm-l6={encoder}", "--seeds", "1", "--results", "results"]
    argv += ["--set", "num_train_epochs=5", "use_cpu=true", "per_device_train_batch_size=8"]
    sleep = run.time.sleep

    def stop_at_a_checkpoint(_):
        if list(Path("runs/study").rglob("checkpoint-*/trainer_state.json")):
            raise KeyboardInterrupt
        sleep(0.01)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run.time, "sleep", stop_at_a_checkpoint)
        run.main(argv)
    assert not list(Path("results").rglob("*.json")) and not list(Path("runs/study").rglob("checkpoint-30"))
    run.main(argv)
    resumed = read_json("results/train/minilm-l6/joint/1.json")
    for name in ("exits", "predictions", "losses", "curve", "digests", "settings"):
        assert whole[name] == resumed[name]
