"""Several batches at once on a CPU, each on its share of the threads.

Threads that work on one batch wait for the slowest of them after every operator, and most of them idle through what is too short to
share. Batches need nothing of each other: run side by side, each on fewer threads, they take less time than one after the other.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

# Streams at most. Two, of one thread each, were measured to pay on two cores; more have not been measured.
STREAMS = 4
# Tokens of one stream that are worth starting it, which takes some 20 ms: its first operators find no memory of their own yet.
STREAM_TOKENS = 8192

Item = TypeVar("Item")
Result = TypeVar("Result")


class Streams:
    """`count` threads that share the work of one; a single one is the caller's. See `open_streams`."""

    def __init__(self, executor: ThreadPoolExecutor | None = None, count: int = 1):
        self.count, self._executor = count, executor

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Generator[tuple[Item, Result], None, None]:
        """Each item, none of them `None`, and what the function makes of it, in order.

        Items are read in the caller's thread, few of them ahead.
        """
        rest = iter(items)
        return self.run(function, lambda: next(rest, None))

    def run(
        self, function: Callable[[Item], Result], next_item: Callable[[], Item | None]
    ) -> Generator[tuple[Item, Result], None, None]:
        """`map` for items that may depend on earlier results.

        `next_item` gives `None` where there is nothing to do before it has seen one more result. When it gives that and nothing is
        on its way, this ends. It is called in the caller's thread, at the same points every time: time plays no part in the order.
        """
        if self._executor is None:
            while (item := next_item()) is not None:
                yield item, function(item)
            return
        work = _as_in_this_thread(function)
        ahead: deque[tuple[Item, Future[Result]]] = deque()
        try:
            while True:
                item = next_item() if len(ahead) <= self.count else None
                if item is not None:
                    ahead.append((item, self._executor.submit(work, item)))
                elif ahead:
                    item, future = ahead.popleft()
                    yield item, future.result()
                else:
                    return
        finally:
            for _, future in ahead:
                future.cancel()


ONE_STREAM = Streams()


def streams_for(device: torch.device, tokens: int) -> int:
    """How many streams share so many tokens: on a CPU as many as it has threads, up to `STREAMS`, if there is enough to do.

    One where torch is built without OpenMP: its threads could not be shared out then.
    """
    if device.type != "cpu" or not torch.backends.openmp.is_available():
        return 1
    return max(1, min(torch.get_num_threads(), STREAMS, tokens // STREAM_TOKENS))


@contextmanager
def open_streams(count: int) -> Iterator[Streams]:
    """Share the threads of torch among `count` streams, for the time of a `with`.

    torch's number of threads is that of one stream meanwhile, also for threads that others start then.

    Example:
        >>> with open_streams(2) as streams:
        ...     list(streams.map(lambda x: x * x, [1, 2, 3]))
        [(1, 1), (2, 4), (3, 9)]
    """
    if count == 1:
        yield ONE_STREAM
        return
    threads = torch.get_num_threads()
    of_stream = max(1, threads // count)
    torch.set_num_threads(of_stream)
    try:
        with ThreadPoolExecutor(count, "stream", torch.set_num_threads, (of_stream,)) as executor:
            yield Streams(executor, count)
    finally:
        torch.set_num_threads(threads)


def _as_in_this_thread(function: Callable[[Item], Result]) -> Callable[[Item], Result]:
    """A function for other threads, which have gradients on and neither inference mode nor autocast, whatever this one has."""
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    autocast, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def run(item: Item) -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients), torch.autocast("cpu", dtype, autocast):
            return function(item)

    return run
