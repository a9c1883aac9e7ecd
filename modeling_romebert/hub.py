"""What travels beside the weights: the code, so that a model loads where only transformers is installed, and
its record.

A saved folder holds the files of `CLOSURE`, and its config.json points into them. What a user has added, a
model, a config or a pipeline of their own, stays there beside ours. `model_record.json` holds the evaluation
and the training for the next save, with a digest of the weights that they are of; the card (model_card.py)
tells them to readers.
"""

import copy
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import cached_file, logging

from .card_metadata import with_base
from .certificate import forget_if_of_other_weights
from .configuration_romebert import CustomPipelines, RomeBertConfig, is_own
from .model_card import public, write_model_card, write_whole

logger = logging.get_logger(__name__)

# Flat siblings that import torch, transformers and each other, and nothing else.
CLOSURE = (
    "active_attention.py",
    "arrays.py",
    "backbones.py",
    "batch_layout.py",
    "card_metadata.py",
    "card_tasks.py",
    "certificate.py",
    "confidence.py",
    "configuration_romebert.py",
    "cpu.py",
    "early_exit.py",
    "encoder.py",
    "exit_heads.py",
    "exit_policies.py",
    "first_token.py",
    "hub.py",
    "input_checks.py",
    "layer_masks.py",
    "losses.py",
    "model_card.py",
    "modeling_romebert.py",
    "monitor.py",
    "multi_exit.py",
    "out_of_memory.py",
    "own_code.py",
    "packed_attention.py",
    "pipeline_arguments.py",
    "pipeline_romebert.py",
    "policy_base.py",
    "pretrained.py",
    "rebatching.py",
    "result_format.py",
    "scoring.py",
    "sentence_exits.py",
    "setting_checks.py",
    "settings.py",
    "stored_exits.py",
    "text_batcher.py",
    "text_items.py",
    "token_batcher.py",
    "token_encoder.py",
    "token_exits.py",
    "token_pipeline.py",
    "token_spans.py",
)

# Those that lie beside the config.
OF_CONFIG = ("configuration_romebert.py", "own_code.py", "setting_checks.py", "settings.py")

AUTO_MAP = {
    "AutoConfig": "configuration_romebert.RomeBertConfig",
    "AutoModel": "modeling_romebert.RomeBertModel",
    "AutoModelForSequenceClassification": "modeling_romebert.RomeBertForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_romebert.RomeBertForTokenClassification",
}

CUSTOM_PIPELINES = {
    "early-exit-classification": {
        "impl": "pipeline_romebert.EarlyExitPipeline",
        "pt": ["AutoModelForSequenceClassification"],
        "type": "text",
    }
}
TOKEN_PIPELINES = {
    "early-exit-token-classification": {
        "impl": "token_pipeline.EarlyExitTokenPipeline",
        "pt": ["AutoModelForTokenClassification"],
        "type": "text",
    }
}


def name_code(config: Any) -> None:
    """Let a config name the classes of this package beside those that a user has registered on it."""
    named: dict[str, Any] = getattr(config, "auto_map", None) or {}
    config.auto_map = AUTO_MAP | {
        auto_class: named[auto_class] for auto_class in named if not is_own(named[auto_class])
    }
    tasks = dict(TOKEN_PIPELINES if config.classifies_tokens else CUSTOM_PIPELINES)
    for task, entry in (getattr(config, "custom_pipelines", None) or {}).items():
        if not is_own(entry["impl"]):
            # `pipeline` puts the auto classes themselves where their names were, and JSON has no classes.
            auto_classes = [getattr(one, "__name__", one) for one in _listed(entry.get("pt"))]
            tasks[task] = {**entry, "pt": auto_classes}
    config.custom_pipelines = CustomPipelines(copy.deepcopy(tasks))


def copy_code(config: Any, folder: Path) -> None:
    """Put into a folder the code that a config names: that of this package, and a user's from where the model
    was loaded.

    transformers copies the files of the class that is saved. This is for the others: ours beside a class that
    a user derived, and a user's pipeline beside a model of ours.
    """
    ours, of_config = (Path(str(sys.modules[one].__file__)) for one in (__name__, RomeBertConfig.__module__))
    for name in CLOSURE:
        _copy((of_config if name in OF_CONFIG else ours).with_name(name), folder)
    loaded_from = Path(config.name_or_path)
    for reference in sorted(_references(config)):
        if is_own(reference) or "--" in reference:  # in the repository that it names
            continue
        name = f"{reference.partition('.')[0]}.py"
        source = loaded_from / name
        if source.is_file():
            for file in (source, *map(Path, get_relative_import_files(source))):
                _copy(file, folder)


