"""Bulk scoring: many texts -> label, score and exit layer of each, in order, with little padding and constant
memory.

    texts -> windows -> [thread: tokenise, sort by length] -> batches that run exit by exit -> results

While one window runs, a thread tokenises the next; a window's results come in the order of its texts. The
caller's thread reads the texts, so they may come from anything that belongs to it.
"""

from collections.abc import Iterable, Iterator
from io import IOBase
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers.pipelines.text_classification import ClassificationFunction
from transformers.utils import logging

from .certificate import say_if_precision_differs
from .cpu import keep_freed_memory, open_workers, take_number_of_threads
from .early_exit import ActiveBatch, Exited, run_to_the_end
from .exit_policies import ExitPolicy, FullDepth, as_policy
from .input_checks import vocabulary_size
from .monitor import ExitMonitor, as_monitor, exit_indices
from .out_of_memory import OutOfMemory, or_out_of_memory
from .policy_base import check_unit
from .rebatching import Scheduler, batches_of
from .result_format import ResultFormat, error_at
from .text_batcher import Results, TextBatcher, Window, in_windows
from .text_items import refuse_one_text

logger = logging.get_logger(__name__)

WINDOW = 4096
# Tokens of a full batch. On a CPU half as many take 5 to 9 % more time, twice as many no less; that of a GPU
# is a guess.
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
# Files whose lines are more than a text each.
TABLES = (".csv", ".tsv", ".json", ".jsonl")
# Devices on which rebatching was measured to pay.
REBATCHING_PAYS = ("cpu",)


def score(
    model: Any,
    tokenizer: Any,
    texts: Iterable[Any],
    *,
    exit_policy: ExitPolicy | dict[str, Any] | bool | None = None,
    top_k: int | str | None = "best",
    function_to_apply: str | ClassificationFunction | None = None,
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    window: int = WINDOW,
    on_error: str = "raise",
    progress: bool = False,
    rebatching: bool | None = None,
    monitor: ExitMonitor | float | None = None,
    **tokenizer_settings: Any,
) -> "Results":
    """Classify many texts, each as deep as it needs. What the pipeline does with lists, datasets and
    generators.

    Texts are read in windows, sorted by length within each, and cut into batches of equal size in tokens; the
    results do not depend on that. On a CPU, windows of many tokens are run several batches at once, in
    threads (cpu.py). Where texts do not fit the model they are cut, and a warning at the end tells how
    many were.

    Args:
        model: a `RomeBertForSequenceClassification`; it is put in evaluation mode.
        tokenizer: of the model.
        texts: strings, or `{"text": ..., "text_pair": ...}`; any iterable. It is read in the thread that
            reads the results.
        exit_policy: a policy or its settings; that of the config when left out; `False` runs every layer.
        top_k: `"best"` gives one dict per text, a number a list of so many dicts, `None` a list with every
            label.
        function_to_apply: "sigmoid", "softmax" or "none"; by problem type when left out, as in the stock
            pipeline.
        batch_tokens: tokens that a layer runs on at once, padding included. 2,048 on a CPU when left out.
        batch_size: texts that a layer runs on at most at once; any number when left out. 1 classifies texts
            one by one, each before the next is read.
        window: texts that are sorted together; results come window by window, and the next one is read
            before. Of texts without a length, such as those of a generator, the first windows are smaller. 1
            is as `batch_size=1`.
        on_error: `"raise"` names the position of the text; `"skip"` gives for a text that cannot be
            classified a result whose label, score and exit layer are `None`, with the reason as `error`, and
            goes on. Faults that are not of one text, such as a model that does not run, are raised as they
            are.
        progress: show a progress bar.
        rebatching: let survivors of several batches at the same depth share one (rebatching.py). Left out, it
            is done on a CPU, where it was measured to pay; on a GPU nobody has measured it yet.
        monitor: share of the texts to run to full depth as well, to see whether what was promised at
            calibration still holds, or an `ExitMonitor`. Results stay what they are.
        **tokenizer_settings: truncation, max_length and what else the tokenizer takes; those for padding have
            no effect.

    Where memory runs out, batches are made half as large, and a warning says so.

    Returns:
        An iterator over one result per text, in order: `{"label", "score", "exit_layer"}`. It has a length
            where `texts` has one.

    Raises:
        ValueError: a setting or a policy without meaning for the model, or a text that does not fit it.
        TypeError: a text that is not a string.

    Example:
        >>> list(score(model=None, tokenizer=None, texts=[], on_error="ignore"))
        Traceback (most recent call last):
        ValueError: on_error='ignore' is unknown; choose from raise, skip.
        >>> texts = ["A delight.", "Dull."]
        >>> for result in score(model, tokenizer, texts, batch_tokens=4096):  # doctest: +SKIP
        ...     print(result["label"], result["exit_layer"])
    """
    check_bulk_settings(on_error, batch_tokens=batch_tokens, batch_size=batch_size, window=window)
    if model.config.classifies_tokens:
        raise ValueError("model classifies tokens: call modeling_romebert.score_tokens instead.")
    refuse_one_text(texts)
    file_name = str(getattr(texts, "name", "")) if isinstance(texts, IOBase) else ""
    if file_name.lower().endswith(TABLES):
        raise ValueError(
            f"texts is the open file {file_name}: its lines are rows, with a header or labels, not texts."
            " Give its column of texts, as in (row['text'] for row in csv.DictReader(file)), or with"
            " datasets.load_dataset."
        )
    window = 1 if batch_size == 1 else window
    policy = policy_for(model, exit_policy)
    watch = as_monitor(monitor, model.config)
    if watch is not None and not watch.watches(policy):
        watch = None
    as_results = ResultFormat(model.config, function_to_apply, top_k)
    limits, skips = (batch_tokens, batch_size), on_error == "skip"
    scorer = Scorer(model, tokenizer.pad_token_id, policy, *limits, rebatching, skips)
    full_depth = Scorer(model, tokenizer.pad_token_id, FullDepth(), *limits, False, skips)
    batcher = TextBatcher(tokenizer, model.max_tokens, vocabulary_size(model), tokenizer_settings)

    def of_window(here: Window, bar: Any) -> Iterator[Any]:
        logits, exit_layer = scorer(here, bar)
        if watch is not None:
            _compare_some(watch, here, logits, exit_layer, full_depth)
        yield from as_results.of_window(here, logits, exit_layer)

    return in_windows(texts, batcher, of_window, window, progress, "classifying")


