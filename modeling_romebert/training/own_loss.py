"""`compute_loss_func` of a Trainer, exit by exit."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def losses_of_own(
    function: Callable[..., Tensor],
    outputs: Any,
    labels: Tensor,
    exit_layers: Sequence[int],
    num_items_in_batch: Any,
) -> Tensor:
    """(E,): what a user's function says of each exit, of whose logits (B, C) it sees one exit's at a time.

    Args:
        function: `(outputs, labels, num_items_in_batch=...)` -> a loss, as the stock Trainer takes it.
        outputs: of the model, with `exit_logits` (B, E, C).
        labels: (B, ...).
        num_items_in_batch: that the function may divide by.
    """
    of_exits = []
    for logits, layer in zip(outputs.exit_logits.unbind(1), exit_layers, strict=True):
        exit_layer = torch.full_like(outputs.exit_layer, layer)
        seen = type(outputs)(**{**outputs, "logits": logits, "exit_layer": exit_layer})
        of_exits.append(function(seen, labels, num_items_in_batch=num_items_in_batch))
    return torch.stack(of_exits).float()
