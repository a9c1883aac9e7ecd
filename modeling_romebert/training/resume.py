"""Which checkpoint a run continues from: one that is complete, or an error that says what is wrong with it.

A Trainer writes a checkpoint file by file, `trainer_state.json` last, so a process that is killed leaves a
folder that looks like any other. Writing is the trainer's; nothing is loaded here, pickles least of all.
"""

import json
import os
import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer_callback import TrainerState

TRAINER_STATE = "trainer_state.json"
# How the names of the files or folders begin; the second is DeepSpeed's.
STATES_OF_OPTIMIZER = ("optimizer", "global_step")


def flaw(checkpoint: str | os.PathLike[str]) -> str | None:
    """What keeps a training from continuing at this checkpoint, in words; `None` where nothing does.

    Complete is a checkpoint whose last file is there and can be read, that holds the state of the optimizer,
    and in which every file of weights and states is as long as it says it is (read off the headers of
    safetensors and the directories at the end of PyTorch's files).
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return "there is no such folder"
    if not (folder / TRAINER_STATE).is_file():
        return f"{TRAINER_STATE}, which is written last, is missing"
    try:
        TrainerState.load_from_json(str(folder / TRAINER_STATE))
    except (json.JSONDecodeError, TypeError, UnicodeDecodeError):
        return f"{TRAINER_STATE} is cut off"
    if not any(path.name.startswith(STATES_OF_OPTIMIZER) for path in folder.iterdir()):
        return "the state of the optimizer is missing, as save_only_model=True leaves it"
    return next((f"{path.name} is cut off" for path in sorted(folder.iterdir()) if not _is_whole(path)), None)


def _is_whole(path: Path) -> bool:
    """Whether a file of weights or states has the length that it tells; of other files nothing is known."""
    if path.suffix in (".pt", ".pth"):
        return zipfile.is_zipfile(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt"):
                return True
        except SafetensorError:
            return False
    return True


def checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints in the output folder of a run, complete or not, newest first."""
    found = [
        path
        for path in Path(folder).glob("checkpoint-*")
        if path.is_dir() and re.fullmatch(r"checkpoint-\d+", path.name)
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)


def last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The newest complete checkpoint in the output folder of a run; `None` where there is none."""
    return next((str(path) for path in checkpoints(folder) if flaw(path) is None), None)


def checkpoint_to_resume(choice: str | os.PathLike[str] | bool, output_dir: str) -> str:
    """What `resume_from_checkpoint` stands for: `True` is the newest complete checkpoint in `output_dir`, a
    path is itself.

    Raises:
        ValueError: there is no complete checkpoint, or the one named is not.
    """
    if choice is True:
        newest = last_checkpoint(output_dir)
        if newest is None:
            passed_over = "".join(f" {path.name}: {flaw(path)}." for path in checkpoints(output_dir))
            raise ValueError(
                "resume_from_checkpoint=True finds no complete checkpoint in"
                f" output_dir={output_dir!r}.{passed_over} Leave resume_from_checkpoint out to start from"
                " the beginning, with save_strategy set so that there is one next time."
            )
        return newest
    wrong = flaw(str(choice))
    if wrong is not None:
        raise ValueError(
            f"resume_from_checkpoint={str(choice)!r} cannot be continued from: {wrong}."
            " resume_from_checkpoint=True takes the newest complete one in output_dir; left out, training"
            " starts from the beginning."
        )
    return str(choice)
