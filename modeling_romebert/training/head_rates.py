"""A learning rate for the exits' heads: they start from nothing, the encoder from pretraining."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer


def head_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights of a RomeBERT model's exits that are trained, also within adapters and other wrappers."""
    return [
        weight
        for name, weight in model.named_parameters()
        if "exits" in name.split(".") and weight.requires_grad
    ]


def scale_rate(optimizer: Optimizer, weights: Iterable[nn.Parameter], factor: float) -> None:
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
    wanted = {id(weight) for weight in weights}
    moved: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        here = [weight for weight in group["params"] if id(weight) in wanted]
        if here:
            moved.append({**group, "params": here, "lr": factor * group["lr"]})
    if not wanted or sum(len(group["params"]) for group in moved) < len(wanted):
        raise ValueError(
            f"exit_learning_rate_factor={factor:g} does not go with a {type(optimizer).__name__} that does"
            " not hold the weights of the exits themselves, nor with exits that are not trained"
            f" ({len(wanted)} weights of exits were found). Use 1, or another optim."
        )
    for group in optimizer.param_groups:
        group["params"] = [weight for weight in group["params"] if id(weight) not in wanted]
    for group in moved:
        optimizer.add_param_group(group)
