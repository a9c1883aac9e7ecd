"""Takes the steps of some cases, as one process or as several, and writes each case's: see
test_distributed.py.

python tests/helpers/distributed_run.py FOLDER    # with FOLDER/cases.json: name -> case
torchrun --nproc_per_node 2 tests/helpers/distributed_run.py FOLDER
"""

import json
import sys
from pathlib import Path

from explicit import adapted, contrary, rows_of, train
from processes import enter, leave_group
from safetensors.torch import save_file


def model_of(case: dict):
    model = contrary(**case.get("model", {}))
    return adapted(model) if case.get("adapters") else model


def take_steps(name: str, case: dict, folder: Path) -> None:
    """Train on the case; the main process writes weights before every step, gradients and logs."""
    steps, trainer = train(model_of(case), rows_of(case["rows"]), folder / "run", **case["settings"])
    if trainer.is_world_process_zero():
        tensors = {
            f"{step}.weight.{key}": w
            for step, weights in enumerate(steps.weights)
            for key, w in weights.items()
        }
        for step, gradients in enumerate(steps.gradients):
            tensors |= {f"{step}.gradient.{key}": g for key, g in gradients.items() if g is not None}
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        save_file(
            tensors,
            folder / f"{name}.safetensors",
            {"world_size": str(trainer.args.world_size), "logs": json.dumps(logs)},
        )
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    enter({})
    out = Path(sys.argv[1])
    for case_name, settings in json.loads((out / "cases.json").read_text()).items():
        take_steps(case_name, settings, out)
    leave_group()
