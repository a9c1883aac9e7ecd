"""examples/train_glue.py: recipes, data, what a run writes, what it continues and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import train_glue
from processes import LAUNCHERS
from scipy import stats
from support.glue_data import TASKS as GLUE_TASKS
from tiny import LAYERS, color, labelled, tiny_tokenizer, write_rows
from tiny import train_and_validation_files as files
from transformers import pipeline

from modeling_romebert import RomeBertForSequenceClassification

pytestmark = pytest.mark.usefixtures("here")

SCRIPT = Path(train_glue.__file__)
EVERY_LAYER = range(1, LAYERS + 1)
# What the paper and its code were run with; the direction of the projection and the metric to go by, per
# task.
PUBLISHED = (
    "--model_name_or_path bert-base-uncased --exit_pooling cls --max_length 128 --learning_rate 2e-5"
    " --weight_decay 0 --warmup_steps 0 --lr_scheduler_type linear --per_device_train_batch_size 8"
    " --num_train_epochs 3 --max_grad_norm 1 --objective romebert --distillation_weight 0.9"
    " --distillation_temperature 3 --distillation_reduction batchmean --exit_scale 1 --teacher last"
    " --exit_weights uniform --exit_learning_rate_factor 1"
)
TASKS = {
    **{task: ("protect_exits", "accuracy") for task in ("rte", "sst2", "qnli")},
    **{
        "mrpc": ("protect_exits", "f1"),
        "cola": ("protect_exits", "matthews_correlation"),
        "stsb": ("protect_exits", "pearson"),
    },
    **{"mnli": ("protect_last", "matched_accuracy"), "qqp": ("protect_last", "f1")},
}


def read(path: str) -> dict:
    return json.loads(Path("run", path).read_text())


@pytest.fixture
def own_files(here) -> list[str]:
    """CSV files with three labels that are strings."""
    return files(labelled(48, color), labelled(20, color, seed=1), "csv")


def contents() -> dict[str, tuple[bytes, int]]:
    """Every file of the run's folder: what it holds and when it was written."""
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in Path("run").rglob("*")
        if path.is_file()
    }


@torch.no_grad()
def outputs_of(rows: list[dict], exit_policy=None) -> list:
    """What the saved model says of each row alone."""
    model, tokenizer = RomeBertForSequenceClassification.from_pretrained("run/model"), tiny_tokenizer()
    texts = [[value for name, value in row.items() if name != "label"] for row in rows]
    return [model(**tokenizer(*text, return_tensors="pt"), exit_policy=exit_policy) for text in texts]


def exit_logits(rows: list[dict]) -> np.ndarray:
    """(N, E, C)"""
    return torch.cat([output.exit_logits for output in outputs_of(rows)]).numpy()


# ---- recipes


@pytest.mark.parametrize(("task", "direction", "metric"), [(task, *values) for task, values in TASKS.items()])
def test_recipe_is_the_published_setting(task, direction, metric):
    of_task = f" --task_name {task} --gradient_regularization {direction} --metric_for_best_model {metric}"
    by_recipe, by_hand = (
        train_glue.parse(["--recipe", task, "--use_cpu"]),
        train_glue.parse((PUBLISHED + of_task).split()),
    )
    assert train_glue.settings_of(*by_recipe, {}) == train_glue.settings_of(*by_hand, {})


def test_command_line_beats_recipe_wherever_it_stands():
    for argv in (["--recipe", "mnli", "--learning_rate", "1e-3"], ["--learning_rate=1e-3", "--recipe=mnli"]):
        _, data, training = train_glue.parse([*argv, "--use_cpu"])
        assert (data.task_name, training.learning_rate, training.num_train_epochs) == ("mnli", 1e-3, 3)


def test_a_recipe_of_a_task_and_one_of_a_method_go_together():
    where, data, training = train_glue.parse(["--recipe", "rte", "deebert", "--use_cpu", "--output_dir=x"])
    assert (data.task_name, training.objective, training.num_train_epochs) == ("rte", "deebert", 1.5)
    _, _, training = train_glue.parse(["--recipe", "mnli", "paper", "--use_cpu"])
    assert training.gradient_regularization == "protect_exits"  # the later one wins
    assert (where.exit_mix, where.keep_layers) == (False, 1.0)


