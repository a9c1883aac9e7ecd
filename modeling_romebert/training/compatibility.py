"""Which models and training arguments go together, asked before a step is taken."""

from typing import Any

from ..configuration_romebert import ProblemType
from .arguments import RomeBertTrainingArguments
from .class_weights import parse_class_weights
from .objectives import EXITS


def check_together(
    model: Any, args: RomeBertTrainingArguments, *, own_optimizer: bool, own_loss: bool
) -> None:
    """Refuse a model and arguments that do not go together, as they are now.

    Args:
        args: whose `exit_reduction`, if it is given, becomes the `exit_scale` for this model's exits.
        own_optimizer: the trainer was given one.
        own_loss: it was given a `compute_loss_func`.

    Raises:
        TypeError: a model without exits.
        ValueError: settings that exclude each other, or have no effect on this model.
    """
    if not hasattr(model, "exits"):
        raise TypeError(f"model is a {type(model).__name__}, which has no exits to train.")
    args.settle_exit_scale(len(model.exits))
    args.check()
    if len(model.exits) == 1 and any(set(cycle) == {EXITS} for cycle in args.training_objective.stages):
        raise ValueError(
            f"objective={args.objective!r} has a stage for the exits before the last, and"
            f" exit_layers={model.config.exit_layers} has none; use objective='last'."
        )
    if args.label_smoothing_factor and model.problem_type in (
        ProblemType.REGRESSION,
        ProblemType.MULTI_LABEL,
    ):
        raise ValueError(
            f"label_smoothing_factor={args.label_smoothing_factor} is given, and only a single label of"
            f" several classes can be smoothed; this is a {model.problem_type}. Leave it out."
        )
    if own_optimizer and args.exit_learning_rate_factor not in (None, 1):
        raise ValueError(
            f"exit_learning_rate_factor={args.exit_learning_rate_factor:g} has no effect on an"
            " optimizer of your own. Give the weights of model.exits a group there with their learning"
            " rate, and leave the factor at 1."
        )
    if own_loss and parse_class_weights(args.class_weights) is not None:
        raise ValueError(
            "class_weights and compute_loss_func are both given; the function can weigh classes itself."
        )
