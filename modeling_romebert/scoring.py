"""Bulk scoring: many texts -> label, score and exit layer of each, in order, with little padding and constant memory.

    texts -> windows -> [thread: tokenise, sort by length, cut into batches (batching.py)] -> model -> results of the window

While the model runs the batches of one window, a thread prepares those of the next; a window's results come in the order of its
texts. The caller's thread reads the texts, so they may come from anything that belongs to it.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.pipelines.text_classification import ClassificationFunction, sigmoid, softmax
from transformers.utils import logging

from .batching import Batch, TextBatcher, Window, windows
from .host_memory import give_back_memory, keep_freed_memory
from .layouts import takes_unpadded
from .policies import ExitPolicy, as_policy
from .pools import walk_in_pools
from .streams import open_streams, streams_for
from .walk import Walk, begin

logger = logging.get_logger(__name__)

WINDOW = 4096
# Of texts without a length the first windows are smaller, so that the first results come soon.
FIRST_WINDOW = 512
# Tokens of a full batch, and of a full depth pool. On a CPU half as many take 5 to 9 % more time, twice as many no less; that of a
# GPU is a guess, not measured.
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
# Where depth pools were measured to pay.
POOLS_PAY = ("cpu",)

# Rows of a window, their logits (k, C), and the layers that each ran (k,).
Found = tuple[list[int], Tensor, Tensor]


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
    depth_pools: bool | None = None,
    **tokenizer_settings: Any,
) -> "Results":
    """Classify many texts, each as deep as it needs. What the pipeline does with lists, datasets and generators.

    Texts are read in windows, sorted by length within each, and cut into batches of equal size in tokens; the results do not depend
    on that. On a CPU, windows of many tokens are run several batches at once, in threads (streams.py). Where texts do not fit the
    model they are cut, and a warning at the end tells how many were.

    Args:
        model: a `RomeBertForSequenceClassification`; it is put in evaluation mode.
        tokenizer: of the model.
        texts: strings, or `{"text": ..., "text_pair": ...}`; any iterable. It is read in the thread that reads the results.
        exit_policy: a policy or its settings; that of the config when left out; `False` runs every layer.
        top_k: `"best"` gives one dict per text, a number a list of so many dicts, `None` a list with every label.
        function_to_apply: "sigmoid", "softmax" or "none"; by problem type when left out, as in the stock pipeline.
        batch_tokens: tokens in a batch, padding included. 2,048 on a CPU when left out, unless `batch_size` is given.
        batch_size: texts in a batch. 1 classifies texts one by one, each before the next is read.
        window: texts that are sorted together; results come window by window, and the next one is read before. Of texts without a
            length, such as those of a generator, the first windows are smaller. 1 is as `batch_size=1`.
        on_error: `"raise"` names the position of the text; `"skip"` gives for that text a result whose label, score and exit
            layer are `None`, with the reason as `error`, and goes on.
        progress: show a progress bar.
        depth_pools: join small batches, and cut what is left of several at the same depth into batches anew (pools.py), without
            padding where that can be done (layouts.py). Left out, it is done on a CPU, where it was measured to pay; on a GPU
            nobody has measured it yet.
        **tokenizer_settings: truncation, max_length and what else the tokenizer takes.

    Returns:
        An iterator over one result per text, in order: `{"label", "score", "exit_layer"}`. It has a length where `texts` has one.

    Raises:
        ValueError: a setting or a policy without meaning for the model, or a text that does not fit it.
        TypeError: a text that is none.
        RuntimeError: a text that the tokenizer or the model cannot take, from their error.

    Example:
        >>> list(score(model=None, tokenizer=None, texts=[], on_error="ignore"))
        Traceback (most recent call last):
        ValueError: on_error='ignore' is unknown; choose from raise, skip.
        >>> for result in score(model, tokenizer, open("reviews.txt"), batch_tokens=4096):  # doctest: +SKIP
        ...     print(result["label"], result["exit_layer"])
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r} is unknown; choose from raise, skip.")
    for name, value in {"batch_tokens": batch_tokens, "batch_size": batch_size, "window": window}.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}={value!r}: give a whole number from 1.")
    if isinstance(texts, (str, bytes, dict)):
        raise TypeError(f"texts is one {type(texts).__name__}: give a list of texts, or what else yields them.")
    window = 1 if batch_size == 1 else window
    model.eval()
    if model.device.type == "cpu" and window > 1:
        keep_freed_memory()
    policy = policy_for(model, exit_policy)
    as_results = ResultFormat(model.config, function_to_apply, top_k)
    full_batch = batch_tokens or BATCH_TOKENS.get(model.device.type, BATCH_TOKENS["cuda"])
    if batch_size is None:
        batch_tokens = full_batch
    on_gpu = model.device.type == "cuda"
    in_pools = model.device.type in POOLS_PAY if depth_pools is None else depth_pools
    padded = not (in_pools and policy is not None and takes_unpadded(model) and tokenizer.padding_side == "right")
    batcher = TextBatcher(tokenizer, model.max_tokens, batch_tokens, batch_size, tokenizer_settings, on_gpu, padded)
    scorer = _Scorer(model, policy, as_results, full_batch if in_pools else None, on_error == "skip")
    length = len(texts) if isinstance(texts, Sized) else None

    def results() -> Iterator[Any]:
        seen = cut = failed = 0
        read = windows(each(texts), FIRST_WINDOW if length is None else window, window)
        prepared = one_ahead(batcher, read) if window > 1 else (batcher(*one) for one in read)
        # Not a disabled bar, which would start tqdm's thread.
        shown = logging.tqdm(total=length, desc="classifying", unit=" texts") if progress else logging.EmptyTqdm()
        with closing(prepared), shown as bar:
            for found in prepared:
                scored = scorer(found, bar)
                yield from scored
                before, seen, cut, failed = seen, seen + found.size, cut + found.cut, failed + len(found.errors)
                if seen // WINDOW > before // WINDOW:
                    give_back_memory()
        if cut:
            at = batcher.settings["max_length"]
            logger.warning(f"{cut} of {seen} texts were longer than {at} tokens and were cut.")
        if failed:
            logger.warning(f"{failed} of {seen} texts could not be classified; their results say why, as 'error'.")

    return Results(results(), length)