def test_a_share_of_the_layers_and_of_the_epochs_that_mean_nothing(encoder):
    with pytest.raises(SystemExit, match="--epochs_factor 0 is not above 0"):
        train_glue.parse(["--epochs_factor", "0", "--use_cpu"])
    with pytest.raises(SystemExit, match="--calibrate_max_drop 5 is not between 0 and 1"):
        train_glue.parse(["--calibrate_max_drop", "5", "--use_cpu"])
    where, _, _ = train_glue.parse(["--keep_layers=1.5", f"--model_name_or_path={encoder}", "--use_cpu"])
    with pytest.raises(SystemExit, match=r"--keep_layers 1.5 is not in 0\.\.1"):
        train_glue.load_model(where, ["no", "yes"])
    where.keep_layers, where.exit_mix = 0.5, True
    model = train_glue.load_model(where, ["no", "yes"])
    assert model.config.num_hidden_layers == 2 and model.exits["2"].mix is not None


def test_own_recipe_file_with_every_kind_of_value():
    Path("mine.yaml").write_text(
        'exit_layers: [2, 4]\neval_strategy: "no"\nload_best_model_at_end: '
        "false\nmax_steps: -1\nadam_epsilon: 1e-7\n"
        "lr_scheduler_kwargs: {num_cycles: 2}\n"
    )
    model, _, training = train_glue.parse(["--recipe", "mine.yaml", "--use_cpu"])
    assert model.exit_layers == [2, 4]
    assert (training.eval_strategy, training.load_best_model_at_end, training.max_steps) == ("no", False, -1)
    assert (training.adam_epsilon, training.lr_scheduler_kwargs) == (1e-7, {"num_cycles": 2})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1.0\nfoo: 2", "holds learning_rat, foo, which is no argument"),
        ("recipe: sst2", "holds recipe, which is no argument"),
        (
            "eval_strategy: no",
            'eval_strategy is read as False; in YAML, put no, yes, on and off in quotes: "no"',
        ),
        ("- sst2", "is no mapping"),
    ],
)
def test_recipe_that_cannot_be_used(content, message):
    Path("mine.yaml").write_text(content)
    with pytest.raises(SystemExit, match=message):
        train_glue.parse(["--recipe", "mine.yaml"])


@pytest.mark.parametrize("recipe", ["sst-2", "absent.yaml"])
def test_unknown_recipe_lists_the_known(recipe):
    with pytest.raises(
        SystemExit,
        match=f"--recipe {recipe} is unknown; choose from cola, conll2003, mnli, mrpc, qnli, qqp, rte,",
    ):
        train_glue.parse(["--recipe", recipe])


def test_unknown_task_lists_the_known(capsys):
    with pytest.raises(SystemExit, match="2"):
        train_glue.main(["--task_name", "wnli"])
    message = capsys.readouterr().err
    assert "wnli" in message and all(task in message for task in TASKS)


# ---- what a run writes


def test_own_csv_with_names_for_labels(run_glue, own_files, capsys):
    rows = labelled(15, color, seed=2)
    found = run_glue(*own_files, "--test_file", write_rows("test.json", rows), "--seed", 7)
    config = read("model/config.json")
    assert config["id2label"] == {"0": "blue", "1": "green", "2": "red"}
    assert (config["problem_type"], found["seed"], found["world_size"]) == (
        "single_label_classification",
        7,
        1,
    )
    assert found["train"]["steps"] == 6 and found["train"]["samples"] == 48 and found["train"]["runtime"] > 0
    assert found["eval_samples"] == {"eval": 20, "test": 15}
    assert found["provenance"]["versions"].keys() >= {"romebert", "torch", "transformers"}
    assert found["settings"]["training"]["objective"] == "romebert"

    accuracy = (
        exit_logits(rows).argmax(-1) == np.array([[config["label2id"][row["label"]]] for row in rows])
    ).mean(axis=0)
    assert [found["metrics"][f"test_accuracy_exit_{layer}"] for layer in EVERY_LAYER] == pytest.approx(
        accuracy.tolist()
    )
    assert found["metrics"]["test_accuracy"] == pytest.approx(accuracy[-1])
    assert found["metrics"]["test_accuracy_mean"] == pytest.approx(accuracy.mean())
    report = read("exits_test.json")
    assert report["exits"] == pytest.approx(accuracy.tolist()) and report["policy"] == {"name": "entropy"}
    assert read("exits.json")["num_examples"] == 20
    assert "| exit after layer | eval_accuracy | test_accuracy |" in capsys.readouterr().out
    (result,) = pipeline("early-exit-classification", model="run/model")("a good film")
    assert result["label"] in ("red", "green", "blue")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "columns", "labels", "metrics"),
    [
        ("sst2", "sentence", [0, 1], {"accuracy"}),
        ("cola", "text", [0, 1], {"matthews_correlation"}),
        ("mrpc", "sentence1 sentence2", ["equivalent", "not_equivalent"], {"accuracy", "f1"}),
        ("qnli", "question sentence", ["0", "1"], {"accuracy"}),
        ("qqp", "text text_pair", [0, 1], {"accuracy", "f1"}),
    ],
)
def test_named_task_from_files(run_glue, task, columns, labels, metrics):
    rows = [labelled(16, lambda number: labels[number % 2], seed, columns.split()) for seed in (0, 1)]
    found = run_glue("--recipe", task, *files(*rows))
    assert {
        name.removeprefix("eval_").removesuffix("_mean")
        for name in found["metrics"]
        if name.endswith("_mean")
    } == metrics
    assert tuple(read("model/config.json")["id2label"].values()) == GLUE_TASKS[task].labels


