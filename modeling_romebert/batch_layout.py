"""Batches: how the tokens of several rows lie in one tensor, padded to the longest row or packed end to end.

Both can do what the early-exit loop asks of its rows: keep some, be split, be joined. Padded batches are what
every family, attention and device takes. A packed batch holds no padding: its layers run on the tokens of its
texts alone. Nothing here runs a layer or knows of exits; encoder.py does.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .exit_heads import mean_weights, weighted_mean

# A tokenised text, by name of the model's input: lists of equal length.
Features = Mapping[str, Sequence[int]]
# The number of a layer from 0, the layer, and hidden states of the rows that it was made for -> hidden
# states.
RunLayer = Callable[[int, nn.Module, Tensor], Tensor]


class Batch(ABC):
    """Rows that run through layers together.

    Attributes:
        hidden: states of all tokens, embedded or after some layers.
        run_layer: how the encoder runs a layer on exactly these rows; gone when rows change.
        pooled (b, layers run, H): what exits that mix layers read of each; goes with the rows.
        active (m,): of a token classifier, places among the tokens end to end that layers still run on;
            `None` for all.
    """

    hidden: Tensor
    run_layer: RunLayer | None = None
    pooled: Tensor | None = None
    active: Tensor | None = None

    @property
    @abstractmethod
    def lengths(self) -> list[int]:
        """Tokens of each row, without the padding behind them."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Tokens that a layer runs on, padding included."""

    @property
    @abstractmethod
    def attended(self) -> list[int]:
        """Attended tokens of each row, n in all."""

    @property
    @abstractmethod
    def places(self) -> Tensor:
        """(n,): where the attended tokens lie, row after row, once rows and tokens of `hidden` are flat."""

    def end_to_end(self, states: Tensor) -> Tensor:
        """States that lie as `hidden` does -> those of the attended tokens (n, H), row after row."""
        return states.flatten(0, 1)[self.places]

    @abstractmethod
    def first_tokens(self, states: Tensor) -> Tensor:
        """States that lie as `hidden` does -> those of each row's first token (b, H)."""

    @abstractmethod
    def means(self, states: Tensor) -> Tensor:
        """States that lie as `hidden` does -> their mean over each row's tokens (b, H)."""

    @abstractmethod
    def select(self, rows: Sequence[int]) -> "Batch":
        """Some rows, in the order given."""

    @abstractmethod
    def view(self, rows: range) -> "Batch":
        """Neighbouring rows, as views where that is possible: for `concat`, which copies."""

    @abstractmethod
    def concat(self, others: Sequence[Any]) -> "Batch":
        """These rows and those of other batches of the same kind."""

    def __len__(self) -> int:
        return len(self.lengths)


