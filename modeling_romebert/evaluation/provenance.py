"""Results as data: JSON files that are whole or not there, and that say what they were measured with."""

import json
import os
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..model_card import write_whole


def provenance() -> dict[str, Any]:
    """What a figure depends on besides its inputs: versions, processor and its vector instructions, threads,
    date.
    """
    import torch

    return {
        "versions": {name: version(name) for name in ("romebert", "torch", "transformers")}
        | {"python": platform.python_version()},
        "machine": {
            "processor": platform.machine(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` to `path` in one step: a reader sees the old file or the new one, never half of it."""
    write_whole(Path(path), (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))
