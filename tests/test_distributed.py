"""Two real processes take the steps that one takes with the same global batch: one projection, of the averaged gradients."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from distributed_run import train
from safetensors import safe_open

from modeling_romebert import RomeBertTrainingArguments

DRIVER = str(Path(__file__).with_name("distributed_run.py"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
# `--cpu --num_processes 2` would start one process and say nothing.
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


def read(path: Path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        return {name: file.get_tensor(name) for name in file.keys()}, int(metadata["world_size"]), json.loads(metadata["logs"])  # noqa: SIM118


def one_process(folder: Path, **settings):
    out = str(folder / "one.safetensors")
    train(out, **settings)
    return read(Path(out))


def two_processes(launcher: list[str], folder: Path, **settings):
    out = str(folder / "two.safetensors")
    command = [*launcher, DRIVER, out, *(f"{key}={json.dumps(value)}" for key, value in settings.items())]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return read(Path(out))


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
@pytest.mark.parametrize(
    ("objective", "regularization", "accumulation"),
    [("romebert", "protect_exits", 1), ("romebert", "protect_last", 2)],
)
def test_two_processes_take_the_steps_of_one(tmp_path, launcher, objective, regularization, accumulation):
    common = {
        "objective": objective,
        "gradient_regularization": regularization,
        "gradient_accumulation_steps": accumulation,
        "max_grad_norm": 0.5,
    }
    expected, world_size, logs = one_process(tmp_path, per_device_train_batch_size=8, **common)
    assert world_size == 1
    weights, world_size, logs_of_two = two_processes(launcher, tmp_path, per_device_train_batch_size=4, **common)
    assert world_size == 2
    for name, weight in weights.items():
        error = (weight - expected[name]).norm() / expected[name].norm().clamp(min=1e-3)
        assert error < 1e-5, name
    assert any(entry["projected"] == 1 for entry in logs)  # or nothing was shown
    for entry, entry_of_two in zip(logs, logs_of_two, strict=True):
        assert entry_of_two["projected"] == entry["projected"]
        assert entry_of_two["gradient_cosine"] == pytest.approx(entry["gradient_cosine"], abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"torch_compile": True}, r"torch_compile=True does not go .* Use torch_compile=False, or gradient_regularization='off'"),
        (
            {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "reentrant checkpointing does not .* Use use_reentrant=False",
        ),
        ({"activation_checkpointing_kwargs": {"use_reentrant": True}}, "reentrant checkpointing does not go"),
        ({"fsdp": True}, r"fsdp=True does not go .* Use DDP, or"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_would_make_the_projection_wrong_is_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        RomeBertTrainingArguments(str(tmp_path), use_cpu=True, **settings)
    RomeBertTrainingArguments(str(tmp_path), use_cpu=True, gradient_regularization="off", **settings)