class PaddedBatch(Batch):
    """b rows of T tokens, padding included.

    Args:
        hidden (b, T, H): embedded, or after some layers.
        attention_mask (b, T): `None` where nothing is padded.
        position_ids (b, T) or (1, T): `None` where the backbone counts them itself.
    """

    def __init__(
        self, hidden: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ):
        self.hidden, self.attention_mask = hidden, attention_mask
        self.position_ids = None if position_ids is None else position_ids.expand(hidden.shape[0], -1)
        self._sizes: Tensor | None = None  # (2, b) on the host, once measured
        self._weights: Tensor | None = None  # (b, 1, T) of `means`, made once
        self._places: Tensor | None = None  # made once

    def measure(self) -> "PaddedBatch":
        """Learn the lengths, and drop a mask that masks nothing. Waits for the device, once."""
        if self.attention_mask is not None and len(self.hidden):
            self._sizes = _sizes(self.attention_mask).cpu()
            if int(self._sizes[1].min()) == self.hidden.shape[1]:
                self.attention_mask = None
        return self

    @property
    def is_measured(self) -> bool:
        """Whether the mask is known to mask something, so that nobody has to look."""
        return self._sizes is not None

    @property
    def sizes(self) -> Tensor:
        """(2, b), on the host: tokens up to the last attended one, and attended tokens."""
        rows, tokens = self.hidden.shape[:2]
        if self._sizes is None and self.attention_mask is not None and rows:
            self._sizes = _sizes(self.attention_mask).cpu()
        return torch.full((2, rows), tokens) if self._sizes is None else self._sizes

    @property
    def lengths(self) -> list[int]:
        return self.sizes[0].tolist()

    @property
    def tokens(self) -> int:
        return self.hidden.shape[0] * self.hidden.shape[1]

    @property
    def attended(self) -> list[int]:
        return self.sizes[1].tolist()

    @property
    def places(self) -> Tensor:
        if self._places is None:
            self._places = self.full_mask().flatten().nonzero().squeeze(1)
        return self._places

    def __len__(self) -> int:
        return len(self.hidden)

    def first_tokens(self, states: Tensor) -> Tensor:
        """(b, T, H) -> (b, H): the first attended tokens, on whichever side the padding is."""
        if self.attention_mask is None or not may_begin_late(self.attention_mask):
            return states[:, 0]
        return states[
            torch.arange(states.shape[0], device=states.device), first_attended(self.attention_mask)
        ]

    def means(self, states: Tensor) -> Tensor:
        """(b, T, H) -> (b, H): over the attended tokens."""
        if self._weights is None:
            self._weights = mean_weights(states, self.attention_mask)
        return weighted_mean(self._weights, states)

    def select(self, rows: Sequence[int]) -> "PaddedBatch":
        """Some rows, cut to the longest of them."""
        index = torch.tensor(rows)
        return self._narrowed(index.to(self.hidden.device, non_blocking=True), self.sizes[:, index])

    def view(self, rows: range) -> "PaddedBatch":
        kept = slice(rows.start, rows.stop)
        return self._narrowed(kept, self.sizes[:, kept])

    def _narrowed(self, rows: Tensor | slice, sizes: Tensor) -> "PaddedBatch":
        longest = int(sizes[0].max()) if sizes.shape[1] else self.hidden.shape[1]
        # A mask that masks nothing is dropped.
        mask = None if sizes.shape[1] == 0 or int(sizes[1].min()) == longest else self.attention_mask
        mask, positions = (None if x is None else x[rows, :longest] for x in (mask, self.position_ids))
        batch = PaddedBatch(self.hidden[rows, :longest], mask, positions)
        batch._sizes, batch.pooled = sizes, None if self.pooled is None else self.pooled[rows]
        return batch

    def concat(self, others: Sequence["PaddedBatch"]) -> "PaddedBatch":
        """All rows, padded on the right to the longest."""
        if not others:
            return self
        parts = [self, *others]
        longest = max(part.hidden.shape[1] for part in parts)
        sizes = torch.cat([part.sizes for part in parts], dim=1)  # (2, b)
        masked = int(sizes[1].min()) < longest
        masks = [_pad(part.full_mask(), longest) for part in parts] if masked else []
        positions = [_pad(part.position_ids, longest) for part in parts if part.position_ids is not None]
        batch = PaddedBatch(
            torch.cat([_pad(part.hidden, longest) for part in parts]),
            torch.cat(masks) if masks else None,
            torch.cat(positions) if len(positions) == len(parts) else None,
        )
        batch._sizes, batch.pooled = sizes, _pooled_of(parts)
        return batch

    def full_mask(self) -> Tensor:
        """(b, T): also where nothing is padded."""
        return (
            self.hidden.new_ones(self.hidden.shape[:2], dtype=torch.long)
            if self.attention_mask is None
            else self.attention_mask
        )


