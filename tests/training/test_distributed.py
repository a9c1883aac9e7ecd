"""Two real processes take one projection, of the averaged gradient: against explicit.py, and against one
process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import distributed_run
import pytest
import torch
from by_version import CHECKPOINTING
from distributed_run import model_of, take_steps
from explicit import Steps, assert_equal_gradients, assert_exact, groups_of, rows_of
from processes import LAUNCHERS
from safetensors import safe_open

from modeling_romebert import RomeBertTrainingArguments

DRIVER = distributed_run.__file__


def case(rows, accumulation=1, protect="protect_exits", **more):
    settings = {"gradient_accumulation_steps": accumulation, "gradient_regularization": protect} | more.pop(
        "settings", {}
    )
    return {"rows": rows, "settings": settings, **more}


def with_accelerator(**config):
    return {"settings": {"accelerator_config": config}}


# In batches of 4 to each of 2 processes.
AGAINST_THE_ORACLE = {
    "each-batch": case(24),
    "protect-last": case(24, protect="protect_last"),
    "groups-of-2": case(32, 2),
    "ragged-group": case(40, 3, "protect_last"),  # 5 batches to each process: groups of 3 and 2
    "uneven-batch": case(27),  # the last batches take the first rows again
    "uneven-batch-ragged-group": case(27, 3),
    "batches-not-evened": case(
        30, 3, **with_accelerator(even_batches=False)
    ),  # the last batch of the second process has 2 rows
    "averaged-at-each-batch": case(
        24, 3, **with_accelerator(gradient_accumulation_kwargs={"sync_each_batch": True})
    ),
    "exits-that-skip": case(24, 3, model={"exit_layers": [2, 4]}),
    "adapters": case(24, 2, adapters=True),
    "unregularized": case(27, 2, "off"),
}
# A process of one takes batches of 8, shuffled and clipped.
AGAINST_ONE_PROCESS = {
    f"shuffled-{accumulation}": case(
        48, accumulation, protect, settings={"max_grad_norm": 0.5, "train_sampling_strategy": "random"}
    )
    for accumulation, protect in ((1, "protect_exits"), (2, "protect_last"))
}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder in which two processes of `torchrun` left the steps of all cases; test_train_glue.py starts
    two by `accelerate launch`.
    """
    folder = tmp_path_factory.mktemp("two")
    (folder / "cases.json").write_text(json.dumps(AGAINST_THE_ORACLE | AGAINST_ONE_PROCESS))
    command = [sys.executable, "-m", *LAUNCHERS["torchrun"], DRIVER, str(folder)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def read(folder: Path, name: str, model):
    """The steps of a case, the number of processes that took them, and their logs."""
    steps = Steps()
    with safe_open(folder / f"{name}.safetensors", "pt") as file:
        metadata, stored = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for step in range(1 + max(int(key.split(".")[0]) for key in stored)):
        names = [key for key, _ in model.named_parameters()]
        steps.weights.append({key: stored[f"{step}.weight.{key}"] for key in names})
        steps.gradients.append({key: stored.get(f"{step}.gradient.{key}") for key in names})
    return steps, int(metadata["world_size"]), json.loads(metadata["logs"])


@pytest.mark.slow
@pytest.mark.parametrize("name", AGAINST_THE_ORACLE)
def test_steps_of_two_processes_are_exact(two_processes, name):
    this = AGAINST_THE_ORACLE[name]
    model, settings = model_of(this), this["settings"]
    steps, world_size, logs = read(two_processes, name, model)
    assert world_size == 2
    accumulation, protect = settings["gradient_accumulation_steps"], settings["gradient_regularization"]
    evened = settings.get("accelerator_config", {}).get("even_batches", True)
    groups = groups_of(rows_of(this["rows"]), 4, accumulation, 2, evened)
    cosines = assert_exact(steps, model, groups, protect)
    assert min(cosines) < -0.05  # or nothing was shown
    if protect != "off":
        assert [float(entry["gradient_cosine"]) for entry in logs] == pytest.approx(cosines, abs=1e-3)
        assert [float(entry["projected"]) for entry in logs] == [cosine < 0 for cosine in cosines]


@pytest.mark.slow
@pytest.mark.parametrize("name", AGAINST_ONE_PROCESS)
def test_two_processes_take_the_steps_of_one(two_processes, tmp_path, name):
    this = AGAINST_ONE_PROCESS[name]
    model = model_of(this)
    whole = this | {"settings": this["settings"] | {"per_device_train_batch_size": 8}}
    take_steps(name, whole, tmp_path)
    expected, world_size, logs = read(tmp_path, name, model)
    assert world_size == 1
    steps, world_size, logs_of_two = read(two_processes, name, model)
    assert world_size == 2
    assert (
        len(steps.gradients)
        == len(expected.gradients)
        == 6 // this["settings"]["gradient_accumulation_steps"]
    )
    for gradients, of_one in zip(steps.gradients, expected.gradients, strict=True):
        assert_equal_gradients(gradients, {key: gradient.double() for key, gradient in of_one.items()})
    for key, weight in steps.weights[-1].items():
        torch.testing.assert_close(weight, expected.weights[-1][key])
    assert any(float(entry["projected"]) == 1 for entry in logs)
    for entry, entry_of_two in zip(logs, logs_of_two, strict=True):
        assert entry_of_two["projected"] == entry["projected"]
        assert float(entry_of_two["gradient_cosine"]) == pytest.approx(
            float(entry["gradient_cosine"]), abs=1e-3
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"torch_compile": True},
            r"torch_compile=True does not go .* Use torch_compile=False, or gradient_regularization='off'",
        ),
        (
            {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "reentrant checkpointing does not .* Use use_reentrant=False",
        ),
        ({f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}}, "reentrant checkpointing does not go"),
        ({"fsdp": True}, r"fsdp=True does not go .* Use DDP, or"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_would_make_the_projection_wrong_is_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        RomeBertTrainingArguments(
            str(tmp_path), use_cpu=True, gradient_regularization="protect_exits", **settings
        )
    RomeBertTrainingArguments(str(tmp_path), use_cpu=True, gradient_regularization="off", **settings)
