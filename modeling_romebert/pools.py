"""Depth pools: what is left of several batches at the same depth is cut into batches anew.

A layer has a price that does not depend on its rows: reading its weights, starting its operators. Deep layers see few rows of each
batch, and few rows do not earn it; joined with those of other batches they do. A scheduler over the steps of walk.py: results are
those of the walk.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from .batching import cut, fill, level
from .layouts import Padded
from .streams import ONE_STREAM, Streams
from .walk import Left, Walk, merge

# Full batches that a pool holds before it goes on: what bounds the wait of a row, and the memory.
POOL_BATCHES = 32


def walk_in_pools(
    walks: Iterable[Callable[[], Walk]], batch_tokens: int, pool_batches: int = POOL_BATCHES, streams: Streams = ONE_STREAM
) -> Iterator[Left]:
    """Take walks to their end, with survivors of the same depth in common batches.

    Each walk takes its first step, and what is left of it waits in a pool. When the pool holds `pool_batches` full batches, and at
    the end, its rows go on depth by depth, before each cut anew into the batches that take the least time (`batching.cut`). Rows
    that lie end to end are cut before their first step too: where nothing is padded, full batches are best (`batching.fill`), and
    the last of them are made equal (`batching.level`), so that no stream waits for another.

    Args:
        walks: functions that begin a walk each, called when its turn has come; their rows have different numbers. Little is
            padded where rows that follow each other have similar lengths.
        batch_tokens: so many, padding included, fill a batch.
        pool_batches: so many full batches wait at most; and those that the streams are at.
        streams: take the steps, several at once; see streams.py.

    Yields:
        Rows in the order in which they leave.
    """
    pool: deque[Walk] = deque()
    tokens = 0  # in the pool
    for walk, left in streams.map(Walk.advance, _begun(walks, batch_tokens, streams.count)):
        if left is not None:
            yield left
        if len(walk):
            pool.append(walk)
            tokens += walk.batch.cells
        if tokens >= pool_batches * batch_tokens:
            yield from _to_the_end(pool, batch_tokens, streams)
            tokens = 0
    yield from _to_the_end(pool, batch_tokens, streams)


def _begun(walks: Iterable[Callable[[], Walk]], batch_tokens: int, streams: int) -> Iterator[Walk]:
    """Begin walks: padded ones as they are, the rows of the others in full batches."""
    waiting: deque[Walk] = deque()
    for begin in walks:
        waiting.append(begin())
        if isinstance(waiting[-1].batch, Padded):
            padded = waiting.pop()
            yield from _batches(waiting, batch_tokens, streams)
            yield padded
        elif sum(walk.batch.cells for walk in waiting) >= batch_tokens:
            *full, _ = fill(_lengths(waiting), batch_tokens)  # the last one may take more
            for count in full:
                yield _take(waiting, count)
    yield from _batches(waiting, batch_tokens, streams)


def _to_the_end(pool: deque[Walk], batch_tokens: int, streams: Streams) -> Iterator[Left]:
    """Walks at the same depth -> their rows as they leave; empties the pool."""
    while pool:
        deeper: deque[Walk] = deque()
        for walk, left in streams.map(Walk.advance, _batches(pool, batch_tokens, streams.count)):
            if left is not None:
                yield left
            if len(walk):
                deeper.append(walk)
        pool.extend(deeper)


def _batches(pool: deque[Walk], batch_tokens: int, streams: int) -> Iterator[Walk]:
    """Walks at the same depth -> the same rows in their order in other batches; empties the pool as it goes."""
    padded, lengths = any(isinstance(walk.batch, Padded) for walk in pool), _lengths(pool)
    for count in cut(lengths, batch_tokens) if padded else level(lengths, batch_tokens, streams):
        yield _take(pool, count)


def _lengths(walks: Iterable[Walk]) -> list[int]:
    return [length for walk in walks for length in walk.batch.lengths]


def _take(pool: deque[Walk], count: int) -> Walk:
    """Take so many rows off the front of the pool."""
    parts: list[Walk] = []
    while count:
        walk = pool.popleft()
        if len(walk) > count:
            pool.appendleft(walk.part(count, len(walk)))
            walk = walk.part(0, count)
        parts.append(walk)
        count -= len(walk)
    return merge(parts)
