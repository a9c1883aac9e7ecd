"""Dynamic rebatching: survivors of several batches at the same depth share one batch.

A layer has a price that does not depend on its rows, and few rows of a batch reach the deep layers. The
scheduler runs the deepest full batch that it has, else begins with new texts, so that few rows wait; when no
texts are left it empties the depths from the shallowest on. (Survivors that wait for company, by depth: DREX,
arXiv 2512.15705.)
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence

from .early_exit import ActiveBatch

# A batch that is made smaller than full, so that every worker has one, holds at least so many tokens.
LEAST_TOKENS = 256


class Scheduler:
    """The order in which rows run, and in which company.

        while batch := scheduler.schedule():
            exited = batch.step()
            scheduler.put_back(batch)

    With several workers batches are scheduled before earlier ones are put back; `put_back` takes them in the
    same order. What shares a batch depends on that order alone, not on time.

    Args:
        texts: rows in the order in which they begin; neighbours of like length pad little.
        lengths: tokens of each row.
        begin: rows -> their batch, before the first layer.
        batch_tokens: tokens of a full batch, padding included.
        batch_rows: rows of a full batch; `None`: any number.
        padded: batches are padded to their longest row.
        workers: how many batches run at once.
    """

    def __init__(
        self,
        texts: Sequence[int],
        lengths: Sequence[int],
        begin: Callable[[list[int]], ActiveBatch],
        batch_tokens: int,
        batch_rows: int | None = None,
        padded: bool = False,
        workers: int = 1,
    ):
        self._begin, self._padded, self._workers = begin, padded, workers
        self._batch_tokens, self._batch_rows = batch_tokens, batch_rows
        self._texts = deque(zip(texts, lengths, strict=True))
        self._waiting: defaultdict[int, deque[ActiveBatch]] = defaultdict(deque)  # by depth
        self._running: deque[int] = deque()  # depths of the batches under way

    def schedule(self) -> ActiveBatch | None:
        """The batch that goes on next; `None` when none is left, or while batches under way decide it."""
        for depth in sorted(self._waiting, reverse=True):
            count, is_full = self._fill(self._lengths_at(depth), self._batch_tokens)
            if is_full:
                return self._take(depth, count)
        if self._texts:
            return self._take_texts()
        depth = min(self._waiting, default=0)
        if not self._waiting or any(running < depth for running in self._running):
            return None  # what is under way may join what waits
        lengths = self._lengths_at(depth)
        # Of the tokens, for each idle worker.
        share = sum(lengths) // max(1, self._workers - len(self._running))
        count, _ = self._fill(lengths, min(self._batch_tokens, max(share, LEAST_TOKENS)))
        return self._take(depth, count)

    def put_back(self, batch: ActiveBatch) -> None:
        """Take back what is left of a batch after its step."""
        self._running.popleft()
        if len(batch):
            self._waiting[batch.depth].append(batch)

    def _lengths_at(self, depth: int) -> list[int]:
        return [length for batch in self._waiting[depth] for length in batch.lengths]

    def _fill(self, lengths: Iterable[int], batch_tokens: int) -> tuple[int, bool]:
        """Lengths of rows in their order -> how many go in one batch, at least one, and whether that is a
        full one.
        """
        return fill(lengths, batch_tokens, self._batch_rows, self._padded)

    def _take_texts(self) -> ActiveBatch:
        """Begin with a batch of new texts."""
        count, _ = self._fill((length for _, length in self._texts), self._batch_tokens)
        rows = [self._texts.popleft()[0] for _ in range(count)]
        self._running.append(0)
        return self._begin(rows)

    def _take(self, depth: int, count: int) -> ActiveBatch:
        """Take so many rows off the front of those that wait at a depth."""
        waiting, parts = self._waiting[depth], []
        while count:
            batch = waiting.popleft()
            if len(batch) > count:
                batch, rest = batch.split(count)
                waiting.appendleft(rest)
            parts.append(batch)
            count -= len(batch)
        if not waiting:
            del self._waiting[depth]
        self._running.append(depth)
        return parts[0].merge(parts)


def fill(
    lengths: Iterable[int], batch_tokens: int, batch_rows: int | None = None, padded: bool = False
) -> tuple[int, bool]:
    """Lengths of rows in their order -> how many of them go in one batch, and whether there were too many for
    one.

    Example:
        >>> fill([40, 40, 38, 30], 120), fill([40, 40], 120), fill([40, 2, 2], 120, batch_rows=2)
        ((3, True), (2, False), (2, True))
    """
    count = total = longest = 0
    for length in lengths:
        total, longest = total + length, max(longest, length)
        tokens = longest * (count + 1) if padded else total
        if count and (tokens > batch_tokens or count == batch_rows):
            return count, True
        count += 1
    return count, False


def batches_of(
    lengths: Sequence[int], batch_tokens: int, batch_rows: int | None = None, padded: bool = False
) -> list[int]:
    """Lengths of rows in their order -> how many of them go in each batch.

    Example:
        >>> batches_of([40, 40, 38, 38, 6, 6], batch_tokens=120)
        [3, 3]
    """
    counts, start = [], 0
    while start < len(lengths):
        count, _ = fill(lengths[start:], batch_tokens, batch_rows, padded)
        counts.append(count)
        start += count
    return counts
