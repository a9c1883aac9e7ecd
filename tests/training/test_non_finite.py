"""A step whose loss or gradient is not finite is left out and counted, or the run stops and says where; the
weights never move.
"""

import numpy as np
import pytest
import torch
from faulty_run import GRADIENT, LOGITS, Watch, trainer_of, two_processes
from pairs import others_slow, pairwise
from tiny import LAYERS
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_romebert import OBJECTIVES
from modeling_romebert.training.meters import RunningMeans
from modeling_romebert.training.non_finite import StepGuard

NAN, INF = float("nan"), float("inf")
BAD = 3  # the step at fault


def fault_in(step, accumulation=1, **fault):
    """In the first micro-batch of a step."""
    return {"layer": LAYERS, "batches": ((step - 1) * accumulation + 1,)} | fault


def same(these, others):
    return these.keys() == others.keys() and all(
        torch.equal(tensor, others[name]) for name, tensor in these.items()
    )


@pytest.fixture
def told_on_device(monkeypatch):
    """As on a GPU: the fused optimizer is told on the device, and the host reads when it logs or saves."""

    def as_on_gpu(optimizer, norm):
        assert optimizer.optimizer._step_supports_amp_scaling  # AdamW, fused
        return True

    monkeypatch.setattr(StepGuard, "_can_be_told", staticmethod(as_on_gpu))


# ---- skip


def assert_skipped(watch, trainer, steps=6):
    """Step BAD moved nothing, the others did, and the schedule went on."""
    for step in range(1, steps + 1):
        assert same(watch.weights[step - 1], watch.weights[step]) == (step == BAD), step
    assert all(weight.isfinite().all() for weight in watch.weights[-1].values())
    assert same(watch.moments[BAD - 2], watch.moments[BAD - 1]) and not same(
        watch.moments[BAD - 1], watch.moments[BAD]
    )
    assert watch.rates == pytest.approx([1e-3 * (steps - step) / steps for step in range(1, steps + 1)])
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["skipped_steps"] for entry in logs] == [int(step == BAD) for step in range(1, steps + 1)]


@pytest.mark.parametrize(
    ("objective", "accumulation", "where"),
    pairwise(["romebert", "joint", "last"], [1, 2], [LOGITS, GRADIENT]),
)
@pytest.mark.slow
def test_step_is_left_out(tmp_path, objective, accumulation, where):
    """With accumulation the whole group, though its second micro-batch is sound."""
    watch, settings = (
        Watch(),
        {"objective": objective, "gradient_accumulation_steps": accumulation, "non_finite": "skip"},
    )
    trainer = trainer_of(tmp_path, fault_in(BAD, accumulation, where=where), watch, **settings)
    trainer.train()
    assert_skipped(watch, trainer)


@pytest.mark.parametrize("where", [LOGITS, GRADIENT])
def test_step_is_left_out_on_the_device(tmp_path, told_on_device, where):
    watch = Watch()
    trainer = trainer_of(tmp_path, fault_in(BAD, where=where), watch, non_finite="skip")
    trainer.train()
    assert_skipped(watch, trainer)
    assert not hasattr(trainer.optimizer.optimizer, "found_inf")


@pytest.mark.parametrize("steps", [[2], [4]], ids=["stage one", "stage two"])
def test_step_of_a_stage_is_left_out(tmp_path, steps):
    watch = Watch()
    fault = {"layer": LAYERS if steps == [2] else 2, "where": GRADIENT, "batches": steps}
    trainer_of(tmp_path, fault, watch, objective="deebert", max_steps=3, non_finite="skip").train()
    still = [step for step in range(1, 7) if same(watch.weights[step - 1], watch.weights[step])]
    assert still == steps


@pytest.mark.parametrize("step", [2, 3])
def test_step_of_alternating_is_left_out(tmp_path, step):
    watch = Watch()
    trainer_of(tmp_path, fault_in(step), watch, objective="alternating", non_finite="skip").train()
    assert [n for n in range(1, 7) if same(watch.weights[n - 1], watch.weights[n])] == [step]


def test_first_step_may_be_left_out(tmp_path):
    watch = Watch()
    trainer_of(tmp_path, fault_in(1), watch, non_finite="skip").train()
    assert same(watch.weights[0], watch.weights[1]) and not same(watch.weights[1], watch.weights[2])


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch", "adafactor"])
@pytest.mark.slow
def test_any_optimizer_leaves_it_out(tmp_path, optim):
    watch = Watch()
    trainer_of(tmp_path, fault_in(BAD), watch, optim=optim, non_finite="skip").train()
    assert [n for n in range(1, 7) if same(watch.weights[n - 1], watch.weights[n])] == [BAD]


