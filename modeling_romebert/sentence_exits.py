"""The early-exit loop of a token classifier whose texts leave as a whole, once all of their words are sure
(SENTEE, Li et al., arXiv 2105.13878).

The loop itself is `ActiveBatch` (early_exit.py). Here is what differs: a row has as many answers as tokens,
and an exit policy is asked about each of them. Tokens that halt one by one are in token_exits.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .early_exit import ActiveBatch, Exited
from .policy_base import ExitPolicy
from .token_spans import have_a_say, rows_of, rows_with


@dataclass
class ExitedTokens(Exited):
    """k rows whose last tokens exited after the same layer, with the answers to all of their tokens.

    `logits` is (n, C), row after row; `layer` is the deepest.
    """

    counts: list[int]  # tokens of each row
    layers: Tensor  # (n,): layers run, by token

    def per_row(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Row after row: its number, logits (t, C), and layers (t,)."""
        return zip(self.rows, self.logits.split(self.counts), self.layers.split(self.counts), strict=True)


def words_of(texts: Sequence[Any]) -> Tensor:
    """Tokenised texts, with `word_ids` where words are known -> (n,): the word of each token. Without them
    every token is a word.

    Example:
        >>> words_of([{"input_ids": [7, 8]}, {"input_ids": [7, 8, 9], "word_ids": [-1, 0, 0]}]).tolist()
        [0, 1, -1, 0, 0]
    """
    words = [text["word_ids"] if "word_ids" in text else range(len(text["input_ids"])) for text in texts]
    return torch.tensor([word for of_text in words for word in of_text], dtype=torch.long)


class ActiveAnswers(ActiveBatch):
    """b rows of a token classifier, n tokens in all, with as many answers; see `ActiveBatch`."""

    given_words: Tensor | None = None  # (n,): of each token before the first step; of `texts` when left out

    @property
    def words(self) -> Tensor:
        """(n,): the word of each token before the first step."""
        return words_of(self._texts) if self.given_words is None else self.given_words

    def _logits_of_tokens(self) -> Tensor:
        """(n, C): of the exit that was evaluated last; those of halted tokens are of no use."""
        assert self.logits is not None
        return self.batch.end_to_end(self.logits)


class ActiveSentences(ActiveAnswers):
    """Rows that have run the same layers and have not exited, and will as a whole."""

    _say: list[Tensor] | None = None  # of each row, (t,) bool: which of its tokens have a say

    @property
    def say(self) -> list[Tensor]:
        """Of each row, (t,) bool: which of its tokens have a say in whether it leaves."""
        if self._say is None:
            counts = self.batch.attended
            self._say = list(have_a_say(self.words, counts).split(counts))
        return self._say

    def _let_exit(self, index: int, policy: ExitPolicy) -> ExitedTokens | None:
        logits, counts = self._logits_of_tokens(), self.batch.attended  # (n, C)
        sure = policy.leaves(index, logits).cpu()  # (n,); the one wait for the device
        stays = rows_with(torch.cat(self.say) & ~sure, counts)  # (b,)
        if not stays.any():
            return self._all_exit()
        if stays.all():
            return None
        of_those_that_stay = stays[rows_of(counts)]  # (n,)
        gone, kept = (~stays).nonzero().squeeze(1).tolist(), stays.nonzero().squeeze(1).tolist()
        exited = self._exited(gone, logits[_places(~of_those_that_stay, logits)])
        self.rows, self._say = [self.rows[row] for row in kept], [self.say[row] for row in kept]
        self._batch = self.batch.select(kept)
        policy.keep(_places(of_those_that_stay, logits))
        return exited

    def _all_exit(self) -> ExitedTokens:
        exited = self._exited(range(len(self)), self._logits_of_tokens())
        self.rows = []
        return exited

    def _exited(self, gone: Sequence[int], logits: Tensor) -> ExitedTokens:
        attended = self.batch.attended
        counts, rows = [attended[row] for row in gone], [self.rows[row] for row in gone]
        return ExitedTokens(rows, logits, self.depth, counts, torch.full((len(logits),), self.depth))

    def _part(self, kept: range) -> "ActiveSentences":
        policy, attended = self.policy, self.batch.attended
        if policy is not None:
            policy = policy.merge([policy])  # a memory of its own
            policy.keep(slice(sum(attended[: kept.start]), sum(attended[: kept.stop])))
        part = ActiveSentences(
            self.encoder, self.rows[kept.start : kept.stop], self.batch.view(kept), policy, self.depth
        )
        part._say = self.say[kept.start : kept.stop]
        return part

    @classmethod
    def merge(cls, batches: Sequence["ActiveBatch"]) -> "ActiveSentences":
        merged = super().merge(batches)
        assert isinstance(merged, ActiveSentences)
        merged._say = [say for batch in batches for say in batch.say]  # type: ignore[attr-defined]
        return merged


def _places(chosen: Tensor, like: Tensor) -> Tensor:
    """(n,) bool on the host -> places of those that are set, where a tensor is, without waiting for it."""
    return chosen.nonzero().squeeze(1).to(like.device, non_blocking=True)
