"""Continuous batching by depth: a text joins the next batch that begins, meets others at the layers, and is
answered as soon as it is sure.

    texts -> [ step: the depth that has waited longest -> layers to the next exit -> texts exit ] -> results

The loop over layers is that of bulk scoring (early_exit.py). What is its own here is the order: time counts,
as somebody waits for each text. Requests, limits and queues belong to whoever serves (examples/serve.py).
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..batch_layout import Features
from ..cpu import PREPACKING_TOKENS, keep_freed_memory
from ..early_exit import ActiveBatch, Exited
from ..exit_policies import ExitPolicy
from ..input_checks import vocabulary_size
from ..out_of_memory import is_out_of_memory
from ..rebatching import Scheduler
from ..result_format import ResultFormat, error_at
from ..scoring import BATCH_TOKENS, policy_for
from ..text_batcher import TextBatcher
from ..text_items import refuse_one_text
from .mixed_policy import MixedPolicy

# Tokens of a full batch. On a CPU half of bulk scoring's: a text that comes meanwhile waits for the batch.
SERVING_TOKENS = {**BATCH_TOKENS, "cpu": 1024}


class DepthScheduler(Scheduler):
    """Runs next the depth whose texts have waited longest together: where the sum of their squared waits is
    largest.

    Many texts at a depth fill a batch, and one old text outweighs many new ones; so new texts catch up with
    old ones where that is cheap, and none starves. In a simulation of 6 layers this had the best 95th
    percentile of the rules that were tried (oldest first, deepest or shallowest first, fullest first), and
    saturated where the best did.

    Args:
        begin, batch_tokens, padded: see `Scheduler`.
        clock: seconds.
    """

    def __init__(
        self,
        begin: Callable[[list[int]], ActiveBatch],
        batch_tokens: int,
        padded: bool,
        clock: Callable[[], float],
    ):
        super().__init__((), (), begin, batch_tokens, None, padded)
        self._clock = clock
        self._since: dict[int, float] = {}  # when each row came

    def add(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Rows that begin as soon as their depth is the next, and their tokens."""
        now = self._clock()
        self._since.update((row, self._since.get(row, now)) for row in rows)
        self._texts.extend(zip(rows, lengths, strict=True))

    def schedule(self) -> ActiveBatch | None:
        """The batch that goes on next; `None` when none is left."""
        waiting = self.waiting()
        if not waiting:
            return None
        now = self._clock()
        depth = max(waiting, key=lambda one: sum((now - self._since[row]) ** 2 for row in waiting[one]))
        if depth == 0:
            return self._take_texts()
        count, _ = self._fill(self._lengths_at(depth), self._batch_tokens)
        return self._take(depth, count)

    def waiting(self) -> dict[int, list[int]]:
        """Rows by the layers that they have run."""
        found = {0: [row for row, _ in self._texts]} if self._texts else {}
        for depth, batches in sorted(self._waiting.items()):
            found[depth] = [row for batch in batches for row in batch.rows]
        return found

    def forget(self, rows: Sequence[int]) -> None:
        """Rows that have exited."""
        for row in rows:
            del self._since[row]

    def shrink(self, batch_tokens: int) -> None:
        """Make batches smaller from now on."""
        self._batch_tokens = batch_tokens


