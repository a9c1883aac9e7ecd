"""RomeBertConfig: which backbone, where its exits are, how they pool, and when a row may leave.

Names and validates; it builds nothing. What a policy means is in exit_policies.py, what the loss settings
mean in losses.py.
"""

import copy
import os
from pathlib import Path
from typing import Any

import transformers

if int(transformers.__version__.partition(".")[0]) < 5:  # before anything is imported that is not there
    raise ImportError(
        f"A RomeBERT model needs transformers 5 or newer, and {transformers.__version__} is installed here:"
        " pip install --upgrade transformers."
    )

from transformers import AutoConfig, BertConfig, PreTrainedConfig
from transformers.utils import logging

from .own_code import INSTALLED, CustomPipelines, is_own, leave_to_what_is_installed, name_siblings
from .setting_checks import (
    EXIT_POOLINGS,
    LABELS,
    as_backbone,
    checked_exit_layers,
    checked_labels,
    in_order,
    keep_first_layer_types,
    model_type_of,
    names_match,
    nest_plain_config,
    own_fields,
    read_reduction,
    refuse_contradictions,
    take_misplaced,
    with_labels,
)
from .settings import LOSS_SETTINGS, LossSettings, ProblemType, loss_settings, plain, scale_of_reduction

# What the model's files take from here; settings.py and own_code.py are where it lies.
__all__ = [
    "LOSS_SETTINGS",
    "VERSION",
    "CustomPipelines",
    "LossSettings",
    "ProblemType",
    "RomeBertConfig",
    "is_own",
    "loss_settings",
    "plain",
    "scale_of_reduction",
]

logger = logging.get_logger(__name__)

VERSION = "0.1.0"  # of this package
# Settings that every config has and that the backbone obeys. Like those of its own they live in
# `backbone_config` alone.
OBEYED_BY_THE_BACKBONE = (
    *("dtype", "output_hidden_states", "_output_attentions", "return_dict", "chunk_size_feed_forward"),
    *("per_layer_config", "tie_last_hidden_states", "rope_scaling"),
)


