"""Which weights a model's figures are of: a digest of the weights, and a record beside them that a saved model carries.

The card (model_card.py) is for readers; `model_record.json` holds the same evaluation and training for the next save, with the
digest of the weights that they belong to. Travels to the Hub with the model's code.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import cached_file, logging

from .model_card import public, with_base, write_model_card, write_whole

logger = logging.get_logger(__name__)

RECORD = "model_record.json"


def weights_digest(state_dict: Mapping[str, Any]) -> str | None:
    """Names and values of a state dict -> a digest; `None` where values are not at hand (offloaded, or parts of sharded weights).

    Values count, not how they are held: fp16 and bf16 are hashed as the fp32 numbers that they are, on whatever device. Rounding
    weights to fewer bits makes other weights of them.

    Example:
        >>> ones = torch.ones(2)
        >>> weights_digest({"w": ones}) == weights_digest({"w": ones.half()}) != weights_digest({"w": 2 * ones})
        True
    """
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        value = state_dict[name]
        digest.update(name.encode())
        if not isinstance(value, Tensor):  # as quantized modules have them
            digest.update(repr(value).encode())
            continue
        if value.is_meta or hasattr(value, "to_local"):
            return None
        digest.update(repr(tuple(value.shape)).encode())
        digest.update(_values(value))
    return digest.hexdigest()


def _values(tensor: Tensor) -> Any:
    """The bytes of a tensor's numbers."""
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.is_floating_point() and tensor.dtype != torch.float64:
        tensor = tensor.float()
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def read_record(name_or_path: str | os.PathLike[str], **at_hub: Any) -> dict[str, Any]:
    """The record of a saved model, in a folder or on the Hub; empty where there is none."""
    found = cached_file(
        str(name_or_path),
        RECORD,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **at_hub,
    )
    if found is None:
        return {}
    try:
        return json.loads(Path(found).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:  # the weights are sound without it
        logger.warning(f"{found} is no JSON ({error}), so what it told of evaluation and training is left out.")
        return {}


def write_record(folder: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Write the record into a folder in one step; one that tells nothing is none, and an older one goes."""
    path = Path(folder, RECORD)
    if not record["evaluation"] and not record["training"]:
        path.unlink(missing_ok=True)
        return
    write_whole(path, (json.dumps(record, indent=2, default=str) + "\n").encode())


def told_of(weights: str | None, *records: Mapping[str, Any]) -> dict[str, Any]:
    """What the first record that is of these weights tells; of others' only what they started from."""
    for record in records:
        if weights is not None and record.get("weights") == weights:
            return dict(record)
    bases = (record["training"].get("base_model") for record in records if record.get("training"))
    base = next(filter(None, bases), None)
    return {"training": {"base_model": base}} if base else {}


def write_card_and_record(
    model: Any, folder: str | os.PathLike[str], state_dict: Mapping[str, Any], training: dict[str, Any] | None = None
) -> None:
    """Write the card and the record of a model that is saved in a folder.

    Args:
        model: a `RomeBertPreTrainedModel`, with what it knows of its evaluation and training.
        state_dict: the weights that are saved.
        training: what to tell of the training; the model's `training_settings` when left out.
    """
    evaluation, training = model.evaluation, training or model.training_settings or {}
    before = (model._record, read_record(folder) if os.path.isdir(folder) else {})
    weights = weights_digest(state_dict) if evaluation or training or any(before) else None
    if evaluation is not None and (weights is None or evaluation["weights"] != weights):
        logger.warning_once(
            "What evaluate_exits reported is of other weights than those that are saved, so the model card leaves it out."
            " Evaluate the weights that you save: after training, merging adapters, or rounding to another dtype."
        )
        evaluation = None
    told = told_of(weights, *before)
    evaluation = evaluation or told.get("evaluation")
    training = with_base({**(told.get("training") or {}), **training}, model.config)
    write_model_card(folder, model.config, evaluation, training)
    if evaluation is not None:
        evaluation = {name: value for name, value in evaluation.items() if name != "model"}  # a folder of this machine, perhaps
    write_record(folder, {"weights": weights, "evaluation": evaluation, "training": public(training)})
