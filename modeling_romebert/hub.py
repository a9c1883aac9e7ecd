"""What travels to the Hub with the weights, so that a model loads where only transformers is installed.

A saved folder holds the files of `CLOSURE`, and its config.json points into them. What a user has added, a model, a config or a
pipeline of their own, stays there beside ours. The weights are safetensors.
"""

import copy
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging

from .configuration_romebert import CustomPipelines, RomeBertConfig, is_own

logger = logging.get_logger(__name__)

# Flat siblings that import torch, transformers and each other, and nothing else.
CLOSURE = (
    "backbones.py",
    "batch_layout.py",
    "confidence.py",
    "configuration_romebert.py",
    "early_exit.py",
    "encoder.py",
    "exits.py",
    "hub.py",
    "loading.py",
    "losses.py",
    "model_card.py",
    "modeling_romebert.py",
    "packed_attention.py",
    "pipeline_romebert.py",
    "policies.py",
    "prepacked.py",
    "rebatching.py",
    "records.py",
    "scoring.py",
    "text_batcher.py",
    "workers.py",
)

AUTO_MAP = {
    "AutoConfig": "configuration_romebert.RomeBertConfig",
    "AutoModel": "modeling_romebert.RomeBertModel",
    "AutoModelForSequenceClassification": "modeling_romebert.RomeBertForSequenceClassification",
}

CUSTOM_PIPELINES = {
    "early-exit-classification": {
        "impl": "pipeline_romebert.EarlyExitPipeline",
        "pt": ["AutoModelForSequenceClassification"],
        "type": "text",
    }
}


def name_code(config: Any) -> None:
    """Let a config name the classes of this package beside those that a user has registered on it."""
    named: dict[str, Any] = getattr(config, "auto_map", None) or {}
    config.auto_map = AUTO_MAP | {auto_class: named[auto_class] for auto_class in named if not is_own(named[auto_class])}
    tasks = dict(CUSTOM_PIPELINES)
    for task, entry in (getattr(config, "custom_pipelines", None) or {}).items():
        if not is_own(entry["impl"]):
            # `pipeline` puts the auto classes themselves where their names were, and JSON has no classes.
            auto_classes = [getattr(one, "__name__", one) for one in _listed(entry.get("pt"))]
            tasks[task] = {**entry, "pt": auto_classes}
    config.custom_pipelines = CustomPipelines(copy.deepcopy(tasks))


def copy_code(config: Any, folder: Path) -> None:
    """Put into a folder the code that a config names: that of this package, and a user's from where the model was loaded.

    transformers copies the files of the class that is saved. This is for the others: ours beside a class that a user derived, and a
    user's pipeline beside a model of ours.
    """
    for name in CLOSURE:
        module = sys.modules[RomeBertConfig.__module__] if name == "configuration_romebert.py" else sys.modules[__name__]
        _copy(Path(str(module.__file__)).with_name(name), folder)
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
            logger.warning(f"config.json names {reference}, and there is no {name} in {folder}. Copy it there.")


def _references(config: Any) -> set[str]:
    """What `auto_map` and `custom_pipelines` name: `[REPOSITORY--]module.Class`."""
    named = [one for entry in config.auto_map.values() for one in _listed(entry)]  # of a tokenizer slow and fast, one of them None
    return {one for one in (*named, *(entry["impl"] for entry in config.custom_pipelines.values())) if one is not None}


def _listed(entry: Any) -> list[Any]:
    """One thing, several or none -> a list of them."""
    return list(entry) if isinstance(entry, (list, tuple)) else [] if entry is None else [entry]


def _copy(file: Path, folder: Path) -> None:
    if file.parent.resolve() != folder.resolve():
        shutil.copyfile(file, folder / file.name)


@contextmanager
def safetensors_only(name: Any) -> Iterator[None]:
    """Around a load with `use_safetensors=True`: when there are none, say so, and how to get them from a pickle."""
    try:
        yield
    except OSError as error:
        if "safetensors" not in str(error):
            raise
        raise OSError(
            f"{name} holds no weights as safetensors, and pickled ones (pytorch_model.bin) are not loaded: a pickle can run code."
            " Convert them once, in their folder: weights = torch.load('pytorch_model.bin', weights_only=True);"
            " safetensors.torch.save_file({key: weight.contiguous().clone() for key, weight in weights.items()},"
            " 'model.safetensors', {'format': 'pt'})"
        ) from error
