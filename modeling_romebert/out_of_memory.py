"""When there is not enough memory for a batch: which rows it was of, whatever raised it."""

from collections.abc import Callable
from typing import Any

import torch

from .early_exit import ActiveBatch


class OutOfMemory(Exception):
    """There was not enough memory for a batch of these rows."""

    def __init__(self, rows: list[int], reason: str):
        super().__init__(reason)
        self.rows = rows


def or_out_of_memory(function: Callable[[ActiveBatch], Any]) -> Callable[[ActiveBatch], Any]:
    """The same function, which tells for which rows there was not enough memory."""

    def run(batch: ActiveBatch) -> Any:
        rows = batch.rows
        try:
            return function(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error)
        # Outside of the handler, which would keep what the batch has in memory.
        raise OutOfMemory(rows, reason)

    return run


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # torch's allocator on a CPU
    return any(words in str(error) for words in ("can't allocate memory", "not enough memory"))
