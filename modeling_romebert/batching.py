"""Texts -> padded batches of similar length: checked, tokenised, cut to the positions that the model has, sorted, padded.

First step of bulk scoring (scoring.py), which runs this in a thread, ahead of the model. Nothing here knows of exits.
"""

import copy
import math
from array import array
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding
from transformers.tokenization_utils_base import LARGE_INTEGER

# A window of long texts ends early: this bounds the memory that it takes.
WINDOW_CHARACTERS = 2**20
# What a batch costs a layer beside its tokens, as a share of the tokens of a full batch: reading the weights, starting the
# operators. Measured on a CPU.
BATCH_COST = 0.05
# Tokens that a batch has at least when batches are made smaller than full, to keep all streams busy.
LEAST = 256
# Vector units take rows in such groups; packed layers (packing.py) would fill up what is over, which is a copy each.
GROUP = 8


@dataclass
class Batch:
    """b texts of similar length, padded to the longest: their rows in the window, and what the model takes (b, T)."""

    rows: list[int]
    inputs: dict[str, Tensor]


@dataclass
class Window:
    """Some thousand texts in a row, tokenised. Batches hold every row but those with an error."""

    start: int  # position of the first text among all texts
    size: int
    batches: list[Batch] = field(default_factory=list)
    errors: dict[int, Exception] = field(default_factory=dict)  # by row
    cut: int = 0  # texts that were too long


def windows(texts: Iterable[Any], first: int, largest: int) -> Iterator[tuple[int, list[Any]]]:
    """Texts -> position of the first and list, window by window: of `first` texts, then twice as many each, up to `largest`."""
    size, start, texts_here, characters = min(first, largest), 0, [], 0
    for text in texts:
        texts_here.append(text)
        characters += sum(len(part) for part in (text.values() if isinstance(text, dict) else [text]) if isinstance(part, str))
        if len(texts_here) == size or characters >= WINDOW_CHARACTERS:
            yield start, texts_here
            start += len(texts_here)
            size, texts_here, characters = min(2 * size, largest), [], 0
    if texts_here:
        yield start, texts_here


