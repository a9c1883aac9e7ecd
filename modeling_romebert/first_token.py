"""Encoders whose first token was trained for nothing, as exits that read it have to know.

Sentence encoders keep beside their weights, where sentence-transformers looks for it, which of the last
layer's states make a sentence's vector.
"""

import json
import os
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .hub import file_beside

logger = logging.get_logger(__name__)

POOLING = "1_Pooling/config.json"


def warn_of_first_token(name: str | os.PathLike[str], exit_pooling: str, **at_hub: Any) -> None:
    """Say that the exits of a model read the first token of an encoder that was trained to be read as a mean.

    Args:
        name: of the encoder's checkpoint, a folder or an id on the Hub.
        exit_pooling: what the exits read.
        at_hub: as `file_beside` takes it.
    """
    if exit_pooling != "cls":
        return
    found = file_beside(name, POOLING, **at_hub)
    if found is None:
        return
    try:
        read = json.loads(Path(found).read_text(encoding="utf-8"))
    except json.JSONDecodeError:  # it is nothing to us but a hint
        return
    if read.get("pooling_mode_mean_tokens") and not read.get("pooling_mode_cls_token"):
        logger.warning(
            f"{name} is a sentence encoder that is read as the mean of all tokens ({POOLING}), and"
            " exit_pooling='cls' reads the first one, which says little in its first layers. Load it with"
            " exit_pooling='mean'."
        )