def check_code(config: Any, folder: Path) -> None:
    """Say so when a file is not in a folder that its config.json names."""
    for reference in sorted(_references(config)):
        name = f"{reference.partition('.')[0]}.py"
        if "--" not in reference and not (folder / name).exists():
            logger.warning(
                f"config.json names {reference}, and there is no {name} in {folder}. Copy it there."
            )


def _references(config: Any) -> set[str]:
    """What `auto_map` and `custom_pipelines` name: `[REPOSITORY--]module.Class`."""
    # Of a tokenizer slow and fast, one of them None.
    named = [one for entry in config.auto_map.values() for one in _listed(entry)]
    return {
        one
        for one in (*named, *(entry["impl"] for entry in config.custom_pipelines.values()))
        if one is not None
    }


def _listed(entry: Any) -> list[Any]:
    """One thing, several or none -> a list of them."""
    return list(entry) if isinstance(entry, (list, tuple)) else [] if entry is None else [entry]


def _copy(file: Path, folder: Path) -> None:
    if file.parent.resolve() != folder.resolve():
        shutil.copyfile(file, folder / file.name)


RECORD = "model_record.json"


def weights_digest(state_dict: Mapping[str, Any]) -> str | None:
    """Names and values of a state dict -> a digest; `None` where values are not at hand (offloaded, or parts
    of sharded weights).

    Values count, not how they are held: fp16 and bf16 are hashed as the fp32 numbers that they are, on
    whatever device. Rounding weights to fewer bits makes other weights of them.

    Example:
        >>> ones = torch.ones(2)
        >>> weights_digest({"w": ones}) == weights_digest({"w": ones.half()})
        True
        >>> weights_digest({"w": ones}) == weights_digest({"w": 2 * ones})
        False
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


def file_beside(name_or_path: str | os.PathLike[str], file: str, **at_hub: Any) -> str | None:
    """A file beside a checkpoint, in a folder or on the Hub, as a local path; `None` where there is none."""
    return cached_file(
        str(name_or_path),
        file,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **at_hub,
    )


def read_record(name_or_path: str | os.PathLike[str], **at_hub: Any) -> dict[str, Any]:
    """The record of a saved model, in a folder or on the Hub; empty where there is none."""
    found = file_beside(name_or_path, RECORD, **at_hub)
    if found is None:
        return {}
    try:
        return json.loads(Path(found).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:  # the weights are sound without it
        logger.warning(
            f"{found} is no JSON ({error}), so what it told of evaluation and training is left out."
        )
        return {}


def write_record(folder: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Write the record into a folder in one step; one that tells nothing is none, and an older one goes."""
    path = Path(folder, RECORD)
    if not record["evaluation"] and not record["training"]:
        path.unlink(missing_ok=True)
        return
    write_whole(path, (json.dumps(record, indent=2, default=str) + "\n").encode())


def told_of(weights: str | None, *records: Mapping[str, Any]) -> dict[str, Any]:
    """What the first record that is of these weights tells. Else of the first, which is of what these were
    made of, what it started from and the rows that it was trained on; others are of other models.
    """
    for record in records:
        if weights is not None and record.get("weights") == weights:
            return dict(record)
    before = (records[0].get("training") or {}) if records else {}
    kept = {name: before[name] for name in ("base_model", "rows_seen") if before.get(name)}
    return {"training": kept} if kept else {}


def write_card_and_record(
    model: Any,
    folder: str | os.PathLike[str],
    state_dict: Mapping[str, Any],
    training: dict[str, Any] | None = None,
) -> None:
    """Write the card and the record of a model that is saved in a folder.

    Args:
        model: a `RomeBertPreTrainedModel`, with what it knows of its evaluation and training.
        state_dict: the weights that are saved.
        training: what to tell of the training; the model's `training_settings` when left out.
    """
    evaluation, training = model.evaluation, training or model.training_settings or {}
    before = (model._record, read_record(folder) if os.path.isdir(folder) else {})
    told_of_weights = evaluation or training or model.config.calibration or any(before)
    weights = weights_digest(state_dict) if told_of_weights else None
    forget_if_of_other_weights(model.config, weights)
    if evaluation is not None and (weights is None or evaluation["weights"] != weights):
        logger.warning_once(
            "What evaluate_exits reported is of other weights than those that are saved, so the model card"
            " leaves it out. Evaluate the weights that you save: after training, merging adapters, or"
            " rounding to another dtype."
        )
        evaluation = None
    told = told_of(weights, *before)
    evaluation = evaluation or told.get("evaluation")
    training = with_base({**(told.get("training") or {}), **training}, model.config)
    write_model_card(folder, model.config, evaluation, training)
    if evaluation is not None:
        # A folder of this machine, perhaps.
        evaluation = {name: value for name, value in evaluation.items() if name != "model"}
    write_record(folder, {"weights": weights, "evaluation": evaluation, "training": public(training)})
