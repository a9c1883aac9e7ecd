"""One run of the study: a cell's file of arguments -> a fine-tuned model, judged at every exit -> one JSON.

    python examples/study/one_run.py FOLDER  # with FOLDER/cell.json, which run.py writes

Goes on from the last checkpoint in the folder. The result is written in one step, last of all. Training is
train_glue.py's and evaluation the package's; what is measured here besides is the time.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # examples/
import support.installed  # noqa: F401

# isort: split
import fcntl
import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import train_glue
from quickstart import multiplies_bf16
from support.glue_arguments import KINDS
from support.glue_arguments import parse as parse_glue
from support.glue_data import GlueData, load_glue
from support.recipes import as_arguments
from support.run_arguments import settings_of
from support.run_folder import SETTINGS, last_checkpoint, open_run_folder
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from modeling_romebert.configuration_romebert import ProblemType
from modeling_romebert.evaluation.evaluate import report_of
from modeling_romebert.evaluation.exit_logits import ExitLogits, collect_exit_logits
from modeling_romebert.evaluation.metrics import predictions_of
from modeling_romebert.evaluation.provenance import provenance, read_json
from modeling_romebert.evaluation.report import ExitReport
from modeling_romebert.exit_policies import POLICIES
from modeling_romebert.model_card import write_whole
from study import characters
from study.cells import BUSY, CELL

# The rules of leaving that are compared on each model; the first one's curve is the run's own.
RULES: list[dict[str, Any]] = [
    {"name": "entropy"},
    {"name": "confidence"},
    {"name": "margin"},
    {"name": "patience"},
    {"name": "patient_confidence", "patience": 2},
    {"name": "vote"},
]
# Of the run, whatever the cell says: a checkpoint five times, and twenty lines of the log.
OF_THE_RUN = {
    "save_strategy": "steps",
    "save_steps": 0.2,
    "save_total_limit": 1,
    "logging_steps": 0.05,
    "eval_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": torch.cuda.is_available(),
    "bf16": multiplies_bf16(),
    "use_cpu": not torch.cuda.is_available(),
}
STEP_OF_COST = 0.01


class Clock(TrainerCallback, ExportableState):
    """Seconds that training took, also over several starts: those of before are in the checkpoint.

    `cpu_seconds` counts only what this process ran, whoever else was on the machine.
    """

    def __init__(self) -> None:
        self.before, self.started = (0.0, 0.0), (0.0, 0.0)

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> tuple[float, float]:
        """On the clock, and of the processor."""
        passed = (now - then for now, then in zip(self._now(), self.started, strict=True))
        seconds, cpu_seconds = (one + more for one, more in zip(self.before, passed, strict=True))
        return seconds, cpu_seconds

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"before": self.seconds if self.started[0] else (0.0, 0.0)}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        self.before, self.started = tuple(kept.get("before", (0.0, 0.0))), self._now()


def main(folder: Path) -> None:
    cell = read_json(folder / CELL)
    with alone(folder):
        found = run(cell, folder)
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in found.items())
        write_whole(Path(cell["result"]), f"{{\n{lines}\n}}\n".encode())


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder of a run, which a process that dies lets go.

    Raises:
        SystemExit: another process holds it; its code is `BUSY`.
    """
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: this run is going on in another process.", flush=True)
            raise SystemExit(BUSY) from None
        yield


