"""Texts -> windows of tokenised texts: checked, tokenised, cut to the positions that the model has, sorted by
length; and how texts are read window by window, one ahead of the model.

First step of bulk scoring (scoring.py). Nothing here knows of batches or exits.
"""

import copy
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from transformers import BatchEncoding
from transformers.tokenization_utils_base import LARGE_INTEGER
from transformers.utils import logging

from .batch_layout import Features
from .input_checks import beyond_vocabulary
from .text_items import each, not_unicode, text_and_pair

logger = logging.get_logger(__name__)

# A window of long texts ends early: this bounds the memory that it takes.
WINDOW_CHARACTERS = 2**20
# Of texts without a length the first windows are smaller, so that the first results come soon.
FIRST_WINDOW = 512


@dataclass
class Window:
    """Some thousand texts in a row, tokenised."""

    start: int  # position of the first text among all texts
    size: int
    # By row, longest first; without those with an error.
    features: dict[int, Features] = field(default_factory=dict)
    errors: dict[int, Exception] = field(default_factory=dict)  # by row
    cut: list[int] = field(default_factory=list)  # rows whose text was too long

    def position(self, row: int) -> int:
        """Of the text of a row, among all texts."""
        return self.start + row

    @property
    def lengths(self) -> list[int]:
        """Tokens of each tokenised text."""
        return [len(features["input_ids"]) for features in self.features.values()]


