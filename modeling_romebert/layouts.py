"""How the tokens of several rows lie in one tensor: padded to the longest row, or end to end without padding.

Both can do what a walk (walk.py) asks of its rows: run a layer, hand each row to an exit, go on with some rows, be joined. Padded
rows are what every family, attention and device takes. What is left of several batches has texts of many lengths: end to end,
layers run on their tokens alone, where padding took five to seven per cent of the time.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import BlockDiagonalMask
from .backbones import RunLayer, attended_lengths, check_inputs, embed
from .exits import mean_weights

# Finished states of all tokens -> what an `ExitHead` takes.
ForExit = Callable[[Tensor], tuple[Tensor, Tensor | None]]


class Padded:
    """b rows of t tokens, padding included.

    Args:
        hidden (b, t, H): embedded, or after some layers.
        attention_mask (b, t): or `None`, where nothing is padded.
        position_ids (b, t) or (1, t): or `None`, where they are as usual.
        sizes (2, b): on the host: tokens up to the last attended one, and attended tokens, where that is known already.
    """

    def __init__(
        self, hidden: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, sizes: Tensor | None = None
    ):
        self.hidden = hidden
        self.sizes: Tensor | None = None  # only where something is padded
        if sizes is None and attention_mask is not None and attention_mask.device.type == "cpu" and bool(attention_mask.all()):
            attention_mask = None  # nothing is padded; to look is cheap here
        self.attention_mask = attention_mask
        if attention_mask is not None and len(hidden):
            if sizes is None:  # waits for the device, once per batch
                sizes = torch.stack([attended_lengths(attention_mask), (attention_mask != 0).sum(dim=1)]).cpu()
            if int(sizes[1].min()) < hidden.shape[1]:
                self.sizes = sizes
            else:
                self.attention_mask = None  # a mask that masks nothing
        self.position_ids = None if position_ids is None else position_ids.expand(len(hidden), -1)

    def full_mask(self) -> Tensor:
        """(b, t): also where nothing is padded."""
        return self.hidden.new_ones(self.hidden.shape[:2], dtype=torch.long) if self.attention_mask is None else self.attention_mask

    def full_sizes(self) -> Tensor:
        """(2, b): also where nothing is padded."""
        rows, tokens = self.hidden.shape[:2]
        return torch.full((2, rows), tokens) if self.sizes is None else self.sizes

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, up to the last attended one."""
        return self.full_sizes()[0].tolist()

    @property
    def cells(self) -> int:
        """Tokens that a layer runs on, padding included."""
        return self.hidden.shape[0] * self.hidden.shape[1]

    def prepare(self, model: Any) -> tuple[RunLayer, ForExit]:
        """How to run a layer of the model on these rows, and how an exit sees them."""
        run = model._adapter.prepare(model.backbone, self.hidden, self.attention_mask, self.position_ids, padded=True)
        weights = mean_weights(self.hidden, self.attention_mask) if model.pools_mean else None
        return run, lambda seen: (seen, weights)

    def select(self, kept: Tensor | slice, stay: Tensor | slice) -> "Padded":
        """Some rows, as told on the device and on the host; cut to the longest of them."""
        sizes = None if self.sizes is None else self.sizes[:, stay]
        longest = self.hidden.shape[1] if sizes is None else int(sizes[0].max())
        mask, positions = (None if x is None else x[kept, :longest] for x in (self.attention_mask, self.position_ids))
        return Padded(self.hidden[kept, :longest], mask, positions, sizes)

    @property
    def filled_up(self) -> bool:
        return True  # any size will do

    def padded(self) -> "Padded":
        return self


class Unpadded:
    """b rows end to end, as flash attention and ModernBERT have them: T tokens in all, and behind them what fills up a group.

    Args:
        hidden (1, T or a few more, H): embedded, or after some layers.
        lengths: tokens of each row, T in all.
    """

    def __init__(self, hidden: Tensor, lengths: list[int]):
        self.hidden, self.lengths = hidden, lengths

    @property
    def cells(self) -> int:
        """Tokens that a layer runs on, what fills up included."""
        return self.hidden.shape[1]

    @property
    def filled_up(self) -> bool:
        """Whether this is one of few sizes; see `with_filler`."""
        return self.cells == with_filler(sum(self.lengths))

    def _filler(self) -> int:
        return self.cells - sum(self.lengths)

    def prepare(self, model: Any) -> tuple[RunLayer, ForExit]:
        """How to run a layer of the model on these rows, and how an exit sees them."""
        filler = self._filler()
        mask = BlockDiagonalMask.of([*self.lengths, filler] if filler else self.lengths)
        run = model._adapter.prepare(model.backbone, self.hidden, mask, None, padded=True)
        starts = torch.tensor([0, *accumulate(self.lengths)])  # (b + 1,)
        if not model.pools_mean:
            return run, lambda seen: (seen[0, starts[:-1]].unsqueeze(1), None)  # the first token: (b, 1, H)
        tokens = torch.arange(sum(self.lengths))
        return run, lambda seen: (_means(seen[0], tokens, starts).unsqueeze(1), None)  # (b, 1, H)

    def select(self, kept: Tensor | slice, stay: Tensor | slice) -> "Unpadded":
        """Some rows, as told on the device and on the host, which are the same here. A slice is not copied, and not filled up."""
        if isinstance(stay, slice):
            start, lengths = sum(self.lengths[: stay.start]), self.lengths[stay]
            return Unpadded(self.hidden[:, start : start + sum(lengths)], lengths)
        rows, bounds = stay.tolist(), list(pairwise([0, *accumulate(self.lengths)]))
        pieces = [self.hidden[:, slice(*bounds[row])] for row in rows]
        return end_to_end(pieces, [self.lengths[row] for row in rows])

    def padded(self) -> Padded:
        """The same rows, padded to the longest."""
        texts = self.hidden[0].split([*self.lengths, self._filler()])[:-1]
        lengths = torch.tensor(self.lengths)
        mask = (torch.arange(max(self.lengths)) < lengths[:, None]).long()
        hidden = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
        return Padded(hidden, mask, sizes=torch.stack([lengths, lengths]))


