"""What a policy does to the tokens of a dataset: the class of every word, and the layers that every token
ran.

Whole rows that leave are replayed on the logits of one pass at full depth. Tokens that halt change the states
of the others, so for them the model runs anew at every threshold, in bulk as it is used (scoring.py).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm
from transformers import DataCollatorWithPadding
from transformers.utils import logging

from ..data.token_rows import TokenRows
from ..exit_policies import ExitPolicy, as_policy
from ..input_checks import check_token_ids
from ..losses import IGNORED_LABEL
from ..pretrained import forward_of, inner_model
from ..scoring import Scorer
from ..text_batcher import Window
from ..token_spans import have_a_say, rows_of, rows_with

Ints = NDArray[np.int64]


class Outcome(NamedTuple):
    """What became of n words and of all tokens of N rows."""

    answers: Ints  # (n,): the class of each word
    layers: Ints  # (tokens,): layers that each token ran


class TokenOutcomes:
    """The rows of a dataset, their words at full depth, and what policies make of them.

    Args:
        model: a `RomeBertForTokenClassification`; it is put in evaluation mode.
        rows: see `read_token_rows`.
        tokenizer: pads.

    Attributes:
        exit_logits (n, E, C): of every word, by its first piece, at every exit.
        labels (n,): of every word, -100 where it has none; `None` where rows have none.
        words: words of each row, n in all. counts: tokens of each row.
    """

    def __init__(
        self, model: Any, rows: TokenRows, tokenizer: Any, batch_size: int = 64, progress: bool = True
    ):
        self.model, self.inputs, self.pad_token_id = inner_model(model), rows.inputs, tokenizer.pad_token_id
        self.progress = progress
        self._first_pieces = [_first_pieces(one["word_ids"]) for one in rows.inputs]
        self.words = [len(places) for places in self._first_pieces]
        self.counts = [len(one["input_ids"]) for one in rows.inputs]
        self.row_of = np.repeat(np.arange(len(rows.inputs)), self.words)  # (n,): the row of each word
        self.labels: Ints | None = None
        if rows.labels is not None:
            chosen = [
                np.asarray(of_row)[at] for of_row, at in zip(rows.labels, self._first_pieces, strict=True)
            ]
            self.labels = np.concatenate(chosen)
        self.exit_logits = self._run_every_exit(model, tokenizer, batch_size)
        self.full_depth: Ints = self.exit_logits[:, -1].argmax(dim=-1).numpy()

    @torch.no_grad()
    def _run_every_exit(self, model: Any, tokenizer: Any, batch_size: int) -> Tensor:
        """-> (n, E, C), fp32, on the CPU"""
        model.eval()
        forward, collate = forward_of(model), DataCollatorWithPadding(tokenizer)
        order = sorted(range(len(self.inputs)), key=lambda row: self.counts[row])  # little padding
        found: list[Tensor] = [torch.empty(0)] * len(order)
        for start in tqdm(
            range(0, len(order), batch_size), desc="evaluating exits", disable=not self.progress
        ):
            rows = order[start : start + batch_size]
            features = [
                {name: value for name, value in self.inputs[row].items() if name != "word_ids"}
                for row in rows
            ]
            batch = collate(features)
            check_token_ids(self.model, batch["input_ids"])  # while they are on the host
            logits = forward(**batch.to(self.model.device)).exit_logits.float().cpu()  # (b, E, T, C)
            # Where the tokens of each row begin: padding may be on the left.
            first = batch["attention_mask"].cpu().argmax(dim=1).tolist()
            for row, of_row, offset in zip(rows, logits, first, strict=True):
                places = torch.as_tensor(self._first_pieces[row]) + offset
                found[row] = of_row[:, places].transpose(0, 1)  # (words, E, C)
        return torch.cat(found)

    def at(self, policy: dict[str, Any], threshold: float | Sequence[float]) -> Outcome:
        """What a policy does with a threshold, given by its settings without one."""
        rule = as_policy(policy, threshold)
        return self._run(rule) if rule.unit == "token" else self._replay(rule)

    def cost(self, outcome: Outcome) -> float:
        """Layers that tokens ran / layers * tokens."""
        return float(outcome.layers.mean() / self.model.exit_layers[-1])

    def shares(self, outcome: Outcome) -> list[float]:
        """Of all tokens, those that left at each exit."""
        return [float((outcome.layers == layer).mean()) for layer in self.model.exit_layers]

    def _replay(self, policy: ExitPolicy) -> Outcome:
        left_at = replay_rows(
            policy, self.exit_logits, self.words, self.model.problem_type, self.model.exit_layers
        )  # (N,)
        at_exit = torch.as_tensor(np.repeat(left_at, self.words))
        logits = self.exit_logits[torch.arange(len(at_exit)), at_exit]  # (n, C)
        layers = np.asarray(self.model.exit_layers)[left_at]
        return Outcome(logits.argmax(dim=-1).numpy(), np.repeat(layers, self.counts))

    def _run(self, policy: ExitPolicy) -> Outcome:
        order = sorted(range(len(self.inputs)), key=lambda row: -self.counts[row])
        window = Window(0, len(order), features={row: self.inputs[row] for row in order})
        scorer = Scorer(self.model, self.pad_token_id, policy, None, None, None, skips=False)
        answers: list[Ints] = [np.empty(0, dtype=np.int64)] * len(order)
        layers: list[Ints] = list(answers)
        for exited in scorer.exited(window, logging.EmptyTqdm()):
            for row, logits, ran in exited.per_row():  # type: ignore[attr-defined]
                answers[row] = logits[self._first_pieces[row]].argmax(dim=-1).cpu().numpy()
                layers[row] = ran.numpy()
        return Outcome(np.concatenate(answers), np.concatenate(layers))


def _first_pieces(words: Sequence[int]) -> Ints:
    """Words of a row's tokens -> places of the first piece of each."""
    say = have_a_say(torch.as_tensor(words, dtype=torch.long), [len(words)])
    return say.nonzero().squeeze(1).numpy()


