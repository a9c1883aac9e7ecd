"""Depth pools: what is left of several batches at the same depth is cut into batches anew.

A layer has a price that does not depend on its rows: reading its weights, starting its operators. Deep layers see few rows of each
batch, and few rows do not earn it; joined with those of other batches they do. A scheduler over the steps of walk.py: results are
those of the walk.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator

from .batching import cut, fill, level
from .layouts import Padded
from .streams import ONE_STREAM, Streams
from .walk import Left, Walk, merge

# Full batches that pools hold before they are emptied: what bounds the wait of a row, and the memory.
POOL_BATCHES = 16


def walk_in_pools(
    walks: Iterable[Callable[[], Walk]], batch_tokens: int, pool_batches: int = POOL_BATCHES, streams: Streams = ONE_STREAM
) -> Iterator[Left]:
    """Take walks to their end, with survivors of the same depth in common batches.

    Each walk takes its first step, and what is left of it waits in a pool. When the pools hold `pool_batches` full batches, and at
    the end, their rows go on depth by depth, before each cut anew into the batches that take the least time (`batching.cut`). Rows
    that lie end to end are cut before their first step too: where nothing is padded, full batches are best (`batching.fill`), and
    the last of them are made equal (`batching.level`) for several streams. Streams that would wait for the last batches of a depth
    begin with full ones of the next.

    Args:
        walks: functions that begin a walk each, called when its turn has come; their rows have different numbers. Little is
            padded where rows that follow each other have similar lengths.
        batch_tokens: so many, padding included, fill a batch.
        pool_batches: so many full batches wait at most; and those that the streams are at.
        streams: take the steps, several at once; see streams.py.

    Yields:
        Rows in the order in which they leave.
    """
    pools = _Pools(walks, batch_tokens, pool_batches, streams.count)
    for walk, left in streams.run(Walk.advance, pools.next_batch):
        if left is not None:
            yield left
        pools.put_back(walk)


class _Pools:
    """Rows that wait, by depth, and the order in which they go on. For arguments see `walk_in_pools`."""

    def __init__(self, walks: Iterable[Callable[[], Walk]], batch_tokens: int, pool_batches: int, streams: int):
        self._walks: Iterator[Callable[[], Walk]] | None = iter(walks)  # that have not begun; `None` when all have
        self._batch_tokens, self._most, self._streams = batch_tokens, pool_batches * batch_tokens, streams
        self._waiting: defaultdict[int, deque[Walk]] = defaultdict(deque)  # by depth, in their order
        self._under_way: deque[int] = deque()  # the depths from which batches take their step now
        self._emptying = False  # the pools were full: no walk begins before all that waited are through
        # The next batches: from which depth, and how many rows each.
        self._depth, self._counts = 0, deque[int]()

    def next_batch(self) -> Walk | None:
        """The batch that goes on next, shallow ones first; `None` while that depends on those under way, and in the end."""
        if not self._counts:
            self._plan()
        if not self._counts:
            return None
        self._under_way.append(self._depth)
        return _take(self._waiting[self._depth], self._counts.popleft())

    def put_back(self, walk: Walk) -> None:
        """Take back what is left of a batch; they come in the order in which they went."""
        self._under_way.popleft()
        if len(walk):
            self._waiting[walk.depth].append(walk)
        waiting = [walk for depth, pool in self._waiting.items() if depth for walk in pool]
        if sum(walk.batch.cells for walk in waiting) >= self._most:
            self._emptying = True
        elif not waiting and not self._under_way:
            self._emptying = False

    def _plan(self) -> None:
        """Cut the rows that wait at one depth into batches, or some of them off, if it is time for any."""
        if not self._emptying:
            self._begin()
        more = self._walks is not None and not self._emptying  # whether more rows will come to this depth
        for depth in sorted(depth for depth, pool in self._waiting.items() if pool and not (self._emptying and depth == 0)):
            more = more or any(before < depth for before in self._under_way)
            if counts := self._batches_at(depth, more):
                self._depth, self._counts = depth, deque(counts)
                return
            more = True

    def _batches_at(self, depth: int, more: bool) -> list[int]:
        """Rows of each batch: all batches of a depth to which no more rows come, else a full one, if each stream could have one."""
        pool = self._waiting[depth]
        lengths = _lengths(pool)
        if any(isinstance(walk.batch, Padded) for walk in pool):
            if depth == 0:
                return [len(pool[0])]
            return [] if more else cut(lengths, self._batch_tokens)
        if not more:
            return level(lengths, self._batch_tokens, self._streams)
        full = fill(lengths, self._batch_tokens)[:-1]  # the last one may take more
        return full[:1] if len(full) >= self._streams else []

    def _begin(self) -> None:
        """Begin walks until they more than fill a batch for each stream. A padded one is a batch as it is, and goes first."""
        pool = self._waiting[0]
        while self._walks is not None and len(fill(_lengths(pool), self._batch_tokens)) <= self._streams:
            begin = next(self._walks, None)
            if begin is None:
                self._walks = None
            elif isinstance((walk := begin()).batch, Padded):
                pool.appendleft(walk)
                return
            else:
                pool.append(walk)


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