Layout = Padded | Unpadded


def _means(hidden: Tensor, tokens: Tensor, starts: Tensor) -> Tensor:
    """hidden (T or more, H), their numbers (T,), where each row starts and the last one ends (b + 1,) -> mean of each row (b, H)

    One row cannot touch another, which a product with a matrix of weights would allow: 0 times not a number is none.
    """
    return F.embedding_bag(tokens, hidden.float(), starts, mode="mean", include_last_offset=True).to(hidden.dtype)


def with_filler(tokens: int) -> int:
    """Tokens of rows end to end -> how many a layer runs on: a few more, so that few sizes occur.

    Memory that batches of ever other sizes free falls to pieces that none of the next fits in, and packed layers (packing.py) have
    code compiled for each size, or would fill up their rows, each for itself.
    """
    step = 8 if tokens <= 64 else 16 if tokens <= 512 else 64
    return -(-tokens // step) * step


def end_to_end(pieces: Sequence[Tensor], lengths: list[int]) -> Unpadded:
    """Tokens of some rows each, (1, n, H), and the lengths of all rows -> the rows end to end, and zeros that fill up."""
    tokens = sum(lengths)
    filler = with_filler(tokens) - tokens
    more = [pieces[0].new_zeros(1, filler, pieces[0].shape[2])] if filler else []
    return Unpadded(torch.cat([*pieces, *more], dim=1), lengths)


def takes_unpadded(model: Any) -> bool:
    """Whether rows can lie end to end: there must be a way to keep the attention of the texts apart.

    That is so on a CPU, with torch's own attention, for families whose layers are given a mask and nothing else.
    """
    on_cpu, sdpa = model.device.type == "cpu", model.backbone.config._attn_implementation == "sdpa"
    return on_cpu and sdpa and model._adapter.unpads


def lay_out(model: Any, inputs: dict[str, Tensor]) -> Layout:
    """What a tokenizer gives, each (b, t) -> the rows, embedded: end to end where that can be done and padding comes last.

    Raises:
        ValueError: see `check_inputs`.
    """
    given = [inputs.get(name) for name in ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")]
    ids, mask, types, positions, embeds = given
    before = None if ids is None or not takes_unpadded(model) else _before_padding(ids, mask)  # (b, t)
    if ids is None or before is None:
        return Padded(embed(model, *given), mask, positions)
    check_inputs(model, ids, mask, embeds)  # `embed` does so itself
    lengths = before.sum(dim=1).tolist()
    tokens = sum(lengths)

    def flat(tensor: Tensor) -> Tensor:
        return F.pad(tensor[before], (0, with_filler(tokens) - tokens)).unsqueeze(0)  # (b, t) -> (1, T or a few more)

    types = torch.zeros_like(ids) if types is None else types
    positions = model._adapter.position_ids(model.backbone, ids) if positions is None else positions.expand_as(ids)
    named = {"input_ids": flat(ids), "token_type_ids": flat(types), "position_ids": flat(positions), "inputs_embeds": None}
    return Unpadded(model._adapter.embed(model.backbone, None, **named), lengths)


def _before_padding(ids: Tensor, mask: Tensor | None) -> Tensor | None:
    """ids (b, t) and their mask -> (b, t) bool: what comes before the padding; `None` where that is not all that is attended to."""
    attended = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0
    lengths = attended.sum(dim=1, keepdim=True)  # (b, 1)
    before = torch.arange(ids.shape[1]) < lengths
    return before if len(ids) and lengths.all() and torch.equal(attended, before) else None


def join(batches: Sequence[Layout]) -> Layout:
    """Rows of several batches -> all of them in one, filled up; padded where some are."""
    if len(batches) == 1 and batches[0].filled_up:
        return batches[0]
    unpadded = [batch for batch in batches if isinstance(batch, Unpadded)]
    if len(unpadded) == len(batches):
        pieces = [batch.hidden[:, : sum(batch.lengths)] for batch in unpadded]
        return end_to_end(pieces, [length for batch in unpadded for length in batch.lengths])
    parts = [batch.padded() for batch in batches]
    longest = max(part.hidden.shape[1] for part in parts)
    mask = sizes = None
    if any(part.sizes is not None or part.hidden.shape[1] < longest for part in parts):
        mask = torch.cat([_lengthened(part.full_mask(), longest) for part in parts])
        sizes = torch.cat([part.full_sizes() for part in parts], dim=1)
    positions = [_lengthened(part.position_ids, longest) for part in parts if part.position_ids is not None]
    hidden = torch.cat([_lengthened(part.hidden, longest) for part in parts])
    return Padded(hidden, mask, torch.cat(positions) if len(positions) == len(parts) else None, sizes)


def _lengthened(tensor: Tensor, longest: int) -> Tensor:
    """(b, t) or (b, t, H) -> the same with `longest` tokens."""
    missing = longest - tensor.shape[1]
    return F.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, missing)) if missing else tensor
