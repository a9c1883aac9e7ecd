"""RomeBertConfig: which backbone, where its exits are, how they pool, and when a row may leave.

Names and validates; it builds nothing. What a policy means is in policies.py, what the loss settings mean in losses.py.
"""

import itertools
import os
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, BertConfig, PreTrainedConfig

# Model types of the encoders that can be a backbone: those with an adapter in backbones.py, which tells how to add one.
FAMILIES = (
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "electra",
    "distilbert",
    "mpnet",
    "deberta-v2",
    "albert",
    "modernbert",
)
VERSION = "0.1.0"  # of this package
EXIT_POOLINGS = ("cls", "mean")
# Settings that the library writes on any model's config, whether or not they say something about it.
WRITTEN_BY_THE_LIBRARY = {"pad_token_id", "bos_token_id", "eos_token_id", "use_cache"}
# Ends this file in a saved model's folder. transformers finds a model's class by that of its config, and tells two folders' configs
# apart by the text of this file and of those that it imports: without this line, two versions of the other files would mix.
NAMES_THE_MODEL = "\nif False:\n    from .modeling_romebert import RomeBertPreTrainedModel  # noqa: F401\n"


class RomeBertConfig(PreTrainedConfig):
    """Configuration of a multi-exit text classifier.

    Args:
        backbone_config: config (or its dict) of any supported encoder. Left out, keyword arguments that belong to
            `BertConfig` (`hidden_size`, `num_hidden_layers`, ...) describe a BERT backbone.
        exit_layers: layers that carry an exit, counted from 1 as the number of layers run, strictly increasing.
            `None` means every layer. The last layer always has an exit and is appended when it is not named.
        exit_pooling: `"cls"`, the first token through a pooler of the exit's own, or `"mean"`, the mean of the attended tokens.
        exit_policy: what `modeling_romebert.make_policy` takes, e.g. `{"name": "entropy", "threshold": 0.2}` or
            `{"name": "entropy", "thresholds": [...]}` with one threshold per exit. Used by the pipeline; written by `calibrate`.
        distillation_weight, distillation_temperature, distillation_reduction, teacher, exit_weights, exit_reduction,
            class_weights: the joint loss that the model returns when it is given labels, see `modeling_romebert.ExitLoss`.
        romebert_version: version of this package that wrote the config; set by `save_pretrained`.
        **kwargs: those of `PreTrainedConfig` (`num_labels`, `id2label`, `problem_type`, ...) and of `BertConfig`.

    Raises:
        ValueError: the backbone is no supported encoder, `exit_layers` or `exit_pooling` is out of range, a backbone argument
            is given twice, or the config was written by a newer major version of this package.

    Example:
        >>> config = RomeBertConfig(num_hidden_layers=4, hidden_size=32, num_attention_heads=4, intermediate_size=64)
        >>> config.exit_layers
        [1, 2, 3, 4]
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
        exit_policy: dict[str, Any] | None = None,
        distillation_weight: float = 0.9,
        distillation_temperature: float = 3.0,
        distillation_reduction: str = "batchmean",
        teacher: str = "last",
        exit_weights: str = "uniform",
        exit_reduction: str = "sum",
        class_weights: list[float] | None = None,
        romebert_version: str = VERSION,
        **kwargs: Any,
    ):
        _check_version(romebert_version)
        for_backbone = {name: kwargs.pop(name) for name in sorted(_own_fields(BertConfig) & kwargs.keys())}
        if backbone_config is None:
            backbone_config = BertConfig(**for_backbone)
        elif misplaced := sorted(for_backbone.keys() - WRITTEN_BY_THE_LIBRARY):
            raise ValueError(
                f"{', '.join(misplaced)}: belongs to the backbone, and backbone_config is given too. Set it on backbone_config."
            )
        else:
            kwargs |= for_backbone
        if isinstance(backbone_config, dict):
            settings = dict(backbone_config)
            model_type = settings.pop("model_type", "bert")
            _check_family(model_type)
            backbone_config = AutoConfig.for_model(model_type, **settings)
        if not isinstance(backbone_config, PreTrainedConfig):
            raise TypeError(f"backbone_config is a {type(backbone_config).__name__}; give a config of transformers or its dict.")
        _check_family(backbone_config.model_type)
        if getattr(backbone_config, "is_decoder", False):
            raise ValueError(
                f"backbone_config is a decoder ({backbone_config.model_type}, is_decoder=True); exits need an encoder that sees the"
                " whole text. Set is_decoder=False."
            )
        if exit_pooling not in EXIT_POOLINGS:
            raise ValueError(f"exit_pooling={exit_pooling!r} is unknown; choose from {', '.join(EXIT_POOLINGS)}.")

        self.backbone_config: PreTrainedConfig = backbone_config
        self.exit_layers = _checked_exit_layers(exit_layers, backbone_config.num_hidden_layers)
        self.exit_pooling = exit_pooling
        self.exit_policy = exit_policy
        self.distillation_weight = distillation_weight
        self.distillation_temperature = distillation_temperature
        self.distillation_reduction = distillation_reduction
        self.teacher = teacher
        self.exit_weights = exit_weights
        self.exit_reduction = exit_reduction
        self.class_weights = class_weights
        self.romebert_version = romebert_version
        # The library hands its own setting, None included, down to the backbone: start from the backbone's.
        kwargs.setdefault("attn_implementation", backbone_config._attn_implementation)
        super().__init__(**kwargs)

    @classmethod
    def from_backbone(cls, backbone: Any, **settings: Any) -> Any:
        """Configuration for exits on an encoder that there is.

        Args:
            backbone: an encoder's config, its dict, a model that has one, or the name or folder of a checkpoint. It stays as it is;
                labels and problem type come along.
            **settings: those of `RomeBertConfig`, and of the encoder's config: each goes to the level that it belongs to.
                For a name also where to find it (`revision`, `cache_dir`, ...).

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

    @property
    def hidden_size(self) -> int:
        return self.backbone_config.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        return self.backbone_config.num_hidden_layers

    @property
    def num_attention_heads(self) -> int:
        return self.backbone_config.num_attention_heads

    @property
    def initializer_range(self) -> float:
        return self.backbone_config.initializer_range

    @property
    def vocab_size(self) -> int:
        return self.backbone_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, size: int) -> None:  # resize_token_embeddings writes it
        self.backbone_config.vocab_size = size

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in `PreTrainedConfig`; beside the code of a model, this file's copy names it."""
        super().save_pretrained(save_directory, *args, **kwargs)
        here, model = (Path(save_directory, f"{name}_romebert.py") for name in ("configuration", "modeling"))
        if model.exists() and not here.read_text(encoding="utf-8").endswith(NAMES_THE_MODEL):
            with open(here, "a", encoding="utf-8") as file:
                file.write(NAMES_THE_MODEL)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in `PreTrainedConfig`; the config of a plain encoder comes back nested as `backbone_config`."""
        config_dict, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return _nest_plain_config(config_dict), unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a config from a dict of ours or of a plain encoder; keyword arguments of either level override it."""
        config_dict = _nest_plain_config(config_dict)
        if not cls.__module__.startswith("transformers_modules."):  # the code that it points to is installed: this one
            for entry in ("auto_map", "custom_pipelines"):
                config_dict.pop(entry, None)
        config_dict.update({name: kwargs.pop(name) for name in _own_fields(cls) & kwargs.keys()})
        backbone = config_dict.get("backbone_config")
        if backbone is None:  # as in __init__, what belongs to BERT describes the backbone
            backbone = {name: config_dict.pop(name) for name in _own_fields(BertConfig) & config_dict.keys()}
        backbone = dict(backbone) if isinstance(backbone, dict) else backbone.to_dict()
        _check_family(model_type := backbone.get("model_type", "bert"))
        for_backbone = _own_fields(CONFIG_MAPPING[model_type]) & kwargs.keys()
        backbone.update({name: kwargs.pop(name) for name in for_backbone})
        return super().from_dict({**config_dict, "backbone_config": backbone}, **kwargs)


