"""Texts -> windows of tokenised texts for a token classifier: chunks of long texts, and what the stock
pipeline needs to make entities of their logits.

The counterpart of text_batcher.py. `TokenClassificationPipeline.preprocess` tokenises one text at a time;
here the tokenizer gets all texts of a window at once, with the same settings.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch

from .input_checks import beyond_vocabulary
from .text_batcher import Window, was_cut, with_truncation
from .token_spans import NO_WORD


@dataclass
class ChunkWindow(Window):
    """Some thousand texts in a row, each as one row or, where it is cut into chunks, as several."""

    texts: int = 0
    text_of: list[int] = field(default_factory=list)  # of each row, the text within the window
    # Of each row what `postprocess` of the stock pipeline reads besides the logits.
    chunks: dict[int, dict[str, Any]] = field(default_factory=dict)

    def position(self, row: int) -> int:
        return self.start + self.text_of[row]


class ChunkBatcher:
    """Windows of texts -> windows of tokenised chunks, by calling it. Holds the settings.

    Args:
        tokenizer: of the model.
        max_tokens: positions that the model has; `None` where any length runs.
        vocab_size: token ids that the model has embeddings for.
        stride: tokens that neighbouring chunks of a long text share; `None` cuts it off instead.
        delimiter: what words are joined with, where texts are lists of words; `None` for texts.
        offset_mappings: of all texts, where the caller knows them better than the tokenizer.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_tokens: int | None,
        vocab_size: int,
        stride: int | None = None,
        delimiter: str | None = None,
        offset_mappings: list[Any] | None = None,
    ):
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.delimiter, self.offset_mappings, self.stride = delimiter, offset_mappings, stride
        self.settings = {
            **with_truncation(tokenizer, max_tokens, {}),
            "padding": False,
            "return_special_tokens_mask": True,
            "return_offsets_mapping": tokenizer.is_fast,
        }
        if stride is not None:
            self._check_stride(stride)
            self.settings |= {"return_overflowing_tokens": True, "stride": stride}
        if delimiter is not None:
            if not tokenizer.is_fast:
                raise ValueError("is_split_into_words=True is only supported with fast tokenizers.")
            self.settings["is_split_into_words"] = True

    def _check_stride(self, stride: int) -> None:
        limit = self.settings["max_length"]
        if limit is not None:
            limit -= self.tokenizer.num_special_tokens_to_add()
        if isinstance(stride, bool) or not isinstance(stride, int) or stride < 0:
            raise ValueError(f"stride={stride!r}: give a number of tokens from 0.")
        if limit is not None and stride >= limit:
            raise ValueError(
                f"stride={stride}: chunks of this model hold {limit} tokens besides special ones, and have to"
                " share fewer with the next."
            )

    def on_its_own(self) -> "ChunkBatcher":
        """The same with a tokenizer of its own: a fast one keeps truncation as state, which others may set
        meanwhile.
        """
        other = copy.copy(self)
        other.tokenizer = copy.deepcopy(self.tokenizer)
        return other

    def __call__(self, start: int, texts: list[Any]) -> ChunkWindow:
        window = ChunkWindow(start, 0, texts=len(texts))
        sound: list[int] = []  # texts within the window
        for number, text in enumerate(texts):
            if (flaw := self._flaw(text)) is None:
                sound.append(number)
            else:
                self._add(window, number, flaw)
        if sound:
            self._tokenize(window, {number: texts[number] for number in sound})
        longest_first = sorted(
            window.features, key=lambda row: len(window.features[row]["input_ids"]), reverse=True
        )
        window.features = {row: window.features[row] for row in longest_first}
        return window

    def _flaw(self, text: Any) -> Exception | None:
        """Why something is no text, or no list of words; `None` where it is one."""
        words = [text] if self.delimiter is None else text
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            wanted = "a string" if self.delimiter is None else "a list of words"
            way_out = (
                "" if self.delimiter is not None else ", or a list of words with is_split_into_words=True"
            )
            return TypeError(
                f"cannot classify the tokens of {text!r} of type {type(text).__name__}: give"
                f" {wanted}{way_out}."
            )
        try:
            "".join(words).encode()
        except UnicodeEncodeError as error:
            return TypeError(
                f"it is not Unicode: {error.reason} at character {error.start}. Decode it with"
                " errors='replace'."
            )
        return None

    @staticmethod
    def _add(window: ChunkWindow, number: int, error: Exception | None = None) -> int:
        """A row more, of a text -> its number."""
        row = window.size
        window.size += 1
        window.text_of.append(number)
        if error is not None:
            window.errors[row] = error
        return row

    def _tokenize(self, window: ChunkWindow, texts: dict[int, Any]) -> None:
        numbers = list(texts)
        encoded = self.tokenizer(list(texts.values()), **self.settings)
        samples = encoded.get("overflow_to_sample_mapping", range(len(numbers)))
        names = [name for name in self.tokenizer.model_input_names if name in encoded]
        for index, sample in enumerate(samples):
            number = numbers[sample]
            ids = encoded["input_ids"][index]
            flaw = (
                "it has no tokens: it is empty, and the tokenizer adds none of its own." if not ids else None
            )
            flaw = flaw or beyond_vocabulary(min(ids), max(ids), self.vocab_size)
            row = self._add(window, number, None if flaw is None else ValueError(flaw))
            if flaw is not None:
                continue
            special = encoded["special_tokens_mask"][index]
            of_words = encoded.word_ids(index) if self.tokenizer.is_fast else None
            window.features[row] = {
                **{name: encoded[name][index] for name in names if name != "attention_mask"},
                "word_ids": _words(of_words, special),
            }
            window.chunks[row] = self._chunk(window.start + number, texts[number], encoded, index)
            if self.stride is None and was_cut(
                self.tokenizer, encoded, index, texts[number], None, self.settings
            ):
                window.cut.append(row)

    def _chunk(self, position: int, text: Any, encoded: Any, index: int) -> dict[str, Any]:
        """What the stock pipeline's `postprocess` reads of a chunk."""
        offsets = encoded["offset_mapping"][index] if self.tokenizer.is_fast else None
        if self.offset_mappings is not None:
            offsets = self.offset_mappings[position]
        chunk = {
            "input_ids": [encoded["input_ids"][index]],
            "special_tokens_mask": torch.tensor([encoded["special_tokens_mask"][index]]),
            "offset_mapping": None if offsets is None else [offsets],
            "sentence": text,
        }
        if self.delimiter is not None:
            start, places = 0, []
            for word in text:
                places.append((start, start + len(word)))
                start += len(word) + len(self.delimiter)
            chunk |= {
                "sentence": self.delimiter.join(text),
                "word_ids": encoded.word_ids(index),
                "word_to_chars_map": places,
            }
        return chunk


def _words(of_words: list[int | None] | None, special: list[int]) -> list[int]:
    """Words of a chunk's tokens, as a fast tokenizer counts them -> the same with `NO_WORD` for none; without
    them each token that is not special is a word.

    Example:
        >>> _words([None, 0, 0, None], [1, 0, 0, 1]), _words(None, [1, 0, 0, 1])
        ([-1, 0, 0, -1], [-1, 1, 2, -1])
    """
    if of_words is None:
        return [NO_WORD if is_special else index for index, is_special in enumerate(special)]
    return [
        NO_WORD if word is None or is_special else word
        for word, is_special in zip(of_words, special, strict=True)
    ]
