"""What values the settings of a config may have: its backbone, its labels and its exits. Builds nothing."""

import itertools
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils import logging

from .settings import scale_of_reduction

logger = logging.get_logger(__name__)

# Model types of the encoders that can be a backbone: those with an adapter in backbones.py, which tells how
# to add one.
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
EXIT_POOLINGS = ("cls", "mean", "token")
LABELS = ("num_labels", "id2label", "label2id")
# Settings that the library writes on any model's config, whether or not they say something about it.
WRITTEN_BY_THE_LIBRARY = {"pad_token_id", "bos_token_id", "eos_token_id", "use_cache"}


def check_family(model_type: str) -> None:
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


def model_type_of(backbone: PreTrainedConfig | dict[str, Any], default: str = "bert") -> str:
    return backbone.get("model_type", default) if isinstance(backbone, dict) else backbone.model_type


def as_backbone(backbone: Any) -> PreTrainedConfig:
    """The config of a supported encoder, or its dict -> the config."""
    if isinstance(backbone, dict):
        check_family(model_type := model_type_of(backbone))
        backbone = AutoConfig.for_model(
            model_type, **{name: value for name, value in backbone.items() if name != "model_type"}
        )
    if not isinstance(backbone, PreTrainedConfig):
        raise TypeError(
            f"backbone_config is a {type(backbone).__name__}; give a config of transformers or its dict."
        )
    check_family(backbone.model_type)
    if getattr(backbone, "is_decoder", False):
        raise ValueError(
            f"backbone_config is a decoder ({backbone.model_type}, is_decoder=True); exits need an encoder"
            " that sees the whole text. Set is_decoder=False."
        )
    return backbone


def refuse_contradictions(backbone: PreTrainedConfig, given: dict[str, Any]) -> None:
    """Hold keyword arguments of `RomeBertConfig` against its backbone's config, and those about labels
    against each other.
    """
    for name in sorted(own_fields(type(backbone)) & given.keys()):
        if given[name] != getattr(backbone, name):
            raise ValueError(
                f"{name}={given[name]!r} belongs to the backbone, and backbone_config is given too, which"
                f" says {getattr(backbone, name)!r}. Set it on backbone_config alone."
            )
    num_labels, id2label, label2id = (given.get(name) for name in LABELS)
    if id2label is None and label2id:
        id2label = given["id2label"] = {index: label for label, index in label2id.items()}
    if id2label is None:
        return
    id2label = checked_labels(id2label)
    if num_labels is not None and num_labels != len(id2label):
        raise ValueError(
            f"num_labels={num_labels} and id2label={id2label} with {len(id2label)} labels contradict each"
            " other. Give one."
        )
    if label2id and not names_match(id2label, label2id):
        raise ValueError(
            f"id2label={id2label} and label2id={label2id} contradict each other. Give id2label alone."
        )


def checked_labels(id2label: Any) -> dict[int, str]:
    """Names of labels by id, in the order of the ids, which are 0, 1, ..., C - 1."""
    try:
        labels = {int(index): label for index, label in id2label.items()}
    except (AttributeError, TypeError, ValueError):
        labels = {}
    if not labels or len(labels) != len(id2label) or sorted(labels) != list(range(len(labels))):
        example = dict(enumerate(labels.values() or ("negative", "positive")))
        raise ValueError(
            f"id2label={id2label!r}: give a dict from ids to labels, and count the ids from 0 without gaps,"
            f" such as {example}. Labels in data that count otherwise are mapped to these ids first."
        )
    return dict(sorted(labels.items()))


def names_match(id2label: dict[int, str], label2id: dict[str, Any] | None) -> bool:
    """Whether every label's name leads back to its id."""
    return label2id is not None and all(
        str(label2id.get(label)) == str(index) for index, label in id2label.items()
    )


