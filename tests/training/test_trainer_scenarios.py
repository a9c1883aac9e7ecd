"""What a Trainer takes and tells about evaluation, prediction, metrics, logs, checkpoints and batches: ours
does as stock does.

The outcome of a scenario (trainer_scenarios.py) with the stock trainer is the oracle, to the number; where
ours has a reason to differ, the table has the reason and the place.
"""

import json
import re

import pytest
import torch
from by_version import CHECKPOINTING
from processes import SERVER, environments
from stock_and_ours import OURS, OURS_LIKE_STOCK, STOCK, differences, evaluate_in_a_process, plain, trainer_of
from trainer_scenarios import OTHERWISE, RAISES, SCENARIOS, TOLERANCES
from transformers import logging


def outcome(kind, folder, name):
    settings, given, act, model = SCENARIOS[name]
    try:
        return plain(act(trainer_of(kind, folder, settings, given(), model)))
    except Exception as error:
        return f"{type(error).__name__}"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    yield tmp_path / "stock", tmp_path / "ours"
    torch.use_deterministic_algorithms(False)
    logging.set_verbosity_warning()


# One or two of each kind, at every edit.
EVERY_EDIT = {
    "defaults",
    "each-step",
    "best metric_for_best_model=accuracy greater_is_better=True save_total_limit=1",
    "gradient_accumulation_steps=2",
    "bf16=True",
    "metrics-absent",
    "metrics-return-nothing",
    "by-batch",
    "without-labels",
    "no-rows",
    "early-stopping",
    "resume",
}
assert SCENARIOS.keys() >= EVERY_EDIT


@pytest.mark.parametrize(
    "name", [name if name in EVERY_EDIT else pytest.param(name, marks=pytest.mark.slow) for name in SCENARIOS]
)
def test_ours_does_as_stock_does(folders, name):
    stock, ours = (
        outcome(kind, folder, name) for kind, folder in zip((STOCK, OURS_LIKE_STOCK), folders, strict=True)
    )
    assert (stock if isinstance(stock, str) else None) == RAISES.get(name)
    found = differences(stock, ours, tolerance=TOLERANCES.get(name, 1e-3))
    if name in OTHERWISE:
        reason, places = OTHERWISE[name]
        assert found, f"no longer true: {reason}"
        found = [difference for difference in found if not re.search(places, difference)]
    assert not found


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "defaults",
        "bf16=True",
        "auto_find_batch_size=True",
        "dataloader_drop_last=True",
        f"{CHECKPOINTING}=True",
        "by-batch",
        "tuples",
        "early-stopping",
        "stream",
        "model-init",
        "resume",
    ],
)
def test_romebert_objective_tells_the_same_things(folders, name):
    """Other numbers, in the same places."""

    def places(told):
        if isinstance(told, dict):
            return {key: places(value) for key, value in told.items() if key != "best"}
        return [places(value) for value in told] if isinstance(told, list) else type(told).__name__

    stock, ours = (outcome(kind, folder, name) for kind, folder in zip((STOCK, OURS), folders, strict=True))
    assert not isinstance(stock, str) and not differences(places(stock), places(ours))


@pytest.mark.slow
def test_two_processes_evaluate_as_stock_does(tmp_path):
    """11 and 3 rows in batches of 4 to each: the last batches are filled up, and what fills is dropped."""
    started = [
        SERVER.Process(target=evaluate_in_a_process, args=(str(tmp_path), environment))
        for environment in environments(2)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=120)
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["stock"][0]["eval_rows"] == told["ours"][0]["eval_rows_exit_1"] == 11
    assert not differences(told["stock"], told["ours"])
