"""What the trainer overrides in transformers without a promise that it stays, held against the version that
is installed.

An override of a method that the library has renamed, or no longer calls, fails in silence: the run goes on
and nobody judges its steps. So each is looked for when a trainer is made, and has to have been called when
its time has come. What models need is checked where one is built (`check_layout` in backbones.py).
"""

from typing import Any

import transformers
from transformers import Trainer, TrainerCallback

from ..layer_masks import TESTED_TRANSFORMERS

# Of Trainer -> what a method must have been called before; `None` for what is only set or used.
HOOKS = {
    "loss_is_scaled_for_ga": None,
    "set_initial_training_values": "optimizer step",
    "get_batch_samples": "optimizer step",
    "_get_grad_norm": "optimizer step",
    "_save_checkpoint": "checkpoint",
    "_save_rng_state": "checkpoint",
    "_load_optimizer_and_scheduler": None,
    "_get_output_dir": None,
    "_get_train_sampler": None,
    "_determine_best_metric": None,
    "_push_from_checkpoint": None,
}


class HookWatch(TrainerCallback):
    """Holds the installed transformers against `HOOKS`, for one trainer.

    Each override notes its own call with `note`. What a step needs is checked before the optimizer moves a
    weight, what a checkpoint needs once it is written.

    Raises:
        RuntimeError: a hook is not there, or was not called in time.
    """

    def __init__(self) -> None:
        self._called: set[str] = set()
        for name in HOOKS:
            if not hasattr(Trainer, name):
                raise _changed(name, "does not have")

    def note(self, name: str) -> None:
        """A hook was called."""
        self._called.add(name)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._check("optimizer step", set())

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._check("checkpoint", {"_save_rng_state"} if args.save_only_model else set())

    def _check(self, event: str, spared: set[str]) -> None:
        for name, before in HOOKS.items():
            if before == event and name not in self._called | spared:
                raise _changed(name, f"did not call before its first {event}")


def _changed(name: str, how: str) -> RuntimeError:
    return RuntimeError(
        f"RomeBertTrainer overrides Trainer.{name}, which transformers {transformers.__version__} {how}."
        f" Install a version that this package was tested with: {TESTED_TRANSFORMERS}."
    )
