"""A training, one process or one of several, that may kill itself and that goes on from its checkpoints: see
test_resume.py.
"""

import os
import signal
from pathlib import Path

from processes import enter, leave_group
from safetensors.torch import save_file
from tiny import PAPER, build, tiny_rows, tiny_tokenizer

from modeling_romebert import RomeBertTrainer, RomeBertTrainingArguments
from modeling_romebert.training.resume import checkpoints

NEVER, IN_STEP, IN_CHECKPOINT = "never", "in a step", "in a checkpoint"


class MortalTrainer(RomeBertTrainer):
    """A trainer whose process kills itself: after the first backward pass of a step, or before a checkpoint's
    last files.
    """

    where, at = NEVER, 0

    def die(self, where: str, step: int) -> None:
        if (where, step) == (self.where, self.at):
            os.kill(os.getpid(), signal.SIGKILL)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.die(IN_STEP, self.state.global_step + 1)
        return loss

    def _save_scaler(self, output_dir):
        super()._save_scaler(output_dir)
        self.die(IN_CHECKPOINT, self.state.global_step)


def train(folder: str, where: str, at: int, environment: dict[str, str], settings: dict) -> None:
    """From the checkpoint that the settings name, or the last complete one where there is any ->
    `end.safetensors`.
    """
    enter(environment)
    quiet = {
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_steps": 1,
        "seed": 3,
    }
    sizes = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
    }
    trainer = MortalTrainer(
        build(num_labels=2, exit_pooling="cls"),  # with dropout: the random numbers are to go on too
        RomeBertTrainingArguments(folder, **quiet | PAPER | sizes | settings),
        train_dataset=tiny_rows(20),
        processing_class=tiny_tokenizer(),
    )
    if trainer.args.process_index == trainer.args.world_size - 1:
        trainer.where, trainer.at = where, at
    trainer.train(trainer.args.resume_from_checkpoint or bool(checkpoints(folder)))
    if trainer.is_world_process_zero():
        metadata = {"world_size": str(trainer.args.world_size)}
        save_file(trainer.model.state_dict(), Path(folder, "end.safetensors"), metadata=metadata)
    trainer.accelerator.wait_for_everyone()
    leave_group()