def replay_rows(
    policy: ExitPolicy,
    exit_logits: Tensor,
    words: Sequence[int],
    problem_type: str,
    exit_layers: Sequence[int],
) -> Ints:
    """exit_logits (n, E, C) of all words, and words of each of N rows -> (N,): index of the exit where each
    row leaves, once all of its words are sure.

    Example:
        >>> sure, unsure = [9.0, 0.0], [0.0, 0.0]
        >>> logits = torch.tensor([[sure, sure, sure], [unsure, sure, sure], [sure, sure, sure]])
        >>> policy = as_policy({"name": "entropy", "threshold": 0.5})
        >>> replay_rows(policy, logits, [2, 1], "single_label_classification", [1, 2, 3]).tolist()
        [1, 0]
    """
    exits = exit_logits.shape[1]
    started = policy.start(exits, problem_type, exit_layers)
    # A row without words has nobody to wait for.
    left_at = torch.full((len(words),), exits - 1)
    asked = [index for index in range(exits - 1) if started.asks(index)]
    row_of = rows_of(words)
    empty = torch.tensor(words) == 0
    if asked:
        left_at[empty] = asked[0]
    going = torch.ones(len(exit_logits), dtype=torch.bool)
    for index in asked:
        here = going.nonzero().squeeze(1)
        if not len(here):
            break
        unsure = torch.zeros(len(exit_logits), dtype=torch.bool)
        unsure[here] = ~started.leaves(index, exit_logits[here, index])
        stays = rows_with(unsure, words)[row_of]
        left_at[row_of[going & ~stays]] = index
        started.keep(stays[here].nonzero().squeeze(1))
        going = going & stays
    return left_at.numpy()


def labelled(outcomes: TokenOutcomes) -> NDArray[np.bool_]:
    """(n,): which words have a label."""
    assert outcomes.labels is not None
    return np.asarray(outcomes.labels != IGNORED_LABEL)