class Results(Iterator[Any]):
    """An iterator over results. Its length is the number of texts, where that is known; `close` ends it early."""

    def __init__(self, results: Any, length: int | None):
        self._results, self._length = results, length

    def __next__(self) -> Any:
        return next(self._results)

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("these results have no length: the texts have none.")
        return self._length

    def close(self) -> None:
        self._results.close()


def policy_for(model: Any, exit_policy: Any) -> ExitPolicy | None:
    """What a caller asks for -> the policy, or `None` to run every layer; the config's when nothing is asked for.

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
    if exit_policy is None or exit_policy is False:
        return None
    policy = as_policy(exit_policy)
    policy.start(len(model.exit_layers), model.problem_type, model.exit_layers)  # or it would fail for every text
    return policy


class ResultFormat:
    """Logits and exit layers of many texts -> results, as the stock pipeline has them, with `exit_layer`. See `score`."""

    def __init__(self, config: Any, function_to_apply: str | ClassificationFunction | None, top_k: int | str | None):
        if isinstance(top_k, str) and top_k != "best":
            raise ValueError(f'top_k={top_k!r}: give "best", a number of labels, or None for all.')
        if isinstance(function_to_apply, str):
            if function_to_apply.upper() not in ClassificationFunction.__members__:
                choices = ", ".join(name.lower() for name in ClassificationFunction.__members__)
                raise ValueError(f"function_to_apply={function_to_apply!r} is unknown; choose from {choices}.")
            function_to_apply = ClassificationFunction[function_to_apply.upper()]
        if function_to_apply is None:
            if config.problem_type == "regression":
                function_to_apply = ClassificationFunction.NONE
            elif config.problem_type == "multi_label_classification" or config.num_labels == 1:
                function_to_apply = ClassificationFunction.SIGMOID
            else:
                function_to_apply = ClassificationFunction.SOFTMAX
        self.function, self.top_k = function_to_apply, top_k
        self.labels = [config.id2label[index] for index in range(config.num_labels)]

    def __call__(self, logits: Tensor, exit_layer: Tensor) -> list[Any]:
        """logits (N, C), exit_layer (N,) -> N results."""
        scores = logits.float().cpu().numpy()  # (N, C); half precision has no numpy
        if self.function is not ClassificationFunction.NONE:
            scores = sigmoid(scores) if self.function is ClassificationFunction.SIGMOID else softmax(scores)
        layers = exit_layer.tolist()
        if self.top_k == "best":
            best = zip(scores.argmax(axis=-1).tolist(), scores.max(axis=-1).tolist(), layers, strict=True)
            return [{"label": self.labels[index], "score": score, "exit_layer": layer} for index, score, layer in best]
        ordered = torch.from_numpy(scores).sort(dim=-1, descending=True, stable=True)
        values, indices = ordered.values[:, : self.top_k].tolist(), ordered.indices[:, : self.top_k].tolist()
        return [
            [{"label": self.labels[i], "score": score, "exit_layer": layer} for i, score in zip(of_row, row, strict=True)]
            for of_row, row, layer in zip(indices, values, layers, strict=True)
        ]

    def error(self, error: Exception) -> Any:
        """What stands for a text that could not be classified."""
        result = {"label": None, "score": None, "exit_layer": None, "error": str(error)}
        return result if self.top_k == "best" else [result]


def each(texts: Any) -> Iterator[Any]:
    """Iterate, also over datasets that only know a length and their items."""
    if hasattr(texts, "__iter__"):
        yield from texts
    else:
        yield from (texts[index] for index in range(len(texts)))


def one_ahead(batcher: TextBatcher, items: Iterable[tuple[int, list[Any]]]) -> Generator[Window, None, None]:
    """Windows of texts -> windows of batches, each made in a thread while the one before is in use; one alone needs no thread.

    Closing the iterator ends the thread, once it is through with its window.
    """
    items = iter(items)
    first, second = next(items, None), next(items, None)
    if first is None:
        return
    prepared = batcher(*first)
    if second is None:
        yield prepared
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer") as thread:
        apart = thread.submit(batcher.on_its_own)
        ahead = thread.submit(lambda window: apart.result()(*window), second)
        yield prepared
        for item in items:
            prepared, ahead = ahead.result(), thread.submit(lambda window: apart.result()(*window), item)
            yield prepared
        yield ahead.result()


def error_at(position: int, error: Exception) -> Exception:
    """What went wrong with one text, told with its position."""
    for kind in (TypeError, ValueError):
        if isinstance(error, kind):
            return kind(f"text {position}: {error}")
    return RuntimeError(f"text {position}: {type(error).__name__}: {error}")


class _Scorer:
    """A window of batches -> its results, in order. Holds what is the same for all windows; see `score`."""

    def __init__(self, model: Any, policy: ExitPolicy | None, as_results: ResultFormat, pool_tokens: int | None, skip: bool):
        self.model, self.policy, self.as_results = model, policy, as_results
        self.pool_tokens, self.skip = pool_tokens, skip

    def __call__(self, window: Window, bar: Any) -> list[Any]:
        logits = exit_layer = None  # (N, C) and (N,) of the window
        errors = window.errors
        bar.update(len(errors))
        for rows, of_rows, layers in self._run(window):
            if logits is None or exit_layer is None:
                logits, exit_layer = torch.zeros(window.size, of_rows.shape[1]), torch.zeros(window.size, dtype=torch.long)
            logits[rows], exit_layer[rows] = of_rows.float().cpu(), layers.cpu()
            bar.update(len(rows))
        if errors and not self.skip:
            row = min(errors)
            raise error_at(window.start + row, errors[row]) from errors[row]
        results = [None] * window.size if logits is None or exit_layer is None else self.as_results(logits, exit_layer)
        for row, error in errors.items():
            results[row] = self.as_results.error(error_at(window.start + row, error))
        return results

    def _run(self, window: Window) -> Iterator[Found]:
        """What the model says of the rows of a window, some rows at a time, up to the first error unless errors are skipped."""
        several = window.size > 1  # one text alone has a shorter path, in the model
        if several and self.policy is not None and self.pool_tokens is not None and (self.skip or not window.errors):
            try:
                yield from self._in_pools(window, self.policy, self.pool_tokens)
                return
            except Exception as error:
                logger.warning(f"{window.size} texts failed in depth pools ({error}); they are classified batch by batch.")
        if window.errors and not self.skip:
            return
        run_batch = partial(self._batch, errors=window.errors)
        with (
            open_streams(self._streams(window, len(window.batches))) as streams,
            closing(streams.map(run_batch, window.batches)) as run,
        ):
            for _, found in run:
                yield from found
                if window.errors and not self.skip:
                    return

    def _batch(self, batch: Batch, errors: dict[int, Exception]) -> list[Found]:
        """Where a batch fails, row by row; the rows that fail alone are noted as errors."""
        try:
            return [(batch.rows, *self._forward(batch.inputs))]
        except Exception as error:
            if len(batch.rows) == 1:
                errors[batch.rows[0]] = error
                return []
            logger.warning(f"A batch of {len(batch.rows)} texts failed ({error}); they are classified one by one.")
        # Not in the handler, which would keep what the failed batch had in memory.
        alone = (Batch([row], {k: v[at : at + 1] for k, v in batch.inputs.items()}) for at, row in enumerate(batch.rows))
        return [found for one in alone for found in self._batch(one, errors)]

    @torch.no_grad()
    def _forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        outputs = self.model(**self._on_device(inputs), exit_policy=self.policy)
        return outputs.logits, outputs.exit_layer

    @torch.no_grad()
    def _in_pools(self, window: Window, policy: ExitPolicy, pool_tokens: int) -> list[Found]:
        def beginning(batch: Batch) -> Callable[[], Walk]:
            rows = torch.tensor(batch.rows, device=self.model.device)
            return lambda: begin(self.model, rows, self._on_device(batch.inputs), policy)

        with open_streams(self._streams(window, window.size)) as streams:
            found = walk_in_pools(map(beginning, window.batches), pool_tokens, streams=streams)
            return [(left.rows.tolist(), left.logits, torch.full_like(left.rows, left.depth)) for left in found]

    def _streams(self, window: Window, most: int) -> int:
        """How many streams share the window; `most`: batches that can be made of it."""
        tokens = sum(batch.inputs["input_ids"].numel() for batch in window.batches)
        return max(1, min(most, streams_for(self.model.device, tokens)))

    def _on_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.model.device, non_blocking=True) for name, tensor in inputs.items()}