def test_stsb_is_regression_and_calibrates_patience(run_glue):
    def score(number):
        return (number % 11) / 2

    columns = ("sentence1", "sentence2")
    rows = labelled(24, score, 1, columns)
    found = run_glue(
        "--recipe", "stsb", *files(labelled(60, score, 0, columns), rows), "--calibrate_max_drop", 0.1
    )
    config, report = read("model/config.json"), read("exits.json")
    assert (config["problem_type"], len(config["id2label"])) == ("regression", 1)
    labels = [row["label"] for row in rows]
    for layer, predicted in zip(EVERY_LAYER, exit_logits(rows)[..., 0].T, strict=True):  # (N,) each
        pearson, spearman = stats.pearsonr(predicted, labels), stats.spearmanr(predicted, labels)
        assert found["metrics"][f"eval_pearson_exit_{layer}"] == pytest.approx(pearson.statistic, abs=1e-4)
        assert found["metrics"][f"eval_spearmanr_exit_{layer}"] == pytest.approx(spearman.statistic, abs=1e-2)
    assert report["policy"] == {"name": "patience", "tolerance": 0.5}  # a tenth of 0..5
    assert [point["threshold"] for point in report["curve"]] == [4, 3, 2, 1]
    assert found["policy"]["settings"] == config["exit_policy"]
    assert config["exit_policy"] == {
        "name": "patience",
        "patience": config["exit_policy"]["patience"],
        "tolerance": 0.5,
    }


def test_mnli_keeps_matched_and_mismatched_apart(run_glue):
    columns = ("premise", "hypothesis")
    train, sets = (
        labelled(24, lambda number: number % 3, 0, columns),
        {
            "matched": labelled(20, lambda number: 0, 1, columns),
            "mismatched": labelled(12, lambda number: 1, 2, columns),
        },
    )
    mismatched = ["--validation_mismatched_file", write_rows("mismatched.jsonl", sets["mismatched"])]
    found = run_glue(
        "--recipe", "mnli", "--load_best_model_at_end", *files(train, sets["matched"]), *mismatched
    )
    assert found["eval_samples"] == {"eval_matched": 20, "eval_mismatched": 12}
    for name, rows in sets.items():
        accuracy = (exit_logits(rows).argmax(-1) == rows[0]["label"]).mean(axis=0).tolist()
        assert [
            found["metrics"][f"eval_{name}_accuracy_exit_{layer}"] for layer in EVERY_LAYER
        ] == pytest.approx(accuracy)
        assert read(f"exits_{name}.json")["exits"] == pytest.approx(accuracy)
        assert f"eval_{name}_loss" in found["metrics"]
    assert not any(name.startswith("eval_accuracy") for name in found["metrics"])


def test_calibration_is_on_rows_held_out_of_train(run_glue, own_files, capsys):
    found = run_glue(*own_files, "--calibrate_max_drop", 0.05)
    policy, config = found["policy"], read("model/config.json")
    assert policy["held_out_samples"] > 0 and policy["held_out_samples"] + found["train"]["samples"] == 48
    assert config["exit_policy"] == policy["settings"] and policy["settings"]["name"] == "entropy"
    assert "Chosen on" in capsys.readouterr().out

    rows = labelled(20, color, seed=1)  # those of validation, under the stored policy
    outputs = outputs_of(rows, config["exit_policy"])
    right = [
        config["id2label"][str(o.logits.argmax().item())] == row["label"]
        for o, row in zip(outputs, rows, strict=True)
    ]
    assert policy["outcome"]["eval"]["metric"] == pytest.approx(np.mean(right))
    assert policy["outcome"]["eval"]["cost"] == pytest.approx(
        np.mean([o.exit_layer.item() / LAYERS for o in outputs])
    )
    assert policy["outcome"]["eval"]["full_depth"] == found["metrics"]["eval_accuracy"]


