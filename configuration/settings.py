"""Settings that the model's files share: problem types, the loss, and values as JSON holds them.

`LossSettings` is the one place of what the loss can be told: the config, the training arguments, the loss
itself (losses.py) and the model card all go by its fields. Needs no transformers, like what decides an exit.
"""

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

__all__ = [
    "LOSS_SETTINGS",
    "LossSettings",
    "ProblemType",
    "loss_settings",
    "plain",
    "scale_of_reduction",
]


class ProblemType(str, Enum):
    """What labels are; equal to the words of `config.problem_type`."""

    SINGLE_LABEL = "single_label_classification"  # one class of C
    MULTI_LABEL = "multi_label_classification"  # each of C classes or not
    REGRESSION = "regression"  # a number

    __str__ = str.__str__


@dataclass
class LossSettings:
    """What the joint loss of the exits can be told: fields of the config and of the training arguments alike.

    Raises:
        ValueError: a choice that does not exist or a number out of range, when `check_choices` is called.
    """

    distillation_weight: float = field(
        default=0.5,
        metadata={"help": "gamma in 0..1: distillation's share of the exits' loss; 0.9 in the paper."},
    )
    distillation_temperature: float = field(
        default=1.0,
        metadata={
            "help": "T above 0, of the distillation, which counts T^2 times; 3 in the paper. Without meaning"
            " for regression."
        },
    )
    distillation_reduction: str = field(
        default="batchmean",
        metadata={
            "help": "batchmean: divide the divergence by the batch (the paper); mean: by the classes too (the"
            " reference code).",
            "choices": ["batchmean", "mean"],
        },
    )
    teacher: str = field(
        default="last",
        metadata={"help": "Which exit teaches each exit before the last.", "choices": ["last", "next"]},
    )
    exit_weights: str = field(
        default="uniform",
        metadata={
            "help": "Weights of the exits before the last, with mean 1.",
            "choices": ["uniform", "depth"],
        },
    )
    exit_scale: float = field(
        default=0.1,
        metadata={
            "help": "Factor above 0 on the sum over the exits before the last: 1 is the paper's sum, and"
            " 1 / (exits - 1) their mean. Less keeps the last exit from being outweighed. Without meaning for"
            " objective deebert, which trains them apart from the last."
        },
    )
    class_weights: Any = None  # one number per class; in training arguments also "balanced"

    def check_choices(self) -> None:
        """Refuse settings that mean nothing."""
        for setting in fields(LossSettings):
            value, choices = getattr(self, setting.name), setting.metadata.get("choices")
            if choices and value not in choices:
                raise ValueError(f"{setting.name}={value!r} is unknown; choose from {', '.join(choices)}.")
        if not 0 <= self.distillation_weight <= 1:
            raise ValueError(
                f"distillation_weight={self.distillation_weight} is not in 0..1 (0 turns distillation off)."
            )
        if not 0 < self.distillation_temperature < float("inf"):
            raise ValueError(
                f"distillation_temperature={self.distillation_temperature} is not above 0 (1 leaves the"
                " logits as they are)."
            )
        if not 0 < self.exit_scale < float("inf"):
            raise ValueError(
                f"exit_scale={self.exit_scale} is not above 0 (1 is the sum over exits, 1 / (exits - 1) their"
                " mean; objective='last' trains the last exit alone)."
            )


LOSS_SETTINGS = tuple(setting.name for setting in fields(LossSettings))


def loss_settings(source: Any) -> dict[str, Any]:
    """The loss settings of a config, of training arguments or of a loss, by name."""
    return {name: getattr(source, name) for name in LOSS_SETTINGS}


def scale_of_reduction(exit_reduction: str, exits: int) -> float:
    """`exit_reduction`, which version 0.1 had in the place of `exit_scale`, of a model with so many exits ->
    `exit_scale`.

    Raises:
        ValueError: it is neither "sum" nor "mean".
    """
    scales = {"sum": 1.0, "mean": 1 / max(exits - 1, 1)}
    if exit_reduction not in scales:
        raise ValueError(
            f"exit_reduction={exit_reduction!r} is unknown; it was 'sum' or 'mean', and is called exit_scale"
            " now: a factor on the sum over the exits before the last. Set exit_scale=1.0 for the sum."
        )
    return scales[exit_reduction]


def plain(value: Any) -> Any:
    """What numpy and torch have for numbers and lists, also within lists and dicts, and a policy -> what JSON
    can hold.
    """
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [plain(one) for one in value]
    for convert in ("tolist", "to_dict"):
        if hasattr(value, convert):
            return getattr(value, convert)()
    return value