def _check_version(written_by: str) -> None:
    """Refuse the config of a newer major version, whose settings this one cannot know."""
    if int(written_by.split(".")[0]) > int(VERSION.split(".")[0]):
        raise ValueError(
            f"romebert_version={written_by!r}: this model was written by a newer major version than the one that is running,"
            f" {VERSION}. Install the newer one: pip install --upgrade romebert."
        )


def _check_family(model_type: str) -> None:
    """Refuse what is no supported encoder, and say what it is."""
    if model_type in FAMILIES:
        return
    problem = "is not supported"
    if model_type in CONFIG_MAPPING:
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

        family = CONFIG_MAPPING[model_type]
        if family().is_encoder_decoder:
            problem = "is an encoder-decoder, and exits need an encoder alone"
        elif family in MODEL_FOR_CAUSAL_LM_MAPPING and family not in MODEL_FOR_MASKED_LM_MAPPING:
            problem = "is a decoder, and exits need an encoder, which sees the whole text"
    raise ValueError(
        f"backbone model_type={model_type!r} {problem}; choose from {', '.join(FAMILIES)}. The docstring of"
        " modeling_romebert/backbones.py tells how to add a family."
    )


def _own_fields(config_class: type[PreTrainedConfig]) -> set[str]:
    """Settings that `config_class` adds to those that every config has, by all of their names."""
    return (vars(config_class()).keys() | config_class.attribute_map.keys()) - vars(PreTrainedConfig()).keys()


def _nest_plain_config(config_dict: dict[str, Any]) -> dict[str, Any]:
    """{"model_type": "bert", ...} -> {"model_type": "romebert", "backbone_config": {...}, labels}; ours are copied as they are."""
    if config_dict.get("model_type", "romebert") == "romebert":
        return dict(config_dict)
    task = {name: config_dict[name] for name in ("id2label", "label2id", "problem_type") if config_dict.get(name) is not None}
    own_entries = ("auto_map", "custom_pipelines", "architectures", *task)
    backbone = {name: value for name, value in config_dict.items() if name not in own_entries}
    return {"model_type": "romebert", "backbone_config": backbone, **task}


def _checked_exit_layers(exit_layers: list[int] | None, num_layers: int) -> list[int]:
    """Layers with an exit, strictly increasing, ending with the last one."""
    if exit_layers is None:
        return list(range(1, num_layers + 1))
    if not isinstance(exit_layers, (list, tuple)):
        raise ValueError(f"exit_layers={exit_layers!r}: give a list of layers, counted from 1, or None for every layer.")
    layers = list(exit_layers)
    if any(isinstance(layer, bool) or not isinstance(layer, int) for layer in layers):
        raise ValueError(f"exit_layers={exit_layers}: layers are whole numbers, counted from 1.")
    if any(not 1 <= layer <= num_layers for layer in layers):
        raise ValueError(f"exit_layers={exit_layers}: layers are counted from 1 to {num_layers}, the depth of this backbone.")
    if any(here >= following for here, following in itertools.pairwise(layers)):
        raise ValueError(f"exit_layers={exit_layers}: give each layer once, in increasing order: {sorted(set(layers))}.")
    return layers if layers and layers[-1] == num_layers else [*layers, num_layers]
