"""The early-exit loop of a token classifier whose tokens halt one after the other (TOKEE, Li et al., arXiv
2105.13878), and the choice between it and that of whole sentences.

As in sentence_exits.py a row has as many answers as tokens. Halted tokens wait, with their answers, for the
last of their row. Which tokens halt is in token_spans.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .arrays import whole_numbers
from .batch_layout import Batch
from .early_exit import ActiveBatch, run_to_the_end
from .policy_base import ExitPolicy
from .sentence_exits import ActiveAnswers, ActiveSentences, ExitedTokens
from .token_spans import halting, rows_of, rows_with


@dataclass
class TokenStates:
    """What is known of the n tokens of b rows, end to end; all but the logits on the host."""

    counts: list[int]  # tokens of each row
    words: Tensor  # (n,): the word of each token, `NO_WORD` for none
    active: Tensor  # (n,) bool: which have not halted
    layer: Tensor  # (n,): layers that each ran before it halted; 0 while it is active
    logits: Tensor | None = None  # (n, C): of the exit where each halted

    @classmethod
    def of(cls, counts: Sequence[int], words: Tensor) -> "TokenStates":
        """Before the first layer."""
        return cls(
            list(counts),
            words,
            torch.ones(len(words), dtype=torch.bool),
            torch.zeros(len(words), dtype=torch.long),
        )

    def answer(self, tokens: Tensor, logits: Tensor, depth: int) -> None:
        """Some tokens (n,) bool halt, with the logits (n, C) of the present exit."""
        where = tokens.to(logits.device)
        if self.logits is None:
            self.logits = torch.zeros_like(logits)
        # A copy: the parts of a split share the old one.
        self.logits = torch.where(where.unsqueeze(1), logits, self.logits)
        self.layer = torch.where(tokens, depth, self.layer)
        self.active = self.active & ~tokens

    def select(self, rows: Sequence[int]) -> "TokenStates":
        """Those of some rows, in the order given."""
        if not isinstance(rows, range):
            of_rows = list(torch.arange(len(self.words)).split(self.counts))
            kept: Any = torch.cat([of_rows[row] for row in rows])
        else:
            before = sum(self.counts[: rows.start])
            kept = slice(before, before + sum(self.counts[rows.start : rows.stop]))
        logits = None if self.logits is None else self.logits[_on(self.logits, kept)]
        return TokenStates(
            [self.counts[row] for row in rows], self.words[kept], self.active[kept], self.layer[kept], logits
        )

    @staticmethod
    def concat(parts: Sequence["TokenStates"]) -> "TokenStates":
        """Those of several batches at the same depth."""
        known = [part.logits for part in parts if part.logits is not None]
        logits = [
            known[0].new_zeros(len(part.words), known[0].shape[1]) if part.logits is None else part.logits
            for part in (parts if known else [])
        ]
        return TokenStates(
            [count for part in parts for count in part.counts],
            torch.cat([part.words for part in parts]),
            torch.cat([part.active for part in parts]),
            torch.cat([part.layer for part in parts]),
            torch.cat(logits) if logits else None,
        )


def _on(like: Tensor, index: Any) -> Any:
    return index.to(like.device) if isinstance(index, Tensor) else index


class ActiveTokens(ActiveAnswers):
    """Rows that have run the same layers, with tokens that have not halted."""

    encoder: Any  # a `TokenEncoder`
    _states: TokenStates | None = None

    @property
    def states(self) -> TokenStates:
        """Of the tokens of the rows."""
        if self._states is None:
            self._states = TokenStates.of(self.batch.attended, self.words)
        return self._states

    @states.setter
    def states(self, states: TokenStates) -> None:
        """Rows or halted tokens have changed: layers run on what is active now."""
        self._states = states
        if self._batch is not None:
            active = None if states.active.all() else states.active.nonzero().squeeze(1)
            self._batch.active, self._batch.run_layer = active, None

    @property
    def lengths(self) -> list[int]:
        if self.batch.active is None or not self.encoder.runs_active_tokens(self.batch):
            return self.batch.lengths
        return torch.bincount(rows_of(self.states.counts)[self.states.active]).tolist()

    def _let_exit(self, index: int, policy: ExitPolicy) -> ExitedTokens | None:
        states, logits = self.states, self._logits_of_tokens()  # (n, C)
        asked = states.active.nonzero().squeeze(1)  # (m,)
        sure = torch.zeros_like(states.active)
        # The one wait for the device.
        sure[asked] = policy.leaves(index, logits[_on(logits, asked)]).cpu()
        halts = halting(sure, states.active, states.words, states.counts, getattr(policy, "window", None))
        if not halts.any():
            return None
        states.answer(halts, logits, self.depth)
        policy.keep(whole_numbers((~halts[asked]).nonzero().squeeze(1).tolist(), logits))
        goes_on = rows_with(states.active, states.counts)  # (b,)
        done = (~goes_on).nonzero().squeeze(1).tolist()
        if len(done) == len(self.rows):
            return self._exited()
        exited = self._exited(done) if done else None
        if done:
            kept = goes_on.nonzero().squeeze(1).tolist()
            self.rows = [self.rows[row] for row in kept]
            self._batch, states = self.batch.select(kept), states.select(kept)
        self.states = states
        return exited

    def _all_exit(self) -> ExitedTokens:
        self.states.answer(self.states.active, self._logits_of_tokens(), self.depth)
        return self._exited()

    def _exited(self, done: list[int] | None = None) -> ExitedTokens:
        """Some rows, all of them when left out, none of whose tokens is active."""
        states, rows = self.states, self.rows
        if done is not None:
            states, rows = states.select(done), [rows[row] for row in done]
        else:
            self.rows = []
        assert states.logits is not None
        return ExitedTokens(rows, states.logits, self.depth, states.counts, states.layer)

    def _part(self, kept: range) -> "ActiveTokens":
        states, policy = self.states, self.policy
        if policy is not None:
            before = int(states.active[: sum(states.counts[: kept.start])].sum())
            stop = int(states.active[: sum(states.counts[: kept.stop])].sum())
            policy = policy.merge([policy])  # a memory of its own
            policy.keep(slice(before, stop))
        part = ActiveTokens(
            self.encoder, self.rows[kept.start : kept.stop], self.batch.view(kept), policy, self.depth
        )
        part.states = states.select(kept)
        return part

    @classmethod
    def merge(cls, batches: Sequence["ActiveBatch"]) -> "ActiveTokens":
        merged = super().merge(batches)
        assert isinstance(merged, ActiveTokens)
        merged.states = TokenStates.concat([batch.states for batch in batches])  # type: ignore[attr-defined]
        return merged


def active_tokens(
    encoder: Any, rows: list[int], batch: Batch | None, policy: ExitPolicy, texts: Sequence[Any] = ()
) -> ActiveAnswers:
    """Rows of a token classifier before the first layer, batched for what a policy lets leave."""
    # A class of a user's own may have no unit.
    kind = ActiveTokens if getattr(policy, "unit", None) == "token" else ActiveSentences
    return kind(encoder, rows, batch, policy, texts=texts)


def classify_tokens(encoder: Any, batch: Batch, policy: ExitPolicy, words: Tensor) -> tuple[Tensor, Tensor]:
    """Run a batch until every token has halted.

    Args:
        encoder: of the model.
        batch: b rows, embedded.
        policy: started.
        words (n,): of each attended token, row after row.

    Returns:
        logits (b, T, C) of the exit where each token halted, and layers run (b, T); zeros where nothing is
        attended.
    """
    shape, places, counts = batch.hidden.shape[:2], batch.places, batch.attended
    logits = batch.hidden.new_zeros(*shape, encoder.num_labels)
    layers = torch.zeros(shape, dtype=torch.long, device=batch.hidden.device)
    if not len(batch):  # the library's layers do not run on no rows
        return logits, layers
    active = active_tokens(encoder, list(range(len(batch))), batch, policy)
    active.given_words = words
    of_rows = places.split(counts)
    for exited in run_to_the_end(active):
        where = torch.cat([of_rows[row] for row in exited.rows])
        logits = logits.flatten(0, 1).index_put((where,), exited.logits.to(logits.dtype)).view(logits.shape)
        layers.view(-1)[where] = exited.layers.to(layers.device)  # type: ignore[attr-defined]
    return logits, layers
