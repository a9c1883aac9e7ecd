"""The early-exit loop: run layers up to the next exit that is evaluated, let sure rows exit, go on with the
others.

This is the only loop over layers. Full depth is the policy under which nobody exits early; a single text is a
batch of one. The layers belong to the model (encoder.py), the tensors to the batch (batch_layout.py), the
decision to the policy (exit_policies.py), and which rows share a batch to the scheduler (rebatching.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .arrays import Array, concat, no_rows, stack, whole_numbers
from .policy_base import ExitPolicy

if TYPE_CHECKING:
    from .batch_layout import Batch, Features


class Encoder(Protocol):
    """What the loop needs of a model. Batches are the encoder's own: nobody else looks inside them."""

    exit_layers: list[int]
    num_labels: int

    def embed_texts(self, texts: Sequence["Features"]) -> "Batch":
        """Tokenised texts, b of them -> their batch before the first layer."""

    def run(self, batch: "Batch", first: int, last: int) -> None:
        """Run layers first + 1 .. last on the rows of a batch, in place."""

    def exit_logits(self, batch: "Batch", layer: int) -> Array:
        """Logits (b, C) of the exit after `layer` for the rows of a batch, which has run so many layers."""


@dataclass
class Exited:
    """k rows that exited after the same layer."""

    rows: list[int]  # as the caller numbered them
    logits: Array  # (k, C)
    layer: int  # layers run


class ActiveBatch:
    """b rows that have run the same layers and have not exited.

    Args:
        encoder: runs layers and exits.
        rows: numbers by which the caller knows the rows, b of them.
        batch: their tokens, embedded, or after `depth` layers; `None`: the first step embeds `texts`.
        policy: started (`ExitPolicy.start`), with what it remembers of these rows; `None`: every exit is
            evaluated and nobody exits before the last.
        depth: layers run.
        texts: tokenised, one for each row.
    """

    def __init__(
        self,
        encoder: Encoder,
        rows: list[int],
        batch: "Batch | None",
        policy: ExitPolicy | None,
        depth: int = 0,
        texts: Sequence["Features"] = (),
    ):
        self.encoder, self.rows, self.policy, self.depth = encoder, rows, policy, depth
        self._batch, self._texts = batch, texts
        # (b, C) of the exit that was evaluated last, of all rows that were there
        self.logits: Array | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def batch(self) -> "Batch":
        """The tokens of the rows, embedded."""
        if self._batch is None:
            self._batch = self.encoder.embed_texts(self._texts)
        return self._batch

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row that layers run on."""
        return self.batch.lengths

    def step(self) -> Exited | None:
        """Run to the next exit that is evaluated -> the rows that exit there, `None` for none. At the last
        exit all do.

        Waits for the device once, unless it is at the last exit or there is no policy.
        """
        exits = self.encoder.exit_layers
        index = self._next_exit()
        self.encoder.run(self.batch, self.depth, exits[index])
        self.depth = exits[index]
        self.logits = self.encoder.exit_logits(self.batch, self.depth)  # (b, C)
        if index == len(exits) - 1:
            return self._all_exit()
        return None if self.policy is None else self._let_exit(index, self.policy)

    def _let_exit(self, index: int, policy: ExitPolicy) -> Exited | None:
        """Ask the policy at exit e = 0, 1, ... -> the rows that exit there, `None` for none."""
        assert self.logits is not None
        # b of them; the one wait for the device
        exiting: list[bool] = policy.leaves(index, self.logits).tolist()
        if all(exiting):
            return self._all_exit()
        if not any(exiting):
            return None
        gone = [row for row, exits_here in enumerate(exiting) if exits_here]
        logits = self.logits[whole_numbers(gone, self.logits)]
        exited = Exited([self.rows[row] for row in gone], logits, self.depth)
        self._keep([row for row, exits_here in enumerate(exiting) if not exits_here])
        return exited

    def split(self, count: int) -> tuple["ActiveBatch", "ActiveBatch"]:
        """The first `count` rows, and the others, as two batches in place of this one."""
        return self._part(range(count)), self._part(range(count, len(self)))

    @classmethod
    def merge(cls, batches: Sequence["ActiveBatch"]) -> "ActiveBatch":
        """Rows of several batches of the same depth -> one batch."""
        first = batches[0]
        if len(batches) == 1:
            first._batch = first.batch.concat([])  # what `split` left is a view
            return first
        rows = [row for batch in batches for row in batch.rows]
        policies = [batch.policy for batch in batches if batch.policy is not None]
        policy = policies[0].merge(policies) if policies else None
        return cls(
            first.encoder,
            rows,
            first.batch.concat([batch.batch for batch in batches[1:]]),
            policy,
            first.depth,
        )

    def _next_exit(self) -> int:
        """Index of the next exit that is evaluated; the last one always is."""
        layers = self.encoder.exit_layers
        for index, layer in enumerate(layers[:-1]):
            if layer > self.depth and (self.policy is None or self.policy.asks(index)):
                return index
        return len(layers) - 1

    def _all_exit(self) -> Exited:
        assert self.logits is not None
        exited = Exited(self.rows, self.logits, self.depth)
        self.rows = []
        return exited

    def _keep(self, kept: list[int]) -> None:
        """Go on with some rows."""
        self.rows = [self.rows[row] for row in kept]
        self._batch = self.batch.select(kept)
        if self.policy is not None:
            self.policy.keep(whole_numbers(kept, self.logits))

    def _part(self, kept: range) -> "ActiveBatch":
        policy = self.policy
        if policy is not None:
            policy = policy.merge([policy])  # a memory of its own
            policy.keep(slice(kept.start, kept.stop))
        return type(self)(
            self.encoder, self.rows[kept.start : kept.stop], self.batch.view(kept), policy, self.depth
        )


def classify(encoder: Encoder, batch: "Batch", policy: ExitPolicy) -> tuple[Array, Array]:
    """Run a batch until every row has exited.

    Args:
        encoder: of the model.
        batch: b rows, embedded.
        policy: started.

    Returns:
        logits (b, C) of the exit where each row exited, and layers run (b,).
    """
    if not len(batch):  # the library's layers do not run on no rows
        return no_rows(encoder.num_labels, batch.hidden), whole_numbers([], batch.hidden)
    exited = run_to_the_end(ActiveBatch(encoder, list(range(len(batch))), batch, policy))
    layers = whole_numbers([one.layer for one in exited for _ in one.rows], exited[0].logits)  # (b,)
    if len(exited) == 1:  # all at once: nothing to put in order
        return exited[0].logits, layers
    rows = whole_numbers([row for one in exited for row in one.rows], exited[0].logits)  # (b,)
    order = rows.argsort()
    return concat([one.logits for one in exited])[order], layers[order]


def run_to_the_end(active: ActiveBatch) -> list[Exited]:
    """Step until every row has exited -> the rows of each step in which some did."""
    found = []
    while len(active):
        exited = active.step()
        if exited is not None:
            found.append(exited)
    return found


def all_exits(encoder: Encoder, batch: "Batch") -> Array:
    """Run every layer and evaluate every exit -> logits (b, E, C). Differentiable: this is what training
    uses.
    """
    # Nobody asks which rows exit: a graph is for any number of them.
    active = ActiveBatch(encoder, [], batch, policy=None)
    logits: list[Array] = []
    for _ in encoder.exit_layers:
        active.step()
        assert active.logits is not None
        logits.append(active.logits)
    return stack(logits, axis=1)
