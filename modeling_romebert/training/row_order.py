"""The order of rows in an epoch that a run which goes on finds again."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler


class TellsEpoch(TrainerCallback):
    """Tells every sampler of a training which epoch begins.

    transformers tells the loader that skips the rows of a resumed epoch. Where batches are shared out to
    several processes, that one does not pass it on to samplers that are wrapped deeper.
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        part = kwargs["train_dataloader"]  # the whole one
        while part is not None:
            for one in (part, getattr(part, "sampler", None)):
                if (set_epoch := getattr(one, "set_epoch", None)) is not None:
                    set_epoch(int(state.epoch or 0))
            part = getattr(part, "batch_sampler", None)


class EpochSeededGroups(LengthGroupedSampler):
    """Rows in batches of like length, in an order that the seed and the epoch decide.

    That of transformers draws its order from the random numbers of the process. A run that goes on from
    within an epoch has others of them, and would see some rows of the epoch twice and others not at all.

    Args:
        sampler: of transformers, whose rows are grouped.
        seed: of the run.

    Example:
        >>> rows = LengthGroupedSampler(2, lengths=[3, 9, 3, 9, 5, 5])
        >>> one, other = EpochSeededGroups(rows, seed=1), EpochSeededGroups(rows, seed=1)
        >>> list(one) == list(other), list(one) == list(one)
        (True, True)
        >>> other.set_epoch(1)
        >>> list(one) == list(other)
        False
    """

    def __init__(self, sampler: LengthGroupedSampler, seed: int):
        super().__init__(sampler.batch_size, lengths=sampler.lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Told by the data loader before each epoch, counted from 0."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return super().__iter__()