def run(cell: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train, or go on, and judge -> the content of the result's file."""
    where, data, training = parse(cell, folder)
    glue = load_glue(data)
    rows = digest_of(glue)
    clock = Clock()
    trainer, glue = train_glue.make_trainer(where, data, training, glue, callbacks=[clock])
    settings = settings_of(where, data, training, files={})  # whose digests are kept beside
    settings["model"] = {**settings["model"], "model_name_or_path": cell["backbone"]}
    train = Path(training.output_dir)
    if (train / SETTINGS).is_file() and read_json(train / SETTINGS) != settings:
        print(f"{train} was begun when defaults were others, so this run begins anew.", flush=True)
        shutil.rmtree(train)
    open_run_folder(train, settings)
    trained = trainer.train(resume_from_checkpoint=last_checkpoint(training.output_dir))
    seconds, cpu_seconds = clock.seconds
    (evaluation,) = list(glue.evaluation.values())[:1]
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    found = collect_exit_logits(model, evaluation, trainer.processing_class, progress=False)
    return {
        **{name: cell[name] for name in ("task", "backbone", "recipe", "seed")},
        **judged(model, found, glue, trains_exits=training.objective != "last"),
        "rows": {"train": len(glue.train), "evaluation": len(found.labels)},
        "training_seconds": round(seconds, 1),
        "training_cpu_seconds": round(cpu_seconds, 1),
        "steps": trained.global_step,
        **logged(trainer.state.log_history),
        "arguments": cell["arguments"],
        "settings": settings,
        "digests": {**rows, **cell["made_of"]},
        "commit": commit(),
        "device": torch.cuda.get_device_name() if training.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        **provenance(),
    }


def parse(cell: dict[str, Any], folder: Path) -> Any:
    """A cell -> the arguments of train_glue.py, as its dataclasses."""
    arguments = {
        **OF_THE_RUN,
        **cell["arguments"],
        **cell["places"],
        "seed": cell["seed"],
        "output_dir": str(folder / "train"),
        "per_device_eval_batch_size": 64,
    }
    argv = as_arguments(arguments, KINDS, CELL)
    return parse_glue(argv)


def judged(model: Any, found: ExitLogits, glue: GlueData, trains_exits: bool) -> dict[str, Any]:
    """The metric at every exit that was trained, and what each rule of leaving costs and scores: the first
    one as `policy` and `curve`, the others as `policies`.

    `predictions` are those of each exit, and `labels` the rows' (characters.py).
    """
    layers = model.config.exit_layers if trains_exits else model.config.exit_layers[-1:]
    rules = policies(glue) if trains_exits else policies(glue)[:1]
    exits_there = len(model.config.exit_layers)
    reports = [
        report_of(
            model,
            found,
            metric=glue.metrics[0],
            policy=policy,
            thresholds=POLICIES[policy["name"]].grid(exits_there, fine=True),
        )
        for policy in rules
    ]
    by_layer = dict(zip(reports[0].exit_layers, reports[0].exits, strict=True))
    exits = {str(layer): by_layer[layer] for layer in layers}
    judgement = {
        "metric": reports[0].metric,
        "num_layers": model.config.num_hidden_layers,
        "exits": exits,
        "mean_over_exits": float(np.mean(list(exits.values()))),
        "policy": reports[0].policy["name"] if trains_exits else None,
        "curve": points(reports[0]) if trains_exits else [],
        "area": reports[0].area if trains_exits else None,
        "policies": {report.policy["name"]: points(report) for report in reports[1:]},
    }
    logits = found.exit_logits.numpy()  # (N, E, C)
    written = None
    if model.problem_type == ProblemType.SINGLE_LABEL and model.num_labels <= len(characters.DIGITS):
        predicted, written = predictions_of(logits, model.problem_type), characters.of_classes  # (N, E)
    elif model.problem_type == ProblemType.REGRESSION and model.num_labels == 1:
        predicted, written = logits[..., 0], characters.of_numbers  # (N, E)
    if written is not None:
        columns = dict(zip(model.config.exit_layers, predicted.T, strict=True))
        judgement["predictions"] = {str(layer): written(columns[layer]) for layer in layers}
        judgement["labels"] = written(np.asarray(found.labels))
    return judgement


def policies(glue: GlueData) -> list[dict[str, Any]]:
    """The rules that have a meaning for the task: of numbers, only whether exits agree."""
    if glue.names:
        return RULES
    return [{"name": "patience", "tolerance": train_glue.TOLERANCE * glue.label_range}]


def points(report: ExitReport) -> list[dict[str, float]]:
    """A rule's curve: of the thresholds of a fine grid those that change the cost by a hundredth."""
    kept: list[dict[str, float]] = []
    for one in sorted(report.curve, key=lambda point: -point.cost):
        if not kept or kept[-1]["cost"] - one.cost >= STEP_OF_COST:
            values = {"threshold": one.threshold, "cost": one.cost, "metric": one.metric}
            kept.append({name: round(value, 5) for name, value in values.items()})
    return kept


def logged(history: list[dict[str, Any]]) -> dict[str, Any]:
    """A trainer's log -> the loss terms on the way, and in which share of the steps the projection acted."""
    lines = [line for line in history if "loss_last" in line]
    kept = ("step", "loss_last", "loss_exits")
    found: dict[str, Any] = {
        "losses": [{name: round(line[name], 5) for name in kept if name in line} for line in lines]
    }
    for name in ("projected", "gradient_cosine"):
        values = [line[name] for line in lines if name in line]
        found[name] = float(np.mean(values)) if values else None
    return found


# ---- what it was made of


def digest_of(glue: GlueData) -> dict[str, str]:
    """SHA-256 of the rows that are trained and judged on, in their order."""
    (evaluation,) = list(glue.evaluation.values())[:1]
    return {
        name: hashlib.sha256("\n".join(json.dumps(row, sort_keys=True) for row in rows).encode()).hexdigest()
        for name, rows in (("train", glue.train), ("evaluation", evaluation))
    }


def commit() -> str | None:
    """The commit of the checkout that runs; `None` outside of one."""
    asked = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or None


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: one_run.py FOLDER, with a cell.json; run.py starts it.")
    main(Path(sys.argv[1]))
