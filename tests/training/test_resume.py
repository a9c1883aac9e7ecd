"""A run that is killed goes on as if it had not been: in the middle of a step, and while a checkpoint is
written.
"""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from killed_run import IN_CHECKPOINT, IN_STEP, NEVER, train
from processes import SERVER, environments
from safetensors import safe_open
from tiny import PAPER, build, tiny_rows, tiny_tokenizer

from modeling_romebert import RomeBertTrainer, RomeBertTrainingArguments
from modeling_romebert.training.resume import (
    TRAINER_STATE,
    checkpoint_to_resume,
    checkpoints,
    flaw,
    last_checkpoint,
)

pytestmark = pytest.mark.slow


def run(folder: Path, where: str = NEVER, at: int = 0, processes: int = 1, **settings) -> list[int | None]:
    """Train in processes of their own -> how each ended."""
    started = [
        SERVER.Process(target=train, args=(str(folder), where, at, environment, settings))
        for environment in environments(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=120)
    return [process.exitcode for process in started]


def weights(folder: Path, processes: int = 1) -> dict[str, torch.Tensor]:
    """At the end of a run."""
    with safe_open(folder / "end.safetensors", "pt") as file:
        assert file.metadata() == {"world_size": str(processes)}
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def assert_same(these, others):
    assert these.keys() == others.keys()
    for name, weight in these.items():
        assert torch.equal(weight, others[name]), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights at the end of a run that was not killed: one run for all tests with the same settings."""
    folder, found = tmp_path_factory.mktemp("whole"), {}

    def one(processes: int = 1, **settings) -> dict[str, torch.Tensor]:
        key = str((processes, settings))
        if key not in found:
            place = folder / str(len(found))
            assert run(place, processes=processes, **settings, save_strategy="no") == [0] * processes
            found[key] = weights(place, processes)
        return found[key]

    return one


@pytest.mark.parametrize(
    ("objective", "step", "accumulation"),
    [
        ("romebert", 3, 2),  # 3 steps of an epoch: 4 + 4, 4 + 4 and 4 rows
        ("joint", 7, 1),
        ("last", 4, 1),
        ("deebert", 4, 1),
        ("deebert", 2 * 3 + 2, 2),  # inside stage two
        ("alternating", 5, 2),
    ],
)
def test_killed_in_a_step_and_resumed_is_the_run_that_was_not(tmp_path, whole, objective, step, accumulation):
    settings = {"objective": objective, "gradient_accumulation_steps": accumulation}
    saving = {"save_steps": step - 1}
    assert run(tmp_path, IN_STEP, step, **settings, **saving) == [-signal.SIGKILL]
    assert Path(last_checkpoint(tmp_path)).name == f"checkpoint-{step - 1}"
    assert run(tmp_path, **settings, **saving) == [0]
    assert_same(weights(tmp_path), whole(**settings))


@pytest.mark.parametrize(
    ("strategy", "processes", "step"),
    [
        ("group_by_length", 1, 7),
        ("group_by_length", 2, 5),
        ("random", 2, 5),
        ("batch_rebalance", 2, 5),
    ],
)
def test_killed_within_the_second_epoch_it_goes_on_with_the_rows_that_are_left(
    tmp_path, whole, strategy, processes, step
):
    settings = {"objective": "joint", "train_sampling_strategy": strategy, "processes": processes}
    saving = {"save_steps": step - 1}
    assert run(tmp_path, IN_STEP, step, **settings, **saving)[-1] == -signal.SIGKILL
    assert run(tmp_path, **settings, **saving) == [0] * processes
    assert_same(weights(tmp_path, processes), whole(**settings))


def test_killed_while_a_checkpoint_is_written(tmp_path, whole):
    """The optimizer's state is written by then: the stock Trainer would resume from it, in part."""
    assert run(tmp_path, IN_CHECKPOINT, 4) == [-signal.SIGKILL]
    written = {path.name for path in (tmp_path / "checkpoint-4").iterdir()}
    assert {"model.safetensors", "optimizer.pt"} <= written
    assert Path(last_checkpoint(tmp_path)).name == "checkpoint-3"
    assert run(tmp_path) == [0]
    assert flaw(tmp_path / "checkpoint-4") is None  # written again
    assert_same(weights(tmp_path), whole())


def test_killed_while_an_older_checkpoint_is_written_over(folder):
    """New weights beside the older state of the trainer would be no checkpoint, and look like one."""
    again = {
        "resume_from_checkpoint": str(folder / "checkpoint-1"),
        "max_steps": 3,
        "learning_rate": 1e-3,
    }
    assert flaw(folder / "checkpoint-2") is None
    assert run(folder, IN_CHECKPOINT, 2, **again) == [-signal.SIGKILL]
    assert flaw(folder / "checkpoint-2") == "trainer_state.json, which is written last, is missing"


@pytest.mark.parametrize("where", [IN_STEP, IN_CHECKPOINT])
def test_two_processes_of_which_one_is_killed(tmp_path, whole, where):
    settings = {"processes": 2, "objective": "romebert", "max_steps": 3}
    first, second = run(tmp_path, where, 2, **settings)
    assert second == -signal.SIGKILL and first != 0
    assert Path(last_checkpoint(tmp_path)).name == "checkpoint-1"
    assert run(tmp_path, **settings) == [0, 0]
    assert_same(weights(tmp_path, processes=2), whole(**settings))


# ---- what is complete


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The output folder of a run of three steps, each with its checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    assert run(folder, max_steps=3) == [0]
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of it, to spoil, without the code that goes with the weights."""
    return Path(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("*.py")))


def trainer_of(folder, **settings):
    quiet = {
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "max_steps": 3,
        "per_device_train_batch_size": 4,
    }
    arguments = RomeBertTrainingArguments(str(folder), **quiet | PAPER | settings)
    return RomeBertTrainer(
        build(num_labels=2, exit_pooling="cls"),
        arguments,
        train_dataset=tiny_rows(20),
        processing_class=tiny_tokenizer(),
    )


def test_last_checkpoint_is_the_newest_by_number(folder):
    (folder / "checkpoint-2").rename(folder / "checkpoint-10")
    (folder / "checkpoint-11-notes").mkdir()
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-10", "checkpoint-3", "checkpoint-1"]
    assert last_checkpoint(folder) == checkpoint_to_resume(True, str(folder)) == str(folder / "checkpoint-10")
    assert last_checkpoint(folder / "absent") is None


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", TRAINER_STATE]
)
def test_file_that_is_cut_off(folder, name):
    path = folder / "checkpoint-3" / name
    content = path.read_bytes()
    for kept in (0, 0.5, 0.99):
        path.write_bytes(content[: int(kept * len(content))])
        assert flaw(folder / "checkpoint-3") == f"{name} is cut off"
        assert checkpoint_to_resume(True, str(folder)) == str(folder / "checkpoint-2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            TRAINER_STATE,
            r"trainer_state\.json, which is written last, is missing\. "
            r"resume_from_checkpoint=True takes the newest",
        ),
        (
            "optimizer.pt",
            r"the state of the optimizer is missing, as save_only_model=True leaves it\. .* "
            r"left out, training starts",
        ),
    ],
)
def test_named_checkpoint_that_is_not_complete(folder, name, message):
    (folder / "checkpoint-3" / name).unlink()
    with pytest.raises(
        ValueError, match=rf"resume_from_checkpoint='.*checkpoint-3' cannot be continued from: {message}"
    ):
        trainer_of(folder).train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    trainer = trainer_of(folder, max_steps=4)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4


def test_named_checkpoint_that_is_not_there(folder):
    with pytest.raises(ValueError, match=r"checkpoint-9' cannot be continued from: there is no such folder"):
        trainer_of(folder).train(resume_from_checkpoint=str(folder / "checkpoint-9"))


def test_no_complete_checkpoint_at_all(folder):
    for step in (1, 2, 3):
        (folder / f"checkpoint-{step}" / TRAINER_STATE).unlink()
    message = (
        r"finds no complete checkpoint in output_dir='.*'\. checkpoint-3: "
        r"trainer_state\.json, .* Leave resume_from_checkpoint out"
    )
    with pytest.raises(ValueError, match=message):
        trainer_of(folder).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"finds no complete checkpoint in output_dir='.*absent'\. Leave"):
        trainer_of(folder / "absent").train(resume_from_checkpoint=True)


def test_rotation_leaves_a_complete_checkpoint(folder):
    trainer_of(folder, max_steps=5, save_strategy="steps", save_steps=1, save_total_limit=1).train(
        resume_from_checkpoint=True
    )
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-5"]
    assert flaw(folder / "checkpoint-5") is None