def with_truncation(tokenizer: Any, max_tokens: int | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments for a tokenizer -> the same, with truncation to what model and tokenizer take where
    none is asked for.

    max_tokens: positions that the model has; `None` where any length runs, and only what the tokenizer says
    counts.

    Raises:
        ValueError: a text would get several rows.
    """
    if settings.get("return_overflowing_tokens"):
        raise ValueError(
            "return_overflowing_tokens=True makes several rows of a long text, and a text gets one label:"
            " leave it out, and the text is cut."
        )
    settings = {"truncation": True, **settings}
    if (settings["truncation"] or settings.get("padding") == "max_length") and settings.get(
        "max_length"
    ) is None:
        settings["max_length"] = min(max_tokens or LARGE_INTEGER, tokenizer.model_max_length)
        if settings["max_length"] >= LARGE_INTEGER:  # what a tokenizer says that knows no limit
            settings.update(truncation=False, max_length=None)
    return settings


def was_cut(
    tokenizer: Any, encoded: BatchEncoding, row: int, text: str, pair: str | None, settings: dict[str, Any]
) -> bool:
    """Whether truncation took tokens away from a row of what the tokenizer made with these settings."""
    if not settings["truncation"] or len(encoded["input_ids"][row]) < settings["max_length"]:
        return False
    if encoded.encodings is not None:
        return bool(encoded.encodings[row].overflowing)
    whole = tokenizer(text, pair, **{**settings, "truncation": False, "padding": False}, verbose=False)
    return len(whole["input_ids"]) > settings["max_length"]


class TextBatcher:
    """Windows of texts -> windows of tokenised texts, by calling it. Holds the settings.

    Args:
        tokenizer: of the model.
        max_tokens: positions that the model has; `None` where any length runs.
        vocab_size: token ids that the model has embeddings for.
        settings: keyword arguments of the tokenizer. Those for padding have no effect: who makes batches
            pads, if anybody.
    """

    def __init__(self, tokenizer: Any, max_tokens: int | None, vocab_size: int, settings: dict[str, Any]):
        self.tokenizer, self.max_tokens, self.vocab_size = tokenizer, max_tokens, vocab_size
        self.settings = {
            **with_truncation(tokenizer, max_tokens, settings),
            "padding": False,
            "return_attention_mask": False,  # all of a text is attended to
        }
        self.settings.pop("pad_to_multiple_of", None)

    def on_its_own(self) -> "TextBatcher":
        """The same with a tokenizer of its own: a fast one keeps truncation as state, which others may set
        meanwhile.
        """
        other = copy.copy(self)
        other.tokenizer = copy.deepcopy(self.tokenizer)
        return other

    def __call__(self, start: int, texts: list[Any]) -> Window:
        window = Window(start, len(texts))
        # A tokenizer takes texts or pairs in one call, not both.
        single: list[tuple[int, str, str | None]] = []
        pairs: list[tuple[int, str, str | None]] = []
        for row, item in enumerate(texts):
            try:
                text, pair = text_and_pair(item)
            except TypeError as error:
                window.errors[row] = error
            else:
                (single if pair is None else pairs).append((row, text, pair))
        found = {**self._tokenize(single, window), **self._tokenize(pairs, window)}
        longest_first = sorted(found, key=lambda row: len(found[row]["input_ids"]), reverse=True)
        window.features = {row: found[row] for row in longest_first}
        return window

    def _tokenize(self, texts: list[tuple[int, str, str | None]], window: Window) -> dict[int, Features]:
        """Rows, texts and pairs, all with a pair or none -> what the model takes, by row.

        Notes errors and what was cut.
        """
        if not texts:
            return {}
        second = None if texts[0][2] is None else [pair for _, _, pair in texts]
        try:
            encoded = self.tokenizer([text for _, text, _ in texts], second, **self.settings)
        except TypeError:  # what a fast tokenizer makes of a text that is no Unicode
            wrong = {row: flaw for row, text, pair in texts if (flaw := not_unicode(text, pair)) is not None}
            if not wrong:
                raise
            window.errors.update(wrong)
            return self._tokenize([one for one in texts if one[0] not in wrong], window)
        except Exception as fault:
            if type(fault) is not Exception:  # which is all that a fast tokenizer raises
                raise
            if len(texts) > 1:  # such as pairs one of which cannot be cut as asked for
                return {row: has for one in texts for row, has in self._tokenize([one], window).items()}
            window.errors[texts[0][0]] = ValueError(str(fault))
            return {}
        names = [name for name in self.tokenizer.model_input_names if name in encoded]
        features: dict[int, Features] = {}
        for index, (row, text, pair) in enumerate(texts):
            error = self._misfit(encoded["input_ids"][index])
            if error is not None:
                window.errors[row] = error
                continue
            if was_cut(self.tokenizer, encoded, index, text, pair, self.settings):
                window.cut.append(row)
            features[row] = {name: encoded[name][index] for name in names}
        return features

    def _misfit(self, ids: list[int]) -> ValueError | None:
        """Why the model cannot take these token ids; `None` where it can."""
        if not ids:
            return ValueError("it has no tokens: it is empty, and the tokenizer adds none of its own.")
        if self.max_tokens is not None and len(ids) > self.max_tokens:
            return ValueError(
                f"it has {len(ids)} tokens, but the model has positions for {self.max_tokens}. Leave"
                f" truncation and max_length out, or give truncation=True and max_length={self.max_tokens}."
            )
        flaw = beyond_vocabulary(min(ids), max(ids), self.vocab_size)
        return None if flaw is None else ValueError(flaw)


# ---- window by window


class Results(Iterator[Any]):
    """An iterator over results. Its length is the number of texts, where that is known; `close` ends it
    early.
    """

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


def in_windows(
    texts: Iterable[Any],
    batcher: Any,
    of_window: Callable[[Any, Any], Iterator[Any]],
    window: int,
    progress: bool,
    shown_as: str,
    instead_of_cutting: str = "",
) -> Results:
    """Read texts window by window, tokenise one ahead, and give the result of each text, in order. A warning
    at the end tells how many were cut, and how many failed.

    Args:
        batcher: position of the first text and texts -> a `Window`; see `TextBatcher`.
        of_window: a window and the progress bar, which it moves -> one result per text.
        window, progress: see `score`.
        shown_as: what the bar says.
        instead_of_cutting: what the warning advises.
    """
    length = len(texts) if isinstance(texts, Sized) else None

    def results() -> Iterator[Any]:
        seen = cut = failed = 0
        read = windows(each(texts), FIRST_WINDOW if length is None else window, window)
        tokenised = one_ahead(batcher, read) if window > 1 else (batcher(*one) for one in read)
        # Not a disabled bar, which would start tqdm's thread.
        shown = logging.tqdm(total=length, desc=shown_as, unit=" texts") if progress else logging.EmptyTqdm()
        with closing(tokenised), shown as bar:
            for here in tokenised:
                for result in of_window(here, bar):
                    seen += 1
                    yield result
                cut, failed = cut + len(here.cut), failed + len(here.errors)
        if cut:
            logger.warning(
                f"{cut} of {seen} texts were longer than {batcher.settings['max_length']} tokens and were"
                f" cut.{instead_of_cutting}"
            )
        if failed:
            logger.warning(
                f"{failed} of {seen} texts could not be classified; their results say why, as 'error'."
            )

    return Results(results(), length)


def windows(texts: Iterable[Any], first: int, largest: int) -> Iterator[tuple[int, list[Any]]]:
    """Texts -> position of the first and list, window by window: of `first` texts, then twice as many each,
    up to `largest`.
    """
    size, start, texts_here, characters = min(first, largest), 0, [], 0
    for text in texts:
        texts_here.append(text)
        # A text, a pair of them, or the words of one.
        parts = text.values() if isinstance(text, dict) else text if isinstance(text, list) else [text]
        characters += sum(len(part) for part in parts if isinstance(part, str))
        if len(texts_here) == size or characters >= WINDOW_CHARACTERS:
            yield start, texts_here
            start += len(texts_here)
            size, texts_here, characters = min(2 * size, largest), [], 0
    if texts_here:
        yield start, texts_here


def one_ahead(batcher: Any, items: Iterable[tuple[int, list[Any]]]) -> Generator[Any, None, None]:
    """Windows of texts -> tokenised windows, each made in a thread while the one before is in use; one alone
    needs no thread. batcher: a `TextBatcher`, or what is called and copied as one.

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
