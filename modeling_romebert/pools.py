"""Depth pools: what is left of several batches at the same depth goes on as one batch.

Deep layers see few rows of each batch. Where few rows run no faster than many, which is so on a GPU, waiting for more pays; on a
CPU it does not, since some hundred tokens keep it busy. A scheduler over the steps of walk.py: results are those of the walk.
"""

from collections.abc import Callable, Iterable, Iterator

from .walk import Left, Walk, merge


def walk_in_pools(walks: Iterable[Callable[[], Walk]], batch_tokens: int, max_wait: int = 8) -> Iterator[Left]:
    """Take walks to their end, with survivors of the same depth merged.

    A pool goes on when its rows make a full batch, the deepest first, or when its first rows have waited for `max_wait` further
    batches to start. At the end all go on, the shallowest first, so that deeper pools fill up once more.

    Args:
        walks: functions that begin a walk each, called when its turn has come; their rows have different numbers.
        batch_tokens: tokens of a full batch, padding included.
        max_wait: batches that may start while a row waits.

    Yields:
        Rows in the order in which they leave.
    """
    pools: dict[int, list[Walk]] = {}  # by depth
    since: dict[int, int] = {}  # batches that had been started when a pool got its first rows

    def go_on(walk: Walk, started: int) -> Left:
        left = walk.advance()
        if len(walk):
            pools.setdefault(walk.depth, []).append(walk)
            since.setdefault(walk.depth, started)
        return left

    def take(depth: int) -> Walk:
        del since[depth]
        return merge(pools.pop(depth))

    started = 0
    for begin in walks:
        started += 1
        yield go_on(begin(), started)
        for depth in sorted(pools, reverse=True):
            if sum(walk.cells for walk in pools[depth]) >= batch_tokens or started - since[depth] >= max_wait:
                yield go_on(take(depth), started)
    while pools:
        yield go_on(take(min(pools)), started)
