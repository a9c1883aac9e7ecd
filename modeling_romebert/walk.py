"""The walk with exits, one step at a time: layers up to the next exit that is asked, then rows leave and the others go on.

A step is all there is to early exit; `RomeBertForSequenceClassification` takes steps until a batch is through, the pools of bulk
scoring (pools.py) merge walks between steps. Deciding is left to the policy (policies.py), which goes with its rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .backbones import adapter_for, attended_lengths, embed
from .exits import mean_weights
from .policies import ExitPolicy


@dataclass
class Left:
    """k rows that left at one exit."""

    rows: Tensor  # (k,) as the caller numbered them
    logits: Tensor  # (k, C)
    depth: int  # layers run


class Walk:
    """b rows that have run the same layers, of t tokens, padding included.

    Args:
        model: a `RomeBertForSequenceClassification`.
        rows (b,): numbers by which the caller knows the rows; on the device of the model.
        hidden (b, t, H): embedded, or after `depth` layers.
        attention_mask (b, t): or `None`, where nothing is padded.
        policy: started, and with the memory of these rows.
        depth: layers run.
    """

    def __init__(self, model: Any, rows: Tensor, hidden: Tensor, attention_mask: Tensor | None, policy: ExitPolicy, depth: int = 0):
        self.model, self.rows, self.hidden, self.policy, self.depth = model, rows, hidden, policy, depth
        if attention_mask is not None and bool(attention_mask.all()):  # waits for the device, once per batch
            attention_mask = None
        self.attention_mask = attention_mask
        # (2, b): tokens up to the last attended one, and attended tokens; the same where nothing but padding is masked
        self.sizes = None
        if attention_mask is not None:
            self.sizes = torch.stack([attended_lengths(attention_mask), (attention_mask != 0).sum(dim=1)])
        self._prepare()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def cells(self) -> int:
        """Tokens that a layer runs on, padding included."""
        return self.hidden.shape[0] * self.hidden.shape[1]

    def _prepare(self) -> None:
        """What all layers and exits are given, for the present rows."""
        adapter = adapter_for(self.model.config.backbone_config)
        self._arguments = adapter.layer_arguments(self.model.backbone, self.hidden, self.attention_mask, padded=True)
        mean = self.model.config.exit_pooling == "mean"
        self._weights = mean_weights(self.hidden, self.attention_mask) if mean else None

    def advance(self) -> Left:
        """Run layers up to the next exit that is asked, and let rows leave there. At the last exit all leave.

        Waits for the device once, unless it is at the last exit.
        """
        exit_layers = self.model.config.exit_layers
        last = len(exit_layers) - 1
        index = next(i for i, layer in enumerate(exit_layers) if layer > self.depth and (i == last or self.policy.asks(i)))
        layers = self.model.layers
        for number in range(self.depth, exit_layers[index]):
            self.hidden = layers[number](self.hidden, **self._arguments)  # (b, t, H)
        self.depth = exit_layers[index]
        logits = self.model.exits[str(self.depth)](self.hidden, self._weights)  # (b, C)
        rows = self.rows
        if index == last:
            self.rows = rows[:0]
            return Left(rows, logits, self.depth)
        leave = self.policy.leaves(index, logits)  # (b,)
        told = leave.unsqueeze(0) if self.sizes is None else torch.cat([leave.unsqueeze(0).to(self.sizes.dtype), self.sizes])
        told = told.cpu()  # the one wait; what follows is decided on the host
        goes = told[0].bool()
        gone, stay = goes.nonzero().squeeze(1), (~goes).nonzero().squeeze(1)  # (k,) and (b - k,)
        if len(stay) == len(rows):
            return Left(rows[:0], logits[:0], self.depth)
        if len(stay) == 0:
            self.rows = rows[:0]
            return Left(rows, logits, self.depth)
        left_rows = gone.to(rows.device, non_blocking=True)
        self._keep(stay, told[1:, stay])
        return Left(rows[left_rows], logits[left_rows], self.depth)

    def _keep(self, stay: Tensor, sizes: Tensor) -> None:
        """Go on with some rows (k,), cut to the longest of them; their sizes (2, k). Both are on the host."""
        kept = stay.to(self.rows.device, non_blocking=True)
        self.policy.keep(kept)
        self.rows, self.hidden = self.rows[kept], self.hidden[kept]
        if self.attention_mask is not None and self.sizes is not None:
            longest = int(sizes[0].max())
            self.hidden, self.sizes = self.hidden[:, :longest], self.sizes[:, kept]
            padded = int(sizes[1].min()) < longest
            self.attention_mask = self.attention_mask[kept, :longest] if padded else None
            self.sizes = self.sizes if padded else None
        self._prepare()


def begin(model: Any, rows: Tensor, inputs: dict[str, Tensor], policy: ExitPolicy) -> Walk:
    """What a tokenizer gives, each (b, t), and the numbers of the rows (b,) -> their walk, before the first layer."""
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
    hidden = embed(model.backbone, *(inputs.get(name) for name in names))
    return Walk(
        model,
        rows,
        hidden,
        inputs.get("attention_mask"),
        policy.start(len(model.exits), model.problem_type, model.config.exit_layers),
    )


def merge(walks: Sequence[Walk]) -> Walk:
    """Walks at the same depth -> one with the rows of all, padded to the longest."""
    if len(walks) == 1:
        return walks[0]
    first, longest = walks[0], max(walk.hidden.shape[1] for walk in walks)
    hidden, masks = [], []
    for walk in walks:
        missing = longest - walk.hidden.shape[1]
        mask = walk.hidden.new_ones(walk.hidden.shape[:2], dtype=torch.long) if walk.attention_mask is None else walk.attention_mask
        hidden.append(F.pad(walk.hidden, (0, 0, 0, missing)))
        masks.append(F.pad(mask, (0, missing)))
    policy = first.policy.merge([walk.policy for walk in walks])
    return Walk(first.model, torch.cat([walk.rows for walk in walks]), torch.cat(hidden), torch.cat(masks), policy, first.depth)