def check_bulk_settings(on_error: str, **numbers: int | None) -> None:
    """Refuse settings of bulk scoring that mean nothing: `numbers` are `None` or whole numbers from 1."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r} is unknown; choose from raise, skip.")
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}={value!r}: give a whole number from 1.")


def _compare_some(
    monitor: ExitMonitor, window: Window, logits: Tensor, exit_layer: Tensor, full_depth: "Scorer"
) -> None:
    """Of a classified window: tell a monitor where rows left, and for some the answers at full depth.

    Args:
        logits, exit_layer: (N, C) and (N,) of the window's rows.
    """
    rows = sorted(window.features.keys() - window.errors.keys())
    monitor.count_exits(exit_indices(exit_layer[rows], full_depth.model.exit_layers))
    chosen = [rows[index] for index in monitor.choose(len(rows))]
    if chosen:
        deep, _ = full_depth(window, logging.EmptyTqdm(), chosen)
        chosen = [row for row in chosen if row not in window.errors]
        monitor.compare(logits[chosen], deep[chosen], full_depth.model.problem_type)
    monitor.speak()


def policy_for(model: Any, exit_policy: Any) -> ExitPolicy:
    """What a caller asks for -> the policy, the config's when nothing is asked for; that of full depth for
    `False`.

    Raises:
        ValueError: it has no meaning for the model.
    """
    if exit_policy is None:
        exit_policy = model.config.exit_policy
        if exit_policy is None:
            logger.warning_once(
                "The model has no calibrated exit policy, so every text runs every layer. Call"
                " modeling_romebert.calibrate and save the model, or pass exit_threshold."
            )
        else:
            say_if_precision_differs(model)
    policy = FullDepth() if exit_policy is None or exit_policy is False else as_policy(exit_policy)
    check_unit(policy, model.config.classifies_tokens)
    # Or it would fail for every text.
    policy.start(len(model.exit_layers), model.problem_type, model.exit_layers)
    return policy


class Scorer:
    """A tokenised window -> logits and exit layers of its rows. Holds what is the same for all windows; for
    the arguments see `score`.
    """

    def __init__(
        self,
        model: Any,
        pad_token_id: int | None,
        policy: ExitPolicy,
        batch_tokens: int | None,
        batch_rows: int | None,
        rebatching: bool | None,
        skips: bool,
    ):
        self.model, self.pad_token_id, self.policy = model, pad_token_id, policy
        device = model.device.type
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(device, BATCH_TOKENS["cuda"])
        self.batch_rows, self.skips = batch_rows, skips
        if rebatching is None:
            rebatching = device in REBATCHING_PAYS
        # Only an `ExitPolicy` can say that it may be rebatched.
        self.rebatching = rebatching and hasattr(policy, "can_rebatch") and policy.can_rebatch()

    def __call__(self, window: Window, bar: Any, rows: Iterable[int] | None = None) -> tuple[Tensor, Tensor]:
        """-> logits (N, C) and exit_layer (N,), zeros for the rows with an error and those not among `rows`.

        Raises:
            TypeError, ValueError: what is wrong with a text, unless such texts are skipped.
        """
        logits = torch.zeros(window.size, self.model.num_labels)
        exit_layer = torch.zeros(window.size, dtype=torch.long)
        for exited in self.exited(window, bar, rows):
            logits[exited.rows] = torch.as_tensor(exited.logits).float().cpu()
            exit_layer[exited.rows] = exited.layer
        return logits, exit_layer

    def exited(self, window: Window, bar: Any, rows: Iterable[int] | None = None) -> Iterator[Exited]:
        """As calling it: the rows of each step in which some exited."""
        take_number_of_threads()
        bar.update(len(window.errors))
        self._raise_unless_skipped(window)
        left = dict(zip(window.features, window.lengths, strict=True))  # rows to classify, and their tokens
        if rows is not None:
            left = {row: left[row] for row in rows}
        while left:
            try:
                for exited in self._run(window, left):
                    for row in exited.rows:
                        del left[row]
                    yield exited
                    bar.update(len(exited.rows))
            except OutOfMemory as error:
                self._shrink(error, window, left)

    def _raise_unless_skipped(self, window: Window) -> None:
        if window.errors and not self.skips:
            row = min(window.errors)
            raise error_at(window.position(row), window.errors[row]) from window.errors[row]

    def _shrink(self, error: OutOfMemory, window: Window, left: dict[int, int]) -> None:
        """Halve the batches after one was too large; a row too large alone is an error of that row."""
        if len(error.rows) == 1:
            (row,) = error.rows
            window.errors[row] = MemoryError(
                f"there is not enough memory for its {left.pop(row)} tokens: {error}"
            )
            self._raise_unless_skipped(window)
            return
        tokens = sum(left[row] for row in error.rows)
        self.batch_tokens = max(1, tokens // 2)
        logger.warning(
            f"There was not enough memory for a batch of {len(error.rows)} texts with {tokens} tokens."
            f" Batches hold {self.batch_tokens} tokens from now on; batch_tokens={self.batch_tokens} starts"
            " with that."
        )

    @torch.no_grad()
    def _run(self, window: Window, left: dict[int, int]) -> Iterator[Exited]:
        """Classify rows, given with their tokens: the rows of each step in which some exited."""
        self.model.eval()
        if self.model.device.type == "cpu" and window.size > 1:
            keep_freed_memory()
        rows, lengths = list(left), list(left.values())
        encoder = self.model.encoder(pad_token_id=self.pad_token_id, for_tokens=sum(lengths))
        limits = (self.batch_tokens, self.batch_rows, not encoder.packs)

        def begin(of_batch: list[int]) -> ActiveBatch:
            model = self.model
            policy = self.policy.start(len(model.exit_layers), model.problem_type, model.exit_layers)
            texts = [window.features[row] for row in of_batch]
            return model.active_batch(encoder, of_batch, None, policy, texts=texts)

        with open_workers(min(len(rows), encoder.workers(sum(lengths)))) as workers:
            if self.rebatching:
                scheduler = Scheduler(rows, lengths, begin, *limits, workers.count)
                for batch, exited in workers.run(or_out_of_memory(ActiveBatch.step), scheduler.schedule):
                    scheduler.put_back(batch)
                    if exited is not None:
                        yield exited
            else:
                rest = iter(rows)
                batches = (begin(list(islice(rest, count))) for count in batches_of(lengths, *limits))
                for _, exited_here in workers.map(or_out_of_memory(run_to_the_end), batches):
                    yield from exited_here