def with_labels(config_dict: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A config's dict with its labels overridden as a whole, if any are given: a number, names by id, or ids
    by name.
    """
    given = {name: value for name, value in given.items() if value is not None}
    stored = {name: value for name, value in config_dict.items() if name in LABELS and value is not None}
    if given and given != {"num_labels": len(stored.get("id2label", ()))}:
        stored = given
    # A dict without labels means the library's two, whatever its backbone's say.
    return {name: value for name, value in config_dict.items() if name not in LABELS} | (
        stored or {"num_labels": 2}
    )


def take_misplaced(config_dict: dict[str, Any]) -> dict[str, Any]:
    """Take out settings of the backbone that stand beside `backbone_config`.

    As they were written last, or by hand, they count.
    """
    backbone = config_dict.get("backbone_config")
    if backbone is None:
        return {}
    check_family(model_type := model_type_of(backbone))
    misplaced = {
        name: config_dict.pop(name) for name in own_fields(CONFIG_MAPPING[model_type]) & config_dict.keys()
    }
    within = backbone if isinstance(backbone, dict) else backbone.to_dict()
    for name in sorted(misplaced.keys() & within.keys() - WRITTEN_BY_THE_LIBRARY):
        if misplaced[name] != within[name]:
            logger.warning(
                f"{name}={misplaced[name]!r} stands beside backbone_config, which says {within[name]!r};"
                " the former counts."
            )
    return misplaced


def in_order(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings in the order in which to write them: the backbone first, then what it holds, then exits at its
    layers.
    """
    return dict(
        sorted(settings.items(), key=lambda item: {"backbone_config": 0, "exit_layers": 2}.get(item[0], 1))
    )


def own_fields(config_class: type[PreTrainedConfig]) -> set[str]:
    """Settings that `config_class` adds to those that every config has, by all of their names."""
    return (vars(config_class()).keys() | config_class.attribute_map.keys()) - vars(PreTrainedConfig()).keys()


def nest_plain_config(config_dict: dict[str, Any], own_type: str) -> dict[str, Any]:
    """{"model_type": "bert", ...} -> {"model_type": "romebert", "backbone_config": {...}, labels}; ours are
    copied as they are.

    own_type: the model type of the config class, which is another one when a user derived it from ours.
    """
    if config_dict.get("model_type", own_type) in (own_type, "romebert"):
        return dict(config_dict)
    labels = "id2label" if config_dict.get("id2label") is not None else "num_labels"
    task = {name: config_dict[name] for name in (labels, "problem_type") if config_dict.get(name) is not None}
    own_entries = ("auto_map", "custom_pipelines", "architectures", "problem_type", *LABELS)
    backbone = {name: value for name, value in config_dict.items() if name not in own_entries}
    return {"model_type": "romebert", "backbone_config": backbone, **task}


def checked_exit_layers(exit_layers: list[int] | None, num_layers: int) -> list[int]:
    """Layers with an exit, strictly increasing, ending with the last one."""
    if exit_layers is None:
        return list(range(1, num_layers + 1))
    if not isinstance(exit_layers, (list, tuple)):
        raise ValueError(
            f"exit_layers={exit_layers!r}: give a list of layers, counted from 1, or None for every layer."
        )
    layers = list(exit_layers)
    if any(isinstance(layer, bool) or not isinstance(layer, int) for layer in layers):
        raise ValueError(f"exit_layers={exit_layers}: layers are whole numbers, counted from 1.")
    if any(not 1 <= layer <= num_layers for layer in layers):
        raise ValueError(
            f"exit_layers={exit_layers}: layers are counted from 1 to {num_layers}, the depth of this"
            " backbone."
        )
    if any(here >= following for here, following in itertools.pairwise(layers)):
        raise ValueError(
            f"exit_layers={exit_layers}: give each layer once, in increasing order: {sorted(set(layers))}."
        )
    return layers if layers and layers[-1] == num_layers else [*layers, num_layers]


def read_reduction(exit_reduction: str, exits: int, kwargs: dict[str, Any]) -> None:
    """`exit_reduction` of version 0.1 -> `exit_scale` in `kwargs`, unless it is there already; says so."""
    scale = scale_of_reduction(exit_reduction, exits)
    counts = kwargs.setdefault("exit_scale", scale)
    logger.warning(
        f"exit_reduction={exit_reduction!r} is called exit_scale={scale:.4g} now (with {exits} exits)"
        + (f"; exit_scale={counts} is given too, and counts." if counts != scale else ".")
    )


def keep_first_layer_types(config: PreTrainedConfig) -> None:
    """Where an encoder's config says of each layer what kind it is, as ModernBERT's does: leave out those of
    layers that it has no longer.
    """
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and len(kinds) > config.num_hidden_layers:
        config.layer_types = kinds[: config.num_hidden_layers]
