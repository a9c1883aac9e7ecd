"""Depth pools: what is left of several batches at the same depth goes on as one batch.

A layer has a price that does not depend on its rows: reading its weights, starting its operators. Deep layers see few rows of each
batch, and few rows do not earn it; joined with those of other batches they do. A scheduler over the steps of walk.py: results are
those of the walk.
"""

from collections.abc import Callable, Iterable, Iterator

from .batching import whole_groups
from .walk import Left, Walk, merge

# What a step costs whatever its rows, in tokens of a layer: to join rows pays while it takes less padding. Measured on a CPU.
STEP_TOKENS = 64


def walk_in_pools(walks: Iterable[Callable[[], Walk]], enough_tokens: int, max_wait: int = 32) -> Iterator[Left]:
    """Take walks to their end, with survivors of the same depth merged.

    When the rows of a pool fill a batch, as many go on as do not overfill it, in a number that runs well (`whole_groups`). All of
    them go on when rows of quite another length come to their depth, when the first have waited for `max_wait` further batches to
    start, and at the end: there the shallowest first, so that deeper pools fill up once more.

    Args:
        walks: functions that begin a walk each, called when its turn has come; their rows have different numbers.
        enough_tokens: so many, padding included, fill a batch.
        max_wait: batches that may start while a row waits.

    Yields:
        Rows in the order in which they leave.
    """
    pools: dict[int, list[Walk]] = {}  # by depth
    since: dict[int, int] = {}  # batches that had been started when a pool got its first rows

    def go_on(walk: Walk, started: int) -> Iterator[Left]:
        left = walk.advance()
        if left is not None:
            yield left
        if len(walk):
            if walk.depth in pools and not _join_well([*pools[walk.depth], walk]):
                yield from go_on(take(walk.depth), started)
            pools.setdefault(walk.depth, []).append(walk)
            since.setdefault(walk.depth, started)

    def take(depth: int, over: int = 0) -> Walk:
        """The rows of a pool, but for the last `over` of them."""
        walks = pools.pop(depth)
        waiting: list[Walk] = []
        while over > 0:
            last = walks.pop()
            if len(last) > over:
                goes, last = last.split(len(last) - over)
                walks.append(goes)
            waiting.insert(0, last)
            over -= len(last)
        if waiting:
            pools[depth] = waiting
        else:
            del since[depth]
        return merge(walks)

    for started, begin in enumerate(walks, start=1):
        yield from go_on(begin(), started)
        for depth in range(1, max(pools, default=0) + 1):  # downwards, so that rows go as deep as pools are full
            here = pools.get(depth, [])
            if here and started - since[depth] >= max_wait:
                yield from go_on(take(depth), started)
            elif sum(rows.cells for rows in here) >= enough_tokens:
                rows, fit = sum(map(len, here)), enough_tokens // max(rows.hidden.shape[1] for rows in here)
                yield from go_on(take(depth, over=rows - whole_groups(min(rows, max(fit, 1)))), started)
    while pools:
        yield from go_on(take(min(pools)), started)


def _join_well(walks: list[Walk]) -> bool:
    """Whether the padding that merging adds costs less than the steps that it saves."""
    added = sum(len(walk) for walk in walks) * max(walk.hidden.shape[1] for walk in walks) - sum(walk.cells for walk in walks)
    return added <= STEP_TOKENS * (len(walks) - 1)