def plan_batches(
    lengths: Sequence[int], batch_tokens: int | None, batch_size: int | None = None, padded: bool = True
) -> list[list[int]]:
    """Lengths in tokens -> rows of each batch, longest first.

    Args:
        lengths: of each row.
        batch_tokens: a batch holds at most so many tokens, but always one row. `None`: no bound.
        batch_size: a batch holds so many rows, where they do not have more than `batch_tokens`. `None`: no bound.
        padded: padding counts, and batches are those of `cut`; else those of `fill`.

    Example:
        >>> plan_batches([3, 40, 4, 38, 4], batch_tokens=80)
        [[1, 3], [2, 4, 0]]
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    size = batch_size or len(order) or 1
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    if batch_tokens is not None:
        cut_or_fill = cut if padded else fill
        counts = [count for rows in batches for count in cut_or_fill([lengths[row] for row in rows], batch_tokens)]
        rest = iter(order)
        batches = [list(islice(rest, count)) for count in counts]
    return batches


def cut(lengths: Iterable[int], batch_tokens: int) -> list[int]:
    """Lengths of rows in their order -> how many of them go in each batch, for the least time of a layer in all.

    A batch takes the time of its tokens, padding included, and of `BATCH_COST` of a full batch. It holds at most `batch_tokens`,
    but always one row, and short rows in groups of `GROUP`. Dynamic programming: before the last batch of the best cut of the
    first n groups comes the best cut of fewer.

    Example:
        >>> cut([40, 40, 38, 38, 6, 6, 5, 5], batch_tokens=160)
        [4, 4]
    """
    groups = _groups(lengths, batch_tokens)
    least, begins = [0.0], [0]  # of the first n groups, n = 0, 1, ...: time of the best cut, and where its last batch begins
    for n in range(1, len(groups) + 1):
        rows = longest = 0
        best, begin = math.inf, n
        for first in range(n - 1, -1, -1):  # the last batch holds the groups from the first on
            rows, longest = rows + groups[first][0], max(longest, groups[first][1])
            if rows * longest > batch_tokens and first < n - 1:
                break
            time = least[first] + BATCH_COST * batch_tokens + rows * longest
            if time < best:
                best, begin = time, first
        least.append(best)
        begins.append(begin)
    counts, n = [], len(groups)
    while n:
        counts.append(sum(rows for rows, _ in groups[begins[n] : n]))
        n = begins[n]
    return counts[::-1]


def fill(lengths: Iterable[int], batch_tokens: int) -> list[int]:
    """Lengths of rows in their order -> how many of them go in each batch, where nothing is padded: those that fit, or one.

    Example:
        >>> fill([40, 40, 38, 38, 6, 6, 5, 5], batch_tokens=160)
        [4, 4]
    """
    counts: list[int] = []
    tokens = 0  # of the last batch, which is being filled
    for length in lengths:
        if not counts or tokens + length > batch_tokens:
            counts.append(0)
            tokens = 0
        counts[-1] += 1
        tokens += length
    return counts


def level(lengths: Sequence[int], batch_tokens: int, streams: int) -> list[int]:
    """`fill` for batches that streams (streams.py) run side by side: those of the last turn are of like size, one for each stream.

    None of these is made for less than `LEAST` tokens.

    Example:
        >>> fill([400] * 10, batch_tokens=1600), level([400] * 10, batch_tokens=1600, streams=2)
        ([4, 4, 2], [4, 4, 1, 1])
    """
    counts = fill(lengths, batch_tokens)
    over = len(counts) % streams or min(streams, len(counts))  # batches of the last turn
    full = counts[: len(counts) - over]
    last = lengths[sum(full) :]
    tokens = list(accumulate(last))  # of the last turn, up to the end of each row
    shares = max(over, min(streams, sum(last) // LEAST))
    bounds = [0, *(bisect(tokens, sum(last) * share / shares) for share in range(1, shares + 1))]  # rows
    shared = [stop - start for start, stop in pairwise(bounds) if stop > start]
    fits = all(sum(last[start:stop]) <= batch_tokens for start, stop in pairwise(bounds))
    return full + shared if fits else counts


def _groups(lengths: Iterable[int], batch_tokens: int) -> list[tuple[int, int]]:
    """Lengths of rows -> rows and longest row of each group of up to `GROUP` rows; two groups at least fit in a batch."""
    groups: list[tuple[int, int]] = []
    for length in lengths:
        rows, longest = groups[-1] if groups else (GROUP, 0)
        if rows < GROUP and (rows + 1) * max(longest, length) <= batch_tokens // 2:
            groups[-1] = rows + 1, max(longest, length)
        else:
            groups.append((1, length))
    return groups


def text_and_pair(item: Any) -> tuple[str, str | None]:
    """A text, or `{"text", "text_pair"}` -> both, the second `None` where there is none.

    Raises:
        TypeError: it is neither.
    """
    parts = item if isinstance(item, dict) else {"text": item}
    text, pair = parts.get("text"), parts.get("text_pair")
    if isinstance(text, str) and (pair is None or isinstance(pair, str)) and parts.keys() <= {"text", "text_pair"}:
        return text, pair or None  # as in the stock pipeline, an empty one is none
    raise TypeError(
        f"cannot classify {item!r} of type {type(item).__name__}: give a string, or for a pair of texts"
        ' {"text": ..., "text_pair": ...}, or a list of either.'
    )


def with_truncation(tokenizer: Any, max_tokens: int | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments for a tokenizer -> the same, with truncation to what model and tokenizer take where none is asked for.

    max_tokens: positions that the model has; `None` where any length runs, and only what the tokenizer says counts.
    """
    settings = {"truncation": True, **settings}
    if (settings["truncation"] or settings.get("padding") == "max_length") and settings.get("max_length") is None:
        settings["max_length"] = min(max_tokens or LARGE_INTEGER, tokenizer.model_max_length)
        if settings["max_length"] >= LARGE_INTEGER:  # what a tokenizer says that knows no limit
            settings.update(truncation=False, max_length=None)
    return settings


def was_cut(tokenizer: Any, encoded: BatchEncoding, row: int, text: str, pair: str | None, settings: dict[str, Any]) -> bool:
    """Whether truncation took tokens away from a row of what the tokenizer made with these settings."""
    if not settings["truncation"] or len(encoded["input_ids"][row]) < settings["max_length"]:
        return False
    if encoded.encodings is not None:
        return bool(encoded.encodings[row].overflowing)
    whole = tokenizer(text, pair, **{**settings, "truncation": False, "padding": False}, verbose=False)
    return len(whole["input_ids"]) > settings["max_length"]