def test_without_a_fault_both_choices_are_the_same_training(tmp_path):
    ends = []
    for policy in ("stop", "skip"):
        trainer = trainer_of(tmp_path, non_finite=policy)
        trainer.train()
        ends.append(trainer.model.state_dict())
    assert same(*ends)
    assert "skipped_steps" in trainer.state.log_history[0]


def test_means_are_of_the_steps_that_count(tmp_path):
    """A log over three steps of which one is at fault: the means of the other two, and the stock loss not NaN
    either.
    """
    sound = trainer_of(tmp_path, fault_in(2), non_finite="skip", max_steps=3, objective="joint")
    sound.train()
    each = [entry for entry in sound.state.log_history if "loss" in entry]
    trainer = trainer_of(
        tmp_path, fault_in(2), non_finite="skip", max_steps=3, objective="joint", logging_steps=3
    )
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["skipped_steps"] == 1 and np.isfinite(entry["loss"])
    assert "loss_last" not in each[1] and "loss_exit_4" not in each[1] and np.isfinite(each[1]["loss_exit_1"])
    for name in ("loss_last", "loss_exit_4"):
        assert entry[name] == pytest.approx((each[0][name] + each[2][name]) / 2, rel=1e-5)


def test_skipped_steps_are_said_aloud(tmp_path, caplog):
    import logging

    logger = logging.getLogger("modeling_romebert.training.trainer")
    logger.addHandler(caplog.handler)
    try:
        trainer_of(tmp_path, {"layer": 2, "batches": (2, 3)}, non_finite="skip", logging_steps=6).train()
    finally:
        logger.removeHandler(caplog.handler)
    assert (
        "step 2: loss_exits not finite, at the exits of layers [2]. Steps left out since the last log: 2."
        in caplog.text
    )


# ---- stop


@pytest.mark.parametrize(
    ("objective", "fault", "message"),
    [
        ("romebert", {"layer": 2}, r"step 3: loss_exits not finite, at the exits of layers \[2\]\."),
        (
            "romebert",
            {"layer": 4},
            r"step 3: loss_last and loss_exits not finite, at the exits of layers \[4\]\.",
        ),  # it teaches
        (
            "romebert",
            {"layer": 2, "value": INF},
            r"step 3: loss_exits not finite, at the exits of layers \[2\]\.",
        ),
        (
            "romebert",
            {"layer": 2, "where": GRADIENT},
            r"step 3: gradient not finite, at the exits of layers \[2\]\.",
        ),
        (
            "romebert",
            {"layer": 4, "where": GRADIENT, "value": INF},
            r"step 3: gradient not finite, at the exits of layers \[4\]\.",
        ),
        ("joint", {"layer": 1}, r"step 3: loss_exits not finite, at the exits of layers \[1\]\."),
        ("joint", {"layer": 4}, r"step 3: loss_last not finite, at the exits of layers \[4\]\."),
        (
            "joint",
            {"layer": 3, "where": GRADIENT},
            r"step 3: gradient not finite, at the exits of layers \[3\]\.",
        ),
        ("last", {"layer": 4}, r"step 3: loss_last not finite, at the exits of layers \[4\]\."),
        (
            "last",
            {"layer": 2},
            r"step 3: gradient not finite, at the exits of layers \[2\]\.",
        ),  # not minimised, zero times NaN
        ("alternating", {"layer": 4}, r"step 3: loss_last not finite, at the exits of layers \[4\]\."),
        (
            "deebert",
            {"layer": 4, "where": GRADIENT},
            r"step 3: gradient not finite, at the exits of layers \[4\]\.",
        ),
    ],
)
@pytest.mark.parametrize("accumulation", others_slow(1, 2))
def test_error_names_step_term_and_exit(tmp_path, objective, fault, message, accumulation):
    watch, settings = Watch(), {"objective": objective, "gradient_accumulation_steps": accumulation}
    trainer = trainer_of(tmp_path, fault_in(3, accumulation, **fault), watch, **settings)
    with pytest.raises(
        FloatingPointError,
        match=message + r" The weights are those before that step\. .* non_finite='skip'\.",
    ):
        trainer.train()
    assert len(watch.weights) == 3 and same(watch.weights[-1], trainer.model.state_dict())
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


def test_fault_of_stage_two_is_named(tmp_path):
    trainer = trainer_of(tmp_path, {"layer": 2, "batches": (5,)}, objective="deebert", max_steps=3)
    with pytest.raises(
        FloatingPointError, match=r"step 5: loss_exits not finite, at the exits of layers \[2\]"
    ):
        trainer.train()


