"""What training logs: every term and exit, as means since the last log over steps and processes, for
TensorBoard too.
"""

import pytest
import torch
import torch.nn.functional as F
from faulty_run import trainer_of, two_processes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import LAYERS, tiny_rows, tiny_tokenizer
from transformers import DataCollatorWithPadding

from modeling_romebert import OBJECTIVES
from modeling_romebert.training.meters import RunningMeans

EXITS = [f"loss_exit_{layer}" for layer in range(1, LAYERS + 1)]


def logs_of(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# ---- means


def test_means_start_anew_when_read():
    means = RunningMeans()
    means.add(("a", "b"), torch.tensor([1.0, 10.0]))
    means.add(("a", "b"), torch.tensor([2.0, 30.0]))
    means.add(("c",), torch.tensor([5.0]))
    assert means.read() == {"a": 1.5, "b": 20.0, "c": 5.0}
    assert means.read() == {}
    means.add(("a", "b"), torch.tensor([7.0, 8.0]))
    assert means.read() == {"a": 7.0, "b": 8.0}


def test_means_leave_out_what_is_not_finite():
    means = RunningMeans()
    for a, b in ((1.0, float("nan")), (float("inf"), float("nan")), (3.0, float("-inf"))):
        means.add(("a", "b"), torch.tensor([a, b]))
    assert means.read() == {"a": 2.0}


def test_means_over_processes_weigh_every_value_the_same():
    """Here 1, 2 and there 6: not the mean of 1.5 and 6."""
    here = RunningMeans()
    for value in (1.0, 2.0):
        here.add(("a",), torch.tensor([value]))
    assert here.read(lambda totals: totals + torch.tensor([[6.0], [1.0]])) == {"a": 3.0}


# ---- a run


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_every_term_and_exit_is_logged(tmp_path, objective):
    trainer = trainer_of(tmp_path, objective=objective, logging_steps=2, max_steps=4)
    trainer.train()
    entries = logs_of(trainer)
    assert [entry["step"] for entry in entries] == list(
        range(2, 4 * len(OBJECTIVES[objective].stages) + 1, 2)
    )
    met = {"gradient_cosine", "projected"}
    for entry in entries:
        assert {"loss_last", "loss_exits", *EXITS} <= entry.keys()
        meet = objective == "romebert" or (objective == "mixed" and entry["step"] > 4)  # its second stage
        assert met & entry.keys() == (met if meet else set())
        assert entry["loss_last"] == entry[EXITS[-1]]
        assert "skipped_steps" not in entry


STILL = {"learning_rate": 0.0, "dropout": False}  # every step sees the same weights


def test_loss_of_each_exit_is_its_cross_entropy(tmp_path):
    trainer = trainer_of(tmp_path, rows=8, max_steps=2, logging_steps=2, **STILL)
    trainer.train()
    batch = DataCollatorWithPadding(tiny_tokenizer())(
        tiny_rows(8)
    )  # both batches at once: every row has the same say
    with torch.no_grad():
        logits = trainer.model.eval()(batch["input_ids"], batch["attention_mask"]).exit_logits
    expected = [F.cross_entropy(of_exit, batch["labels"]).item() for of_exit in logits.unbind(1)]
    assert len(set(expected)) == LAYERS
    assert [logs_of(trainer)[0][name] for name in EXITS] == pytest.approx(expected, rel=1e-4)


MEASURED = ("loss", "loss_last", "loss_exits", "gradient_cosine", "projected", *EXITS)


@pytest.mark.slow
def test_accumulated_micro_batches_have_the_same_say(tmp_path):
    """Two micro-batches of 4 rows are a batch of 8."""
    found = []
    for batch, accumulation in ((8, 1), (4, 2)):
        sizes = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
            "max_steps": 1,
        }
        trainer = trainer_of(tmp_path, rows=8, **sizes, **STILL)
        trainer.train()
        found.append([logs_of(trainer)[0][name] for name in MEASURED])
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_two_processes_log_the_means_of_both(tmp_path):
    """4 rows each are the 8 of one process, and either process knows."""
    one = trainer_of(tmp_path, per_device_train_batch_size=8, max_steps=2, logging_steps=2, **STILL)
    one.train()
    (_, first, _), (_, second, _) = two_processes(tmp_path, {}, max_steps=2, logging_steps=2, **STILL)
    for name in MEASURED:
        assert (
            first[0][name] == second[0][name] == pytest.approx(logs_of(one)[0][name], rel=1e-4, abs=1e-4)
        ), name


@pytest.mark.slow
def test_second_training_starts_its_means_anew(tmp_path):
    """The first one ends before a log."""
    trainer = trainer_of(tmp_path, rows=8, max_steps=1, logging_steps=2, **STILL)
    trainer.train()
    assert not logs_of(trainer)
    fresh = trainer_of(tmp_path, max_steps=2, logging_steps=2, **STILL)
    for one in (trainer, fresh):
        one.train_dataset, one.args.max_steps = tiny_rows(8, seed=5), 2
        one.train()
    assert logs_of(trainer)[0]["loss_exits"] == pytest.approx(logs_of(fresh)[0]["loss_exits"], rel=1e-4)


@pytest.mark.slow
def test_tensorboard_shows_them(tmp_path, monkeypatch):
    """Through the callback of transformers, read back from its event file."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer = trainer_of(tmp_path, report_to="tensorboard", logging_steps=2, max_steps=4, non_finite="skip")
    trainer.train()
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    shown = {name.removeprefix("train/") for name in board.Tags()["scalars"]}
    assert {*MEASURED, "skipped_steps", "learning_rate", "grad_norm"} <= shown
    for name in (*MEASURED, "skipped_steps"):
        events = [(event.step, event.value) for event in board.Scalars(f"train/{name}")]
        assert events == [
            (entry["step"], pytest.approx(entry[name], rel=1e-6)) for entry in logs_of(trainer)
        ], name
