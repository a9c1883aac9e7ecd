"""One folder per run: made for one set of settings, continued by the same, refused to any other, never
overwritten in silence.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modeling_romebert.evaluation.provenance import read_json, write_json
from modeling_romebert.training import resume

SETTINGS = "settings.json"


def check_run_folder(
    path: str | os.PathLike[str], settings: dict[str, Any], argument: str = "--output_dir"
) -> Path:
    """The folder of a run, still to be made or made earlier with the same settings. Touches nothing.

    argument: that names the folder, for messages.

    Raises:
        SystemExit: the folder holds something else.
    """
    folder = Path(path)
    if (folder / SETTINGS).is_file():
        earlier = read_json(folder / SETTINGS)
        if earlier != settings:
            raise SystemExit(
                f"{folder} holds a run with other settings ({_difference(earlier, settings)}). Choose"
                f" another {argument}, or delete the folder."
            )
    elif folder.exists() and (not folder.is_dir() or any(map(_is_content, folder.iterdir()))):
        raise SystemExit(
            f"{folder} exists, and not as a run of this script. Choose another {argument}; nothing was"
            " touched."
        )
    return folder


def open_run_folder(
    path: str | os.PathLike[str], settings: dict[str, Any], argument: str = "--output_dir"
) -> Path:
    """As `check_run_folder`; the folder is there afterwards, and holds the settings."""
    folder = check_run_folder(path, settings, argument)
    if not (folder / SETTINGS).is_file():
        write_json(folder / SETTINGS, settings)
    return folder


def file_digests(files: Mapping[str, str | os.PathLike[str]]) -> dict[str, str]:
    """Files by name -> their SHA-256: what belongs to the settings of a run is what they hold."""
    return {name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in files.items()}


def _is_content(path: Path) -> bool:
    """Whether a file is more than settings that were cut off while they were written."""
    return not path.name.startswith(f".{SETTINGS}.")


def _difference(earlier: dict[str, Any], now: dict[str, Any], path: str = "") -> str:
    """What differs, as `a.b: was 1, is 2`."""
    found = []
    for key in sorted(earlier.keys() | now.keys()):
        old, new = earlier.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found.append(_difference(old, new, f"{path}{key}."))
        elif old != new:
            found.append(f"{path}{key}: was {old!r}, is {new!r}")
    return ", ".join(part for part in found if part)


def finished(folder: Path, results: str = "results.json") -> bool:
    """Whether the run wrote its results, which is the last thing that it does."""
    return (folder / results).is_file()


def last_checkpoint(folder: str | os.PathLike[str], say: bool = True) -> str | None:
    """The newest complete checkpoint to continue from, said aloud; `None` when there is none.

    A checkpoint that was cut off while it was written is passed over (modeling_romebert/training/resume.py).
    """
    newest = resume.last_checkpoint(folder)
    if say and newest is not None:
        print(f"continuing from {newest}")
    return newest
