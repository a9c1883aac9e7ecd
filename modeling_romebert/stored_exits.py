"""The exits that a checkpoint of ours has, against those that a config asks for."""

import copy
from typing import Any

from transformers import PreTrainedModel

from .configuration_romebert import plain
from .policy_base import settings_of_exits


def with_policy_of_exits(config: Any, stored: dict[str, Any]) -> Any:
    """A config that asks for some of the exits of a checkpoint -> one whose policy, if it is the
    checkpoint's, is of these exits.

    Args:
        stored: the checkpoint's own config.
    """
    had, policy = stored.get("exit_layers"), stored.get("exit_policy")
    if not had or not policy or policy != plain(config.exit_policy) or had == config.exit_layers:
        return config
    config = copy.deepcopy(config)
    config.exit_policy = settings_of_exits(policy, had, config.exit_layers)
    return config


def check_exits(model: PreTrainedModel, info: dict[str, Any], name: Any, stored: dict[str, Any]) -> None:
    """Hold the exits that a checkpoint of ours was found to have against those that the config asks for.

    Args:
        stored: the checkpoint's own config.

    Raises:
        ValueError: they pool in another way, are of another task, or some of them are not there.
    """
    of_exits = [key for key in model.state_dict() if key.startswith("exits.")]
    has_exits = bool(set(of_exits) - set(info["missing_keys"]))
    stored_pooling = stored.get("exit_pooling", "cls")
    if has_exits and (stored_pooling == "token") != model.config.classifies_tokens:
        reads, auto_class = "whole texts", "AutoModelForSequenceClassification"
        if stored_pooling == "token":
            reads, auto_class = "tokens", "AutoModelForTokenClassification"
        raise ValueError(
            f"the exits of checkpoint {name} classify {reads}: load it with {auto_class}. For another task"
            " start from its encoder: save AutoModel.from_pretrained(...).backbone, and fine-tune that."
        )

    def has_too(part: str) -> bool:
        """Whether an exit that the model has holds more in the checkpoint; other exits are left behind."""
        prefixes = tuple(f"exits.{layer}.{part}." for layer in getattr(model, "exits", ()))
        return any(key.startswith(prefixes) for key in info["unexpected_keys"])

    if has_too("pooler"):
        raise ValueError(
            f"the exits of checkpoint {name} pool with 'cls', but"
            f" exit_pooling={model.config.exit_pooling!r} is asked for. Leave it out; to change the"
            " pooling, start again from the plain encoder checkpoint and fine-tune."
        )
    if has_too("mix"):
        raise ValueError(
            f"the exits of checkpoint {name} mix layers, but exit_mix={model.config.exit_mix} is asked for."
            " Leave it out; to do without, start again from the plain encoder checkpoint and fine-tune."
        )
    absent = sorted(key for key in info["missing_keys"] if key.startswith("exits."))
    some_are_there = len(absent) < sum(key.startswith("exits.") for key in model.state_dict())
    if absent and (some_are_there or any(key.startswith("exits.") for key in info["unexpected_keys"])):
        raise ValueError(
            f"the checkpoint {name} has no weights for {', '.join(absent)};"
            f" exit_layers={model.config.exit_layers}, exit_pooling={model.config.exit_pooling!r} and"
            f" exit_mix={model.config.exit_mix} ask for them. It has exits after {stored.get('exit_layers')}."
            " Leave them out to load the exits it has, and let num_hidden_layers end at one of these, as the"
            " last layer always has an exit; to change the exits, start again from the plain encoder"
            " checkpoint and fine-tune."
        )
