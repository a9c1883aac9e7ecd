"""The walk with exits, one step at a time: layers up to the next exit that is asked, then rows leave and the others go on.

A step is all there is to early exit; `RomeBertForSequenceClassification` takes steps until a batch is through, the pools of bulk
scoring (pools.py) part and merge walks between steps. Deciding is left to the policy (policies.py), which goes with its rows.
A text that is alone takes a shorter path, as there are no rows to part.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .backbones import RunLayer, attended_lengths, embed
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
        sizes (2, b): on the host: tokens up to the last attended one, and attended tokens, where that is known already.
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
        sizes: Tensor | None = None,
    ):
        self.model, self.rows, self.hidden, self.policy, self.depth = model, rows, hidden, policy, depth
        # Looked up once: for a single text, lookups take as long as an exit.
        self._adapter, self._backbone, self._layers, self._exits = model._adapter, model.backbone, model.layers, model.exits
        self._exit_layers, self._mean = model.exit_layers, model.pools_mean
        self.sizes: Tensor | None = None  # only where something is padded
        if sizes is None and attention_mask is not None and attention_mask.device.type == "cpu" and bool(attention_mask.all()):
            attention_mask = None  # nothing is padded; to look is cheap here
        self.attention_mask = attention_mask
        if attention_mask is not None and len(rows):
            if sizes is None:  # waits for the device, once per batch
                sizes = torch.stack([attended_lengths(attention_mask), (attention_mask != 0).sum(dim=1)]).cpu()
            self._note_sizes(sizes)
        self.position_ids = None if position_ids is None else position_ids.expand(len(rows), -1)
        self._run: RunLayer | None = None  # made for the present rows when they go on

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def cells(self) -> int:
        """Tokens that a layer runs on, padding included."""
        return self.hidden.shape[0] * self.hidden.shape[1]

    def full_mask(self) -> Tensor:
        """(b, t): also where nothing is padded."""
        if self.attention_mask is None:
            return self.hidden.new_ones(self.hidden.shape[:2], dtype=torch.long)
        return self.attention_mask

    def full_sizes(self) -> Tensor:
        """(2, b): also where nothing is padded."""
        rows, tokens = self.hidden.shape[:2]
        return torch.full((2, rows), tokens) if self.sizes is None else self.sizes

    def _note_sizes(self, sizes: Tensor) -> None:
        """Sizes (2, b) of the present rows; a mask that masks nothing is dropped."""
        padded = int(sizes[1].min()) < self.hidden.shape[1]
        self.attention_mask, self.sizes = (self.attention_mask, sizes) if padded else (None, None)

    def _prepare(self) -> RunLayer:
        """How to run a layer on the present rows, and what their exits pool with."""
        self._weights = mean_weights(self.hidden, self.attention_mask) if self._mean else None
        return self._adapter.prepare(self._backbone, self.hidden, self.attention_mask, self.position_ids, padded=True)

    def advance(self) -> Left | None:
        """Run layers up to the next exit that is asked, and let rows leave there, if any do. At the last exit all leave.

        Waits for the device once, unless it is at the last exit.
        """
        exit_layers = self._exit_layers
        last = len(exit_layers) - 1
        index = next(i for i, layer in enumerate(exit_layers) if layer > self.depth and (i == last or self.policy.asks(i)))
        run = self._run = self._run or self._prepare()
        for number in range(self.depth, exit_layers[index]):
            self.hidden = run(self._layers[number], self.hidden)  # (b, t, H)
        self.depth = exit_layers[index]
        seen = self._adapter.finish(self._backbone, self.hidden)
        logits = self._exits[str(self.depth)](seen, self._weights)  # (b, C)
        rows = self.rows
        if index == last:
            self.rows = rows[:0]
            return Left(rows, logits, self.depth)
        goes = self.policy.leaves(index, logits).cpu().tolist()  # of b; the one wait: what follows is decided here
        if not any(goes):
            return None
        if all(goes):
            self.rows = rows[:0]
            return Left(rows, logits, self.depth)
        gone = torch.tensor([row for row, leaves in enumerate(goes) if leaves]).to(rows.device, non_blocking=True)  # (k,)
        self._keep(torch.tensor([row for row, leaves in enumerate(goes) if not leaves]))
        return Left(rows[gone], logits[gone], self.depth)

    def part(self, start: int, stop: int) -> "Walk":
        """The rows from `start` to before `stop`, as a walk of its own. Not for a walk that goes on itself."""
        if stop - start == len(self):
            return self
        part, rows = copy.copy(self), slice(start, stop)
        part.policy = self.policy.merge([self.policy])  # a memory of its own
        part.policy.keep(rows)
        part._narrow(rows, rows)
        return part

    def _keep(self, stay: Tensor) -> None:
        """Go on with some rows: indices (k,) on the host."""
        kept = stay.to(self.rows.device, non_blocking=True)
        self.policy.keep(kept)
        self._narrow(kept, stay)

    def _narrow(self, kept: Tensor | slice, stay: Tensor | slice) -> None:
        """Leave out all rows but some, as told on the device and on the host; cut to the longest of them."""
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
    hidden = embed(model, *(inputs.get(name) for name in names))
    started = policy.start(len(model.exit_layers), model.problem_type, model.exit_layers)
    return Walk(model, rows, hidden, inputs.get("attention_mask"), inputs.get("position_ids"), started)


def classify(
    model: Any, hidden: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, policy: ExitPolicy
) -> tuple[Tensor, Tensor]:
    """A batch, embedded (B, T, H), and a policy that was started -> logits (B, C) of the exit where each row left, depth (B,)."""
    if len(hidden) == 1 and (attention_mask is None or bool(attention_mask.all())):
        return _classify_alone(model, hidden, position_ids, policy)
    rows = torch.arange(len(hidden), device=hidden.device)
    walk = Walk(model, rows, hidden, attention_mask, position_ids, policy)
    logits: Tensor | None = None
    exit_layer = torch.empty_like(rows)
    while len(walk):
        left = walk.advance()
        if left is None:
            continue
        if len(left.rows) == len(rows):
            return left.logits, torch.full_like(rows, left.depth)
        if logits is None:
            logits = left.logits.new_empty(len(rows), left.logits.shape[1])
        logits[left.rows], exit_layer[left.rows] = left.logits, left.depth
    if logits is None:  # there were no rows
        logits = hidden.new_empty(0, model.num_labels)
    return logits, exit_layer


def _classify_alone(model: Any, hidden: Tensor, position_ids: Tensor | None, policy: ExitPolicy) -> tuple[Tensor, Tensor]:
    """`classify` for one row without padding, embedded (1, t, H) -> (1, C) and (1,).

    What `Walk` does to several rows; its bookkeeping would take a single text as long as the exits themselves.
    """
    adapter, backbone, exits, exit_layers = model._adapter, model.backbone, model.exits, model.exit_layers
    run = adapter.prepare(backbone, hidden, None, position_ids)
    weights = mean_weights(hidden, None) if model.pools_mean else None
    layers, last, depth = iter(adapter.layers(backbone)), len(exit_layers) - 1, 0
    for index, exit_layer in enumerate(exit_layers):
        for layer in islice(layers, exit_layer - depth):
            hidden = run(layer, hidden)  # (1, t, H)
        depth = exit_layer
        if index < last and not policy.asks(index):
            continue
        logits = exits[str(depth)](adapter.finish(backbone, hidden), weights)  # (1, C)
        if index == last or policy.leaves_alone(index, logits):
            break
    return logits, torch.full((1,), depth, device=hidden.device)


def merge(walks: Sequence[Walk]) -> Walk:
    """Walks at the same depth -> one with the rows of all, padded to the longest."""
    if len(walks) == 1:
        return walks[0]
    first, longest = walks[0], max(walk.hidden.shape[1] for walk in walks)
    mask = sizes = None
    if any(walk.sizes is not None or walk.hidden.shape[1] < longest for walk in walks):
        mask = torch.cat([_padded(walk.full_mask(), longest) for walk in walks])
        sizes = torch.cat([walk.full_sizes() for walk in walks], dim=1)
    positions = [_padded(walk.position_ids, longest) for walk in walks if walk.position_ids is not None]
    return Walk(
        first.model,
        torch.cat([walk.rows for walk in walks]),
        torch.cat([_padded(walk.hidden, longest) for walk in walks]),
        mask,
        torch.cat(positions) if positions else None,
        first.policy.merge([walk.policy for walk in walks]),
        first.depth,
        sizes,
    )


def _padded(tensor: Tensor, longest: int) -> Tensor:
    """(b, t) or (b, t, H) -> the same with `longest` tokens."""
    missing = longest - tensor.shape[1]
    return F.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, missing)) if missing else tensor