class PackedBatch(Batch):
    """b rows end to end, as flash attention has them, and a few zeros behind them.

    Args:
        hidden (1, T + filler, H): embedded, or after some layers; T tokens in all. The filler makes it one
        of few sizes.
        lengths: tokens of each row, at least 1.
    """

    def __init__(self, hidden: Tensor, lengths: list[int]):
        self.hidden, self._lengths = hidden, lengths
        self.cu_seqlens: list[int] = [
            0,
            *accumulate(lengths),
        ]  # (b + 1,): where each row starts, and the last one ends

    @property
    def lengths(self) -> list[int]:
        return self._lengths

    @property
    def tokens(self) -> int:
        return self.hidden.shape[1]

    @property
    def attended(self) -> list[int]:
        return self._lengths

    @property
    def places(self) -> Tensor:
        return torch.arange(self.cu_seqlens[-1])

    def end_to_end(self, states: Tensor) -> Tensor:
        return states[0, : self.cu_seqlens[-1]]

    @property
    def filler(self) -> int:
        """Tokens behind the last row."""
        return self.tokens - self.cu_seqlens[-1]

    def first_tokens(self, states: Tensor) -> Tensor:
        return states[0, self.cu_seqlens[:-1]]

    def means(self, states: Tensor) -> Tensor:
        """Sums row by row: in a product with a matrix of weights a NaN of one row would reach all."""
        bounds = torch.tensor(self.cu_seqlens)  # (b + 1,)
        tokens = torch.arange(self.cu_seqlens[-1])  # (T,)
        return F.embedding_bag(tokens, states[0].float(), bounds, mode="mean", include_last_offset=True).to(
            states.dtype
        )

    def select(self, rows: Sequence[int]) -> "PackedBatch":
        bounds = self.cu_seqlens
        batch = self._joined(
            [self.hidden[:, bounds[row] : bounds[row + 1]] for row in rows],
            [self.lengths[row] for row in rows],
        )
        batch.pooled = None if self.pooled is None else self.pooled[list(rows)]
        return batch

    def view(self, rows: range) -> "PackedBatch":
        """A view, without filler."""
        start, stop = self.cu_seqlens[rows.start], self.cu_seqlens[rows.stop]
        batch = PackedBatch(self.hidden[:, start:stop], self.lengths[rows.start : rows.stop])
        batch.pooled = None if self.pooled is None else self.pooled[rows.start : rows.stop]
        return batch

    def concat(self, others: Sequence["PackedBatch"]) -> "PackedBatch":
        if not others and self.tokens == rounded_up(self.cu_seqlens[-1]):
            return self
        parts = [self, *others]
        texts = [part.hidden[:, : part.cu_seqlens[-1]] for part in parts]
        batch = self._joined(texts, [length for part in parts for length in part.lengths])
        batch.pooled = _pooled_of(parts)
        return batch

    @staticmethod
    def _joined(pieces: Sequence[Tensor], lengths: list[int]) -> "PackedBatch":
        """Tokens of some rows each, (1, n, H), and the lengths of all rows -> the rows, and the filler."""
        tokens = sum(lengths)
        filler = pieces[0].new_zeros(1, rounded_up(tokens) - tokens, pieces[0].shape[2])
        return PackedBatch(torch.cat([*pieces, filler], dim=1), lengths)


def _pooled_of(batches: Sequence[Batch]) -> Tensor | None:
    """(b, layers run, H) of the rows of all; `None` where exits do not mix layers."""
    pooled = [batch.pooled for batch in batches if batch.pooled is not None]
    return torch.cat(pooled) if pooled else None


def rounded_up(tokens: int) -> int:
    """Tokens of a packed batch -> tokens that its layers run on, a few more, so that few sizes occur.

    Both the allocator and oneDNN, which compiles code for each size, do badly with constantly changing batch
    sizes.

    Example:
        >>> rounded_up(57), rounded_up(500), rounded_up(2000)
        (64, 512, 2048)
    """
    step = 8 if tokens <= 64 else 16 if tokens <= 512 else 64
    return -(-tokens // step) * step


def first_attended(attention_mask: Tensor) -> Tensor:
    """attention_mask (B, T) -> (B,): place of the first attended token; 0 where there is none."""
    return (attention_mask != 0).to(torch.uint8).argmax(dim=1)


def may_begin_late(attention_mask: Tensor) -> bool:
    """Whether rows may begin after their first token, as with padding on the left.

    Looked at on a CPU only, where that does not wait, and not while a graph is made for any mask.
    """
    looks = attention_mask.device.type == "cpu" and not torch.compiler.is_compiling()
    return not looks or not bool((attention_mask[:, 0] != 0).all())


def _sizes(attention_mask: Tensor) -> Tensor:
    """attention_mask (b, T) -> (2, b): tokens up to the last attended one (at least 1), and attended ones."""
    attended = attention_mask != 0
    places = torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)
    return torch.stack([(places * attended).amax(dim=1).clamp(min=1), attended.sum(dim=1)])


def _pad(tensor: Tensor, longest: int) -> Tensor:
    """(b, T) or (b, T, H) -> the same with `longest` tokens, zeros on the right."""
    missing = longest - tensor.shape[1]
    return F.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, missing)) if missing else tensor