def test_sample_caps_and_exit_layers(run_glue, own_files):
    found = run_glue(
        *own_files,
        "--max_train_samples",
        24,
        "--max_eval_samples",
        9,
        "--exit_layers",
        2,
        "--exit_pooling",
        "mean",
    )
    assert (found["train"]["samples"], found["eval_samples"], found["exit_layers"]) == (
        24,
        {"eval": 9},
        [2, LAYERS],
    )
    assert read("model/config.json")["exit_pooling"] == "mean"


# ---- a run that stops, and a run that is finished


@pytest.mark.slow
def test_resumed_run_gives_what_an_uninterrupted_one_gives(run_glue, own_files, capsys):
    arguments = [*own_files, "--save_steps", "4", "--learning_rate", "1e-3", "--num_train_epochs", "2"]
    whole, weights = run_glue(*arguments), Path("run/model/model.safetensors").read_bytes()
    assert whole["train"]["resumed_from"] is None and whole["train"]["steps"] == 12
    for path in Path("run").iterdir():  # leave it as it was when checkpoint 8 was being written
        if path.is_dir() and path.name not in ("checkpoint-4", "checkpoint-8"):
            shutil.rmtree(path)
    Path("run/metrics.json").unlink()
    Path("run/checkpoint-8/trainer_state.json").unlink()

    capsys.readouterr()
    resumed = run_glue(*arguments, "--logging_steps", "1")
    assert "continuing from run/checkpoint-4\n" in capsys.readouterr().out
    assert (resumed["train"]["resumed_from"], resumed["train"]["steps"]) == ("checkpoint-4", 12)
    assert resumed["metrics"] == whole["metrics"]
    assert Path("run/model/model.safetensors").read_bytes() == weights

    Path("run/metrics.json").unlink()  # stopped again, between the last step and the results
    again = run_glue(*arguments)
    assert (again["train"]["resumed_from"], again["metrics"]) == ("checkpoint-12", whole["metrics"])


def test_finished_run_is_told_not_done_again_and_refused_to_other_settings_or_data(
    run_glue, own_files, capsys
):
    run_glue(*own_files)
    table = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| mean |"))
    before = contents()
    run_glue(*own_files)
    said = capsys.readouterr().out
    assert "is from a finished run with these settings" in said and table in said
    with pytest.raises(
        SystemExit, match=r"holds a run with other settings \(training\.learning_rate: was 5e-05, is 0\.001\)"
    ):
        run_glue(*own_files, "--learning_rate", "1e-3")
    write_rows("train.csv", labelled(40, color, seed=3))
    with pytest.raises(SystemExit, match=r"holds a run with other settings \(data\.train_file: was"):
        run_glue(*own_files)
    assert contents() == before


def test_folder_of_something_else_is_refused_untouched(run_glue, own_files):
    Path("run").mkdir()
    Path("run/thesis.tex").write_text("years of work")
    before = contents()
    with pytest.raises(SystemExit, match="run exists, and not as a run of this script"):
        run_glue(*own_files)
    assert contents() == before


def test_failure_before_training_leaves_no_folder(run_glue, own_files):
    with pytest.raises(OSError, match="absent"):
        run_glue(*own_files, "--model_name_or_path", "./absent")
    assert not Path("run").exists()


@pytest.mark.slow
def test_two_processes_are_one_run(run_glue, own_files, encoder):
    settings = [*own_files, "--objective", "joint", "--save_strategy", "epoch", "--calibrate_max_drop", "0.1"]
    common = [
        "--model_name_or_path",
        encoder,
        "--num_train_epochs",
        "1",
        "--per_device_train_batch_size",
        "4",
        "--use_cpu",
    ]
    command = [
        sys.executable,
        "-m",
        *LAUNCHERS["accelerate"],
        str(SCRIPT),
        *settings,
        *common,
        "--output_dir",
        "run",
    ]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = read("metrics.json")
    assert found["world_size"] == 2
    assert found["train"]["steps"] == -(-found["train"]["samples"] // 8)  # four rows in each process
    assert found["eval_samples"] == {"eval": 20}
    assert done.stdout.count("| exit after layer |") == 1
    with pytest.raises(SystemExit, match=r"other settings \(world_size: was 2, is 1\)"):
        run_glue(*settings, *common)
