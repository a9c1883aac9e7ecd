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

from .backbones import RunLayer, adapter_for, attended_lengths, embed
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
        position_ids (b, t) or (1, t): or `None`, where they are as usual.
        policy: started, and with the memory of these rows.
        depth: layers run.
    """

    def __init__(
        self,
        model: Any,
        rows: Tensor,
        hidden: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        policy: ExitPolicy,
        depth: int = 0,
    ):
        self.model, self.rows, self.hidden, self.policy, self.depth = model, rows, hidden, policy, depth
        self._adapter = adapter_for(model.config.backbone_config)
        if attention_mask is not None and attention_mask.device.type == "cpu" and bool(attention_mask.all()):
            attention_mask = None  # nothing is padded; to look is cheap here
        self.attention_mask = attention_mask
        # (2, b), on the host: tokens up to the last attended one, and attended tokens; the same where nothing but padding is masked
        self.sizes: Tensor | None = None
        if attention_mask is not None and len(rows):  # waits for the device, once per batch
            self._note_sizes(torch.stack([attended_lengths(attention_mask), (attention_mask != 0).sum(dim=1)]).cpu())
        self.position_ids = None if position_ids is None else position_ids.expand(len(rows), -1)
        self._run: RunLayer | None = None  # made for the present rows when they go on

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def cells(self) -> int:
        """Tokens that a layer runs on, padding included."""
        return self.hidden.shape[0] * self.hidden.shape[1]

    def _note_sizes(self, sizes: Tensor) -> None:
        """Sizes (2, b) of the present rows; a mask that masks nothing is dropped."""
        padded = int(sizes[1].min()) < self.hidden.shape[1]
        self.attention_mask, self.sizes = (self.attention_mask, sizes) if padded else (None, None)

    def _prepare(self) -> RunLayer:
        """How to run a layer on the present rows, and what their exits pool with."""
        mean = self.model.config.exit_pooling == "mean"
        self._weights = mean_weights(self.hidden, self.attention_mask) if mean else None
        return self._adapter.prepare(self.model.backbone, self.hidden, self.attention_mask, self.position_ids, padded=True)

    def advance(self) -> Left | None:
        """Run layers up to the next exit that is asked, and let rows leave there, if any do. At the last exit all leave.

        Waits for the device once, unless it is at the last exit.
        """
        exit_layers = self.model.config.exit_layers
        last = len(exit_layers) - 1
        index = next(i for i, layer in enumerate(exit_layers) if layer > self.depth and (i == last or self.policy.asks(i)))
        run = self._run = self._run or self._prepare()
        for layer in self.model.layers[self.depth : exit_layers[index]]:
            self.hidden = run(layer, self.hidden)  # (b, t, H)
        self.depth = exit_layers[index]
        seen = self._adapter.finish(self.model.backbone, self.hidden)
        logits = self.model.exits[str(self.depth)](seen, self._weights)  # (b, C)
        rows = self.rows
        if index == last:
            self.rows = rows[:0]
            return Left(rows, logits, self.depth)
        leave = self.policy.leaves(index, logits)  # (b,)
        goes = leave.cpu()  # the one wait; what follows is decided on the host
        gone = goes.nonzero().squeeze(1)  # (k,)
        if len(gone) == 0:
            return None
        if len(gone) == len(rows):
            self.rows = rows[:0]
            return Left(rows, logits, self.depth)
        left_rows = gone.to(rows.device, non_blocking=True)
        self._keep((~goes).nonzero().squeeze(1))
        return Left(rows[left_rows], logits[left_rows], self.depth)

    def _keep(self, stay: Tensor) -> None:
        """Go on with some rows: indices (k,) on the host; cut to the longest of them."""
        kept = stay.to(self.rows.device, non_blocking=True)
        self.policy.keep(kept)
        self.rows = self.rows[kept]
        sizes = None if self.sizes is None else self.sizes[:, stay]
        longest = self.hidden.shape[1] if sizes is None else int(sizes[0].max())
        self.hidden = self.hidden[kept, :longest]
        if self.attention_mask is not None and sizes is not None:
            self.attention_mask = self.attention_mask[kept, :longest]
            self._note_sizes(sizes)
        if self.position_ids is not None:
            self.position_ids = self.position_ids[kept, :longest]
        self._run = None


def begin(model: Any, rows: Tensor, inputs: dict[str, Tensor], policy: ExitPolicy) -> Walk:
    """What a tokenizer gives, each (b, t), and the numbers of the rows (b,) -> their walk, before the first layer."""
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
    hidden = embed(model.backbone, *(inputs.get(name) for name in names))
    started = policy.start(len(model.exits), model.problem_type, model.config.exit_layers)
    return Walk(model, rows, hidden, inputs.get("attention_mask"), inputs.get("position_ids"), started)


def merge(walks: Sequence[Walk]) -> Walk:
    """Walks at the same depth -> one with the rows of all, padded to the longest."""
    if len(walks) == 1:
        return walks[0]
    longest = max(walk.hidden.shape[1] for walk in walks)
    hidden, masks, positions = [], [], []
    for walk in walks:
        missing = longest - walk.hidden.shape[1]
        mask = walk.hidden.new_ones(walk.hidden.shape[:2], dtype=torch.long) if walk.attention_mask is None else walk.attention_mask
        hidden.append(F.pad(walk.hidden, (0, 0, 0, missing)) if missing else walk.hidden)
        masks.append(F.pad(mask, (0, missing)))
        if walk.position_ids is not None:
            positions.append(F.pad(walk.position_ids, (0, missing)))
    first = walks[0]
    return Walk(
        first.model,
        torch.cat([walk.rows for walk in walks]),
        torch.cat(hidden),
        torch.cat(masks),
        torch.cat(positions) if positions else None,
        first.policy.merge([walk.policy for walk in walks]),
        first.depth,
    )
