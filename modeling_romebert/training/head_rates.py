"""A learning rate for the exits' heads: they start from nothing, the encoder from pretraining."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Of new heads beside an encoder that is trained too: at its rate they stay undertrained (docs/study.md).
DEFAULT_FACTOR = 10.0


def check_factor(factor: float | None, deepspeed: bool) -> None:
    """Refuse a factor that means nothing, or that nobody would apply.

    Raises:
        ValueError: it is not above 0 and finite, or is given and not 1 under DeepSpeed.
    """
    if factor is None:
        return
    if not 0 < factor < float("inf"):
        raise ValueError(f"exit_learning_rate_factor={factor} is not above 0 (1 is the learning_rate).")
    if factor != 1 and deepspeed:
        raise ValueError(
            f"exit_learning_rate_factor={factor:g} does not go with deepspeed, which may bring an optimizer"
            " of its own. Use 1, or DDP."
        )


def head_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights of a RomeBERT model's exits that are trained, also within adapters and other wrappers."""
    return [
        weight
        for name, weight in model.named_parameters()
        if "exits" in name.split(".") and weight.requires_grad
    ]


def set_head_rate(
    optimizer: Optimizer, model: nn.Module, asked: float | None, default: float, deepspeed: bool
) -> float:
    """Give a model's heads a rate of their own in an optimizer that the trainer made.

    Args:
        asked: how many times the others' it shall be; `None`: `default`, or 1 where that cannot be set or
            means nothing, which is logged.

    Returns:
        how many times the others' it is.

    Raises:
        ValueError: `asked` cannot be set.
    """
    weights = head_weights(model)
    factor = default if asked is None else asked
    if asked is None and factor != 1 and (why := _obstacle(optimizer, weights, deepspeed)) is not None:
        logger.warning(f"exit_learning_rate_factor is 1 in this training, not {factor:g}: {why}.")
        factor = 1.0
    if factor != 1:
        scale_rate(optimizer, weights, factor)
    return factor


def _obstacle(optimizer: Optimizer, weights: Sequence[nn.Parameter], deepspeed: bool) -> str | None:
    """Why heads learn at the rate that is given for all, where no other was asked for."""
    if deepspeed:
        return "DeepSpeed may bring an optimizer of its own"
    if not _holds(optimizer, weights):
        return f"the exits' weights are not trained, or not held by the {type(optimizer).__name__}"
    if sum(len(group["params"]) for group in optimizer.param_groups) == len(weights):
        return "nothing but the exits is trained, so learning_rate is theirs"
    return None


def _holds(optimizer: Optimizer, weights: Sequence[nn.Parameter]) -> bool:
    """Whether an optimizer moves all of these weights; there are some."""
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    return bool(weights) and held.issuperset(map(id, weights))


def scale_rate(optimizer: Optimizer, weights: Sequence[nn.Parameter], factor: float) -> None:
    """Move weights of an optimizer to groups of their own, whose learning rate is `factor` times as high.

    A schedule that is made afterwards multiplies each group's rate alike.

    Raises:
        ValueError: there are none, or the optimizer does not hold all of them.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 2)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> scale_rate(optimizer, [layer.bias], 10.0)
        >>> [(len(group["params"]), group["lr"]) for group in optimizer.param_groups]
        [(1, 0.1), (1, 1.0)]
    """
    if not _holds(optimizer, weights):
        raise ValueError(
            f"exit_learning_rate_factor={factor:g} does not go with a {type(optimizer).__name__} that does"
            " not hold the weights of the exits themselves, nor with exits that are not trained"
            f" ({len(weights)} weights of exits were found). Use 1, or another optim."
        )
    wanted = {id(weight) for weight in weights}
    moved: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        here = [weight for weight in group["params"] if id(weight) in wanted]
        if here:
            moved.append({**group, "params": here, "lr": factor * group["lr"]})
    for group in optimizer.param_groups:
        group["params"] = [weight for weight in group["params"] if id(weight) not in wanted]
    for group in moved:
        optimizer.add_param_group(group)