class RomeBertConfig(PreTrainedConfig):
    """Configuration of a multi-exit text classifier.

    A setting of the encoder (`hidden_dropout_prob`, `layer_norm_eps`, `dtype`, `output_hidden_states`, ... by
    any name that its family has for it) lives in `backbone_config`. It may be read and written on either of
    the two configs. Labels, problem type and what is listed below live here.

    Args:
        backbone_config: config (or its dict) of any supported encoder. Left out, keyword arguments that
            belong to `BertConfig` (`hidden_size`, `num_hidden_layers`, ...) describe a BERT backbone.
        exit_layers: layers that carry an exit, counted from 1 as the number of layers run, strictly
            increasing. `None` means every layer. The last layer always has an exit and is appended when it is
            not named. When `num_hidden_layers` is written later, every layer stays every layer, and the last
            exit moves to the new last layer.
        exit_pooling: `"cls"`, the first token through a pooler of the exit's own, or `"mean"`, the mean of
            the attended tokens. A token classifier pools nothing: it writes `"token"` here.
        exit_mix: each exit reads a learned mix of the layers so far (scale times softmax weights) instead of
            the layer that it is after.
        exit_policy: what `modeling_romebert.make_policy` takes, e.g. `{"name": "entropy", "threshold": 0.2}`
            or `{"name": "entropy", "thresholds": [...]}` with one threshold per exit. Used by the pipeline;
            written by `calibrate`.
        calibration: what `calibrate` promised of that policy, on what grounds (`Calibration.to_dict`).
        distillation_weight, distillation_temperature, distillation_reduction, teacher, exit_weights,
        exit_scale,
            class_weights: the joint loss that the model returns when it is given labels, see
                `modeling_romebert.ExitLoss`.
        romebert_version: version of this package that wrote the config; set by `save_pretrained`.
        **kwargs: those of `PreTrainedConfig` (`num_labels`, `id2label`, `problem_type`, ...; left out, the
            labels are those of `backbone_config`) and, without a `backbone_config`, of `BertConfig`.

    Raises:
        ValueError: the backbone is no supported encoder, `exit_layers`, `exit_pooling` or `id2label` is out
            of range, a backbone argument contradicts `backbone_config`, or the config was written by a newer
            major version of this package.

    Example:
        >>> config = RomeBertConfig(num_hidden_layers=4, hidden_size=32, num_attention_heads=4)
        >>> config.exit_layers
        [1, 2, 3, 4]
        >>> config.hidden_dropout_prob = 0.0
        >>> config.backbone_config.hidden_dropout_prob
        0.0
    """

    model_type = "romebert"
    sub_configs = {"backbone_config": AutoConfig}
    _auto_class = "AutoConfig"
    # A stock Trainer gathers `logits` alone; RomeBertTrainer asks for `exit_logits` itself.
    keys_to_ignore_at_inference = ["exit_logits", "exit_layer", "hidden_states", "attentions"]

    def __init__(
        self,
        backbone_config: PreTrainedConfig | dict[str, Any] | None = None,
        exit_layers: list[int] | None = None,
        exit_pooling: str = "cls",
        exit_mix: bool = False,
        exit_policy: dict[str, Any] | None = None,
        calibration: dict[str, Any] | None = None,
        romebert_version: str = VERSION,
        **kwargs: Any,
    ):
        _check_version(romebert_version)
        if backbone_config is None:
            backbone_config = BertConfig(
                **{name: kwargs.pop(name) for name in own_fields(BertConfig) & kwargs.keys()}
            )
        self.backbone_config = backbone = as_backbone(backbone_config)
        refuse_contradictions(backbone, kwargs)
        self.exit_layers = exit_layers
        self.exit_pooling = exit_pooling
        self.exit_mix = exit_mix
        self.exit_policy = exit_policy
        self.calibration = calibration
        if (exit_reduction := kwargs.pop("exit_reduction", None)) is not None:  # of version 0.1
            read_reduction(exit_reduction, len(self.exit_layers), kwargs)
        for name in LOSS_SETTINGS:
            setattr(self, name, kwargs.pop(name, getattr(LossSettings, name)))
        self.romebert_version = romebert_version

        if not any(kwargs.get(name) is not None for name in LABELS):
            kwargs |= {
                "num_labels": backbone.num_labels,
                "id2label": backbone.id2label,
                "label2id": backbone.label2id,
            }
        kwargs.setdefault("problem_type", backbone.problem_type)
        # The library writes its default, which goes down to the backbone, wherever nothing is given: give
        # what the backbone says.
        if "torch_dtype" in kwargs:
            kwargs.setdefault("dtype", kwargs.pop("torch_dtype"))
        for name in (
            "dtype",
            "output_hidden_states",
            "output_attentions",
            "return_dict",
            "chunk_size_feed_forward",
        ):
            kwargs.setdefault(name, getattr(backbone, name))
        kwargs.setdefault("attn_implementation", backbone._attn_implementation)
        super().__init__(**kwargs)

    def __init_subclass__(cls, *args: Any, **kwargs: Any) -> None:
        """A class that a user derives has this constructor unless it brings one: that of the library's
        dataclass builds nothing.
        """
        brings_its_own = "__init__" in cls.__dict__
        super().__init_subclass__(*args, **kwargs)
        if not brings_its_own:
            del cls.__init__

    # ---- one place for each setting

    def __getattr__(self, name: str) -> Any:
        """What this config does not have is looked up in the backbone's."""
        backbone = self.__dict__.get("backbone_config")
        if backbone is not None and not name.startswith("_") and hasattr(backbone, name):
            return getattr(backbone, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """A setting of the backbone is written there; one of this config is checked."""
        if self._lives_in_the_backbone(name):
            setattr(self.backbone_config, name, value)
            if name == "num_hidden_layers":
                keep_first_layer_types(self.backbone_config)
            return
        if name == "backbone_config":
            value = as_backbone(value)
        elif name == "exit_pooling" and value not in EXIT_POOLINGS:
            raise ValueError(f"exit_pooling={value!r} is unknown; choose from {', '.join(EXIT_POOLINGS)}.")
        elif name == "exit_mix" and not isinstance(value, bool):
            raise ValueError(f"exit_mix={value!r}: give True or False.")
        elif name == "id2label" and value is not None:
            value = checked_labels(value)
        super().__setattr__(name, value)
        if name == "id2label" and value is not None and not names_match(value, self.__dict__.get("label2id")):
            self.label2id = {label: index for index, label in value.items()}

    def _lives_in_the_backbone(self, name: str) -> bool:
        backbone = self.__dict__.get("backbone_config")
        if backbone is None or hasattr(type(self), name) or name in self.__dict__:
            return False
        return not name.startswith("_") and hasattr(backbone, name)

    def __copy__(self) -> Any:
        """A copy whose settings, the backbone's included, may be written without changing this config."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__, backbone_config=copy.copy(self.backbone_config))
        return other

    @property
    def _attn_implementation(self) -> str | None:
        return self.backbone_config._attn_implementation

    @_attn_implementation.setter
    def _attn_implementation(self, value: str | dict[str, str] | None) -> None:
        PreTrainedConfig._attn_implementation.fset(self, value)  # hands it down

    @property
    def classifies_tokens(self) -> bool:
        """Whether the exits read every token, as those of a token classifier do."""
        return self.exit_pooling == "token"

    @property
    def exit_layers(self) -> list[int]:
        """Layers with an exit, of the layers that the backbone has now."""
        layers: list[int] = self.__dict__["exit_layers"]
        written_for, depth = layers[-1], self.num_hidden_layers
        if written_for == depth:
            return layers
        if len(layers) == written_for:  # every layer
            return list(range(1, depth + 1))
        return [*(layer for layer in layers[:-1] if layer < depth), depth]

    @exit_layers.setter
    def exit_layers(self, exit_layers: list[int] | None) -> None:
        self.__dict__["exit_layers"] = checked_exit_layers(exit_layers, self.num_hidden_layers)

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """The backbone's config has done so in its own way."""
        return kwargs

    def update(self, config_dict: dict[str, Any]) -> None:
        """As in `PreTrainedConfig`; what others depend on is written first."""
        super().update(in_order(config_dict))

    def validate(self) -> None:
        """As in `PreTrainedConfig`, on both levels; on saving."""
        super().validate()
        if (validate := getattr(self.backbone_config, "validate", None)) is not None:
            validate()

    def to_dict(self) -> dict[str, Any]:
        """As in `PreTrainedConfig`; settings of the backbone are in the dict `backbone_config`, an exit
        policy is its settings.
        """
        return super().to_dict() | {
            "exit_layers": list(self.exit_layers),
            "exit_policy": plain(self.exit_policy),
        }

    @classmethod
    def from_backbone(cls, backbone: Any, **settings: Any) -> Any:
        """Configuration for exits on an encoder that there is.

        Args:
            backbone: an encoder's config, its dict, a model that has one, or the name or folder of a
                checkpoint. It stays as it is; labels and problem type come along.
            **settings: those of `RomeBertConfig`, and of the encoder's config: each goes to the level that it
                belongs to. For a name also where to find it (`revision`, `cache_dir`, ...).

        Raises:
            ValueError: it is no supported encoder; the message lists those that are.

        Example:
            >>> from transformers import DistilBertConfig
            >>> config = RomeBertConfig.from_backbone(DistilBertConfig(n_layers=4), exit_layers=[2])
            >>> config.exit_layers, config.hidden_size
            ([2, 4], 768)
        """
        if isinstance(backbone, (str, os.PathLike)):
            return cls.from_pretrained(backbone, **settings)
        config = getattr(backbone, "config", backbone)
        if isinstance(config, PreTrainedConfig):
            settings.setdefault("attn_implementation", config._attn_implementation)
            config = config.to_dict()
        return cls.from_dict(config, **settings)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in `PreTrainedConfig`; beside the code of a model, this file's copy names it."""
        super().save_pretrained(save_directory, *args, **kwargs)
        name_siblings(Path(save_directory))

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in `PreTrainedConfig`; the config of a plain encoder comes back nested as `backbone_config`."""
        config_dict, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return nest_plain_config(config_dict, cls.model_type), unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a config from a dict of ours or of a plain encoder; keyword arguments of either level
        override it.
        """
        config_dict = nest_plain_config(config_dict, cls.model_type)
        if INSTALLED:
            leave_to_what_is_installed(config_dict)
        config_dict = with_labels(config_dict, {name: kwargs.pop(name) for name in LABELS if name in kwargs})
        config_dict.setdefault("problem_type", None)
        own = own_fields(cls) - {"backbone_config", "exit_layers"} | {"exit_reduction"}
        for_constructor = own & kwargs.keys()
        config_dict |= {name: kwargs.pop(name) for name in for_constructor}
        if (backbone := kwargs.get("backbone_config")) is not None:
            stored = config_dict.setdefault("backbone_config", backbone)
            if model_type_of(backbone, default=model_type_of(stored)) != model_type_of(stored):
                # The library would write it into the stored one.
                kwargs["backbone_config"] = as_backbone(backbone)
        return super().from_dict(config_dict, **in_order(take_misplaced(config_dict) | kwargs))


def _setting_of_the_backbone(name: str) -> property:
    """A setting that `PreTrainedConfig` would keep on both levels, kept in `backbone_config` alone."""

    def read(self: RomeBertConfig) -> Any:
        return getattr(self.backbone_config, name)

    def write(self: RomeBertConfig, value: Any) -> None:
        setattr(self.backbone_config, name, value)

    return property(read, write)


for _name in OBEYED_BY_THE_BACKBONE:
    setattr(RomeBertConfig, _name, _setting_of_the_backbone(_name))


def _check_version(written_by: str) -> None:
    """Refuse the config of a newer major version, whose settings this one cannot know."""
    if int(written_by.split(".")[0]) > int(VERSION.split(".")[0]):
        raise ValueError(
            f"romebert_version={written_by!r}: this model was written by a newer major version than the one"
            f" that is running, {VERSION}. Install the newer one: pip install --upgrade romebert."
        )