def pad(features: list[dict[str, list[int]]], tokenizer: Any, at_least: int = 0, multiple: int = 1) -> dict[str, Tensor]:
    """Ids, types and mask of b rows -> each (b, T), as `tokenizer.pad` makes them, in a tenth of its time.

    Args:
        features: of each row, what the tokenizer gave.
        at_least, multiple: T is the tokens of the longest row, but at least so many, rounded up to a multiple.

    Raises:
        ValueError: something has to be padded, and the tokenizer has no token for that.
    """
    lengths = [len(row["input_ids"]) for row in features]
    longest = -(-max(*lengths, at_least) // multiple) * multiple
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id, "attention_mask": 0}
    if fill["input_ids"] is None and min(lengths) < longest:
        raise ValueError("the tokenizer has no padding token; set tokenizer.pad_token, or give batch_size=1.")
    places, tokens = torch.arange(longest), torch.tensor(lengths)[:, None]
    taken = places >= longest - tokens if tokenizer.padding_side == "left" else places < tokens  # (b, T)

    def padded(name: str) -> Tensor:
        flat = array("q", chain.from_iterable(row[name] for row in features))
        tensor = torch.full(taken.shape, fill[name] or 0, dtype=torch.long)
        if flat:  # an empty buffer is refused
            tensor[taken] = torch.frombuffer(flat, dtype=torch.long)
        return tensor

    tensors = {name: padded(name) for name in fill if name in features[0]}
    tensors.setdefault("attention_mask", taken.long())  # all of a text is attended to
    return tensors


class TextBatcher:
    """Windows of texts -> windows of batches, by calling it. Holds the settings.

    Args:
        tokenizer: of the model.
        max_tokens: positions that the model has; `None` where any length runs.
        batch_tokens, batch_size: see `plan_batches`.
        settings: keyword arguments of the tokenizer. Padding is to the longest of a batch, unless it is "max_length".
        pin: put the batches in page-locked memory, for faster copies to a GPU.
        padded: batches run padded; else padding does not count.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_tokens: int | None,
        batch_tokens: int | None,
        batch_size: int | None,
        settings: dict[str, Any],
        pin: bool = False,
        padded: bool = True,
    ):
        self.tokenizer, self.max_tokens, self.pin, self.padded = tokenizer, max_tokens, pin, padded
        self.batch_tokens, self.batch_size = batch_tokens, batch_size
        self.settings = with_truncation(tokenizer, max_tokens, settings)
        self.multiple = self.settings.pop("pad_to_multiple_of", None) or 1
        self.at_least = (self.settings["max_length"] or 0) if self.settings.pop("padding", None) == "max_length" else 0
        self.settings.setdefault("return_attention_mask", False)  # `pad` makes one; a list of ones for each text takes a while

    def on_its_own(self) -> "TextBatcher":
        """The same with a tokenizer of its own: a fast one keeps truncation as state, which others may set meanwhile."""
        other = copy.copy(self)
        other.tokenizer = copy.deepcopy(self.tokenizer)
        return other

    def __call__(self, start: int, texts: list[Any]) -> Window:
        window = Window(start, len(texts))
        # A tokenizer takes texts or pairs in one call, not both.
        alone: list[tuple[int, str, str | None]] = []
        pairs: list[tuple[int, str, str | None]] = []
        for row, item in enumerate(texts):
            try:
                text, pair = text_and_pair(item)
            except TypeError as error:
                window.errors[row] = error
            else:
                (alone if pair is None else pairs).append((row, text, pair))
        features = {**self._tokenize(alone, window), **self._tokenize(pairs, window)}
        rows = list(features)
        lengths = [max(len(features[row]["input_ids"]), self.at_least) for row in rows]
        for planned in plan_batches(lengths, self.batch_tokens, self.batch_size, self.padded):
            of_batch = [rows[index] for index in planned]
            window.batches.append(Batch(of_batch, self._pad([features[row] for row in of_batch])))
        return window

    def _tokenize(self, texts: list[tuple[int, str, str | None]], window: Window) -> dict[int, dict[str, list[int]]]:
        """Rows, texts and pairs, all with a pair or none -> what the model takes, by row. Notes errors and what was cut."""
        if not texts:
            return {}
        try:
            second = None if texts[0][2] is None else [pair for _, _, pair in texts]
            encoded = self.tokenizer([text for _, text, _ in texts], second, **self.settings)
        except Exception as error:
            if len(texts) == 1:
                window.errors[texts[0][0]] = error
                return {}
            one_by_one = [self._tokenize([text], window) for text in texts]  # to find the one at fault
            return {row: features for found in one_by_one for row, features in found.items()}
        names = [name for name in self.tokenizer.model_input_names if name in encoded]
        features = {}
        for index, (row, text, pair) in enumerate(texts):
            tokens = len(encoded["input_ids"][index])
            if self.max_tokens is not None and tokens > self.max_tokens:
                window.errors[row] = ValueError(
                    f"it has {tokens} tokens, but the model has positions for {self.max_tokens}. Leave truncation and max_length"
                    f" out, or give truncation=True and max_length={self.max_tokens}."
                )
                continue
            window.cut += was_cut(self.tokenizer, encoded, index, text, pair, self.settings)
            features[row] = {name: encoded[name][index] for name in names}
        return features

    def _pad(self, features: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        padded = pad(features, self.tokenizer, self.at_least, self.multiple)
        return {name: tensor.pin_memory() if self.pin else tensor for name, tensor in padded.items()}
