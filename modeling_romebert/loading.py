"""Checkpoints: what a plain encoder's holds, and whether the exits of one of ours fit the config.

Where the weights go is the model's business (`from_pretrained` in modeling_romebert.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .backbones import adapter_for

logger = logging.get_logger(__name__)

# Where a checkpoint lies: config and weights are both looked up there.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
# Arguments of PreTrainedModel.from_pretrained that a config would take for settings of its own.
MODEL_ARGUMENTS = ("dtype", "torch_dtype", "attn_implementation", "output_loading_info")


def load_plain(name: Any, config: PreTrainedConfig, **kwargs: Any) -> tuple[PreTrainedModel, nn.Linear | None, dict[str, Any]]:
    """The encoder of a plain checkpoint by its own class, its pretrained pooler if it has one, and the loading info."""
    with _quiet_loading():  # heads left behind and a pooler that is not there are in order; see below for what is not
        backbone, info = AutoModel.from_pretrained(name, config=config, output_loading_info=True, **kwargs)
    has_pooler = not any(key.startswith("pooler.") for key in info["missing_keys"])
    if absent := sorted(key for key in info["missing_keys"] if not key.startswith("pooler.")):
        logger.warning(f"{name} has no weights for {', '.join(absent)}; they are newly initialized.")
    return backbone, adapter_for(config).pooler(backbone) if has_pooler else None, info


def check_exits(model: PreTrainedModel, info: dict[str, Any], name: Any) -> None:
    """Hold the exits that a checkpoint of ours was found to have against those that the config asks for.

    Raises:
        ValueError: they pool in another way, or some of them are not there.
    """
    heads = tuple(f"exits.{layer}.pooler." for layer in getattr(model, "exits", ()))
    if any(key.startswith(heads) for key in info["unexpected_keys"]):
        raise ValueError(
            f"the exits of checkpoint {name} pool with 'cls', but exit_pooling={model.config.exit_pooling!r} is asked for."
            " Leave it out; to change the pooling, start again from the plain encoder checkpoint and fine-tune."
        )
    absent = sorted(key for key in info["missing_keys"] if key.startswith("exits."))
    stored = len(absent) < sum(key.startswith("exits.") for key in model.state_dict())
    if absent and (stored or any(key.startswith("exits.") for key in info["unexpected_keys"])):
        raise ValueError(
            f"the checkpoint {name} has no weights for {', '.join(absent)}; exit_layers={model.config.exit_layers} and"
            f" exit_pooling={model.config.exit_pooling!r} ask for them. Leave both out to load the exits it has; to change the"
            " exits, start again from the plain encoder checkpoint and fine-tune."
        )


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Errors only from the library while a backbone is loaded inside our own load."""
    level = logging.get_verbosity()
    logging.set_verbosity(max(level, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(level)
