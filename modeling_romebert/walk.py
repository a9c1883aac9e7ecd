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
from torch import Tensor

from .backbones import RunLayer
from .exits import mean_weights
from .layouts import ForExit, Layout, Padded, join, lay_out
from .policies import ExitPolicy


@dataclass
class Left:
    """k rows that left at one exit."""

    rows: Tensor  # (k,) as the caller numbered them
    logits: Tensor  # (k, C)
    depth: int  # layers run


class Walk:
    """b rows that have run the same layers.

    Args:
        model: a `RomeBertForSequenceClassification`.
        rows (b,): numbers by which the caller knows the rows; on the device of the model.
        batch: their tokens, embedded, or after `depth` layers; see layouts.py.
        policy: started, and with the memory of these rows.
        depth: layers run.
    """

    def __init__(self, model: Any, rows: Tensor, batch: Layout, policy: ExitPolicy, depth: int = 0):
        self.model, self.rows, self.batch, self.policy, self.depth = model, rows, batch, policy, depth
        # Looked up once: what is read after a layer comes from cold caches.
        self._adapter, self._backbone, self._layers = model._adapter, model.backbone, model.layers
        self._exits, self._exit_layers = model.exits, model.exit_layers
        self._prepared: tuple[RunLayer, ForExit] | None = None  # made for the present rows when they go on

    def __len__(self) -> int:
        return len(self.rows)

    def advance(self) -> Left | None:
        """Run layers up to the next exit that is asked, and let rows leave there, if any do. At the last exit all leave.

        Waits for the device once, unless it is at the last exit.
        """
        exit_layers = self._exit_layers
        last = len(exit_layers) - 1
        index = next(i for i, layer in enumerate(exit_layers) if layer > self.depth and (i == last or self.policy.asks(i)))
        batch, hidden = self.batch, self.batch.hidden
        run, for_exit = self._prepared = self._prepared or batch.prepare(self.model)
        for number in range(self.depth, exit_layers[index]):
            hidden = run(self._layers[number], hidden)  # as the batch lies
        batch.hidden, self.depth = hidden, exit_layers[index]
        seen = self._adapter.finish(self._backbone, hidden)
        logits = self._exits[str(self.depth)](*for_exit(seen))  # (b, C)
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
        """The rows from `start` to before `stop`, for `merge`. Not of a walk that goes on itself."""
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
        """Leave out all rows but some, as told on the device and on the host."""
        self.rows, self.batch, self._prepared = self.rows[kept], self.batch.select(kept, stay), None


def begin(model: Any, rows: Tensor, inputs: dict[str, Tensor], policy: ExitPolicy) -> Walk:
    """What a tokenizer gives, each (b, t), and the numbers of the rows (b,) -> their walk, before the first layer.

    Without padding where that can be done: for several batches, whose rows will be joined.
    """
    started = policy.start(len(model.exit_layers), model.problem_type, model.exit_layers)
    return Walk(model, rows, lay_out(model, inputs), started)


def classify(
    model: Any, hidden: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, policy: ExitPolicy
) -> tuple[Tensor, Tensor]:
    """A batch, embedded (B, T, H), and a policy that was started -> logits (B, C) of the exit where each row left, depth (B,)."""
    # Of one row the mask is looked at in plain numbers: two operators would take longer than an exit's.
    if len(hidden) == 1 and (attention_mask is None or 0 not in attention_mask.tolist()[0]):
        return _classify_alone(model, hidden, position_ids, policy)
    rows = torch.arange(len(hidden), device=hidden.device)
    walk = Walk(model, rows, Padded(hidden, attention_mask, position_ids), policy)
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
    """Walks at the same depth, or parts of some -> one with the rows of all."""
    first, batch = walks[0], join([walk.batch for walk in walks])
    if batch is first.batch:
        return first
    rows, policy = torch.cat([walk.rows for walk in walks]), first.policy.merge([walk.policy for walk in walks])
    return Walk(first.model, rows, batch, policy, first.depth)