class ContinuousBatcher:
    """A classifier for texts that come one by one: add them at any time, and step.

    It belongs to one thread. The weights of the model are not looked at again after this (cpu.py).

    Args:
        model: a `RomeBertForSequenceClassification`, or a bundle of ONNX; it is put in evaluation mode.
        tokenizer: of the model.
        exit_policy: of texts that are added without one; see `score`.
        top_k, function_to_apply: see `score`.
        batch_tokens: tokens that a layer runs on at most at once; 1,024 on a CPU when left out.
        clock: seconds, from any moment on.

    Raises:
        ValueError: a policy or setting without meaning for the model.

    Example:
        >>> batcher = ContinuousBatcher(model, tokenizer)  # doctest: +SKIP
        >>> batcher.add(["A delight.", "Not without charm."])  # doctest: +SKIP
        [0, 1]
        >>> batcher.step()  # one exit further  # doctest: +SKIP
        [(0, {'label': 'positive', 'score': 0.98, 'exit_layer': 1})]
        >>> batcher.add(["Dull."]), len(batcher)  # joins  # doctest: +SKIP
        ([2], 2)
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        exit_policy: ExitPolicy | dict[str, Any] | bool | None = None,
        top_k: int | str | None = "best",
        function_to_apply: str | None = None,
        batch_tokens: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        if batch_tokens is not None and (not isinstance(batch_tokens, int) or batch_tokens < 1):
            raise ValueError(f"batch_tokens={batch_tokens!r}: give a whole number from 1.")
        if model.config.classifies_tokens:
            raise ValueError("model classifies tokens, and continuous batching is of whole texts.")
        self.model, self.tokenizer = model.eval(), tokenizer
        self.policy = self.checked(exit_policy)
        self._as_results = ResultFormat(model.config, function_to_apply, top_k)
        self._encoder = model.encoder(pad_token_id=tokenizer.pad_token_id, for_tokens=PREPACKING_TOKENS)
        self._tokens = batch_tokens or SERVING_TOKENS.get(model.device.type, SERVING_TOKENS["cuda"])
        self._scheduler = DepthScheduler(self._begin, self._tokens, not self._encoder.packs, clock)
        self._texts: dict[int, tuple[Features, ExitPolicy, bool]] = {}  # by ticket; whether it was cut
        self._next_ticket = 0
        if model.device.type == "cpu":
            keep_freed_memory()

    def __len__(self) -> int:
        """Texts that are not answered yet."""
        return len(self._texts)

    def waiting(self) -> dict[int, int]:
        """How many texts have run how many layers."""
        return {depth: len(rows) for depth, rows in self._scheduler.waiting().items()}

    def checked(self, exit_policy: ExitPolicy | dict[str, Any] | bool | None) -> ExitPolicy:
        """What `add` takes as a policy. Texts that share the object are decided together, so keep it.

        Raises:
            ValueError: it has no meaning for the model, or its memory cannot follow rows into other batches.
        """
        policy = policy_for(self.model, exit_policy)
        if not policy.can_rebatch():
            raise ValueError(
                f"exit_policy={policy!r} has no merge, so its rows cannot join others; see"
                " ExitPolicy.can_rebatch."
            )
        return policy

    def add(
        self, texts: Sequence[Any], exit_policy: ExitPolicy | None = None, **tokenizer_settings: Any
    ) -> list[int]:
        """Let texts in, all or none.

        Args:
            texts: strings, or `{"text": ..., "text_pair": ...}`.
            exit_policy: of these texts, as `checked` gave it.
            **tokenizer_settings: truncation and max_length; texts beyond the model's positions are cut unless
                `truncation=False`, and their results say so.

        Returns:
            A ticket for each text, by which `step` names it.

        Raises:
            TypeError: a text is no string, or there is one string in place of a list.
            ValueError: a text does not fit the model.
        """
        refuse_one_text(texts)
        batcher = TextBatcher(
            self.tokenizer, self.model.max_tokens, vocabulary_size(self.model), tokenizer_settings
        )
        window = batcher(0, list(texts))
        if window.errors:
            row = min(window.errors)
            raise error_at(row, window.errors[row]) from window.errors[row]
        tickets = list(range(self._next_ticket, self._next_ticket + window.size))
        self._next_ticket += window.size
        policy = self.policy if exit_policy is None else exit_policy
        for row, features in window.features.items():
            self._texts[tickets[row]] = features, policy, row in window.cut
        self._scheduler.add([tickets[row] for row in window.features], window.lengths)
        return tickets

    @torch.no_grad()
    def step(self) -> list[tuple[int, Any]]:
        """Run one batch to its next exit -> tickets and results of the texts that left, often none.

        A result is that of `score`; `"truncated": True` stands in those of texts that were cut. Where memory
        runs out, the texts of the batch begin anew in smaller ones; a single text that is too large has
        `error` in its result.
        """
        batch = self._scheduler.schedule()
        if batch is None:
            return []
        rows, failure = batch.rows, ""
        exited: Exited | None = None
        try:
            exited = batch.step()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure, batch.rows = str(error), []
        self._scheduler.put_back(batch)
        if failure:
            return self._begin_anew(rows, failure)
        return [] if exited is None else self._answered(exited)

    def _begin(self, rows: list[int]) -> ActiveBatch:
        policies = [self._texts[row][1] for row in rows]
        mixed = MixedPolicy.of(policies, self.model.problem_type, self.model.exit_layers)
        return ActiveBatch(self._encoder, rows, None, mixed, texts=[self._texts[row][0] for row in rows])

    def _answered(self, exited: Exited) -> list[tuple[int, Any]]:
        """Rows that exited -> tickets and results; they are forgotten."""
        layers = torch.full((len(exited.rows),), exited.layer)  # (k,)
        results = self._as_results(torch.as_tensor(exited.logits), layers)
        for row, result in zip(exited.rows, results, strict=True):
            _, _, cut = self._texts.pop(row)
            if cut:
                for one in result if isinstance(result, list) else [result]:
                    one["truncated"] = True
        self._scheduler.forget(exited.rows)
        return list(zip(exited.rows, results, strict=True))

    def _begin_anew(self, rows: list[int], failure: str) -> list[tuple[int, Any]]:
        """Put the rows of a batch that was too large back at the beginning, in smaller ones."""
        lengths = [len(self._texts[row][0]["input_ids"]) for row in rows]
        if len(rows) > 1:
            self._tokens = max(1, sum(lengths) // 2)
            self._scheduler.shrink(self._tokens)
            self._scheduler.add(rows, lengths)
            return []
        del self._texts[rows[0]]
        self._scheduler.forget(rows)
        error = f"there is not enough memory for its {lengths[0]} tokens: {failure}"
        return [(rows[0], {"label": None, "score": None, "exit_layer": None, "error": error})]