@pytest.mark.parametrize("where", [LOGITS, GRADIENT])
def test_on_the_device_the_weights_wait_for_the_host(tmp_path, told_on_device, where):
    """The host looks at the log of step 6; the steps after the fault, sound in themselves, move nothing."""
    watch = Watch()
    trainer = trainer_of(tmp_path, {"layer": 2, "batches": (BAD,), "where": where}, watch, logging_steps=5)
    term = "loss_exits" if where == LOGITS else "gradient"
    with pytest.raises(FloatingPointError, match=rf"step 3: {term} not finite, at the exits of layers \[2\]"):
        trainer.train()
    assert trainer.state.global_step == 5
    assert not same(watch.weights[1], watch.weights[2])
    assert all(same(watch.weights[2], later) for later in watch.weights[3:])


def test_no_checkpoint_is_written_after_a_fault(tmp_path, told_on_device):
    trainer = trainer_of(tmp_path, fault_in(BAD), save_strategy="steps", save_steps=2, logging_steps=100)
    with pytest.raises(FloatingPointError, match="step 3"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_trainer_trains_again_after_an_error(tmp_path):
    trainer = trainer_of(tmp_path, fault_in(BAD))
    with pytest.raises(FloatingPointError):
        trainer.train()
    trainer.train()
    assert trainer.state.global_step == 6


# ---- under a GradScaler


def scaled(trainer):
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    return trainer


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_overflow_is_the_scaler_s_business(tmp_path, policy):
    """It leaves the step out, halves its scale, and the schedule does not go on; the run does, and the step
    is counted.
    """
    watch = Watch()
    trainer = scaled(trainer_of(tmp_path, fault_in(BAD, where=GRADIENT, value=INF), watch, non_finite=policy))
    trainer.train()
    assert [step for step in range(1, 7) if same(watch.weights[step - 1], watch.weights[step])] == [BAD]
    assert trainer.accelerator.scaler.get_scale() == 2.0**9
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert sum(entry.get("skipped_steps", 0) for entry in logs) == 1


def test_loss_is_not(tmp_path):
    trainer = scaled(trainer_of(tmp_path, fault_in(BAD, layer=2)))
    with pytest.raises(
        FloatingPointError, match=r"step 3: loss_exits not finite, at the exits of layers \[2\]"
    ):
        trainer.train()


# ---- what it costs


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device: numbers read off tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.slow
def test_nothing_is_read_off_the_device_between_logs(tmp_path, told_on_device, monkeypatch, objective):
    """Means, loss and verdict of every step; what they note is read once, at the log."""
    reads = []
    for owner, name in ((RunningMeans, "add"), (StepGuard, "loss"), (StepGuard, "judge")):
        method = getattr(owner, name)

        def counted(*args, method=method, **kwargs):
            with Reads() as mode:
                result = method(*args, **kwargs)
            reads.append(mode.count)
            return result

        monkeypatch.setattr(owner, name, counted)
    trainer_of(tmp_path, fault_in(2), objective=objective, non_finite="skip", logging_steps=3).train()
    assert len(reads) >= 3 * 6 and set(reads) == {0}


def test_reads_are_counted():
    with Reads() as mode:
        bool(torch.ones(1).isfinite())
        torch.ones(1).item()
    assert mode.count == 2


# ---- two processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "accumulation", "where"),
    [("romebert", 1, LOGITS), ("romebert", 2, GRADIENT), ("joint", 2, LOGITS), ("last", 1, GRADIENT)],
)
def test_processes_skip_together(tmp_path, objective, accumulation, where):
    """The fault is in the second process alone."""
    settings = {
        "objective": objective,
        "gradient_accumulation_steps": accumulation,
        "non_finite": "skip",
        "max_steps": 3,
    }
    fault = fault_in(2, accumulation, where=where)
    (error, logs, first), (other_error, _, second) = two_processes(tmp_path, {1: fault}, **settings)
    assert error is other_error is None
    assert [entry["skipped_steps"] for entry in logs if "loss" in entry] == [0, 1, 0]
    assert all(
        np.array_equal(weight, second[name]) and np.isfinite(weight).all() for name, weight in first.items()
    )


@pytest.mark.slow
def test_processes_stop_together_and_all_name_the_exit(tmp_path):
    (error, _, first), (other_error, _, second) = two_processes(
        tmp_path, {1: fault_in(2, layer=3)}, max_steps=3
    )
    assert error == other_error
    assert error.startswith("step 2: loss_exits not finite, at the exits of layers [3].")
    assert all(np.array_equal(weight, second[name]) for name, weight in first.items())
