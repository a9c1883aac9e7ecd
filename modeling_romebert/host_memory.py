"""Memory of the host while many texts run: kept within a batch, given back between thousands of texts.

Both are about the allocator of glibc; with another C library nothing happens.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch


def keep_freed_memory() -> None:
    """From now on, let this process keep up to 62 MiB that it has freed, instead of asking the system for them again.

    glibc gives the end of its heap back as soon as twice as much is free there as the largest block that it ever freed on its own,
    blocks of up to 32 MiB counted. What a layer needs between two of its steps is about as much: memory went back and forth within
    every layer, a tenth of the time. So a large block is freed once; it is never written, and takes no memory.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's function of this name; `None` where the C library is another."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


def give_back_memory() -> None:
    """Give memory that is free between other memory back to the system; batches of ever other sizes leave such gaps."""
    if (trim := _malloc_trim()) is not None:
        trim(0)
