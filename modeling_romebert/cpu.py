"""What a CPU needs for speed: workers that share its threads, and layers with prepacked weights.

Workers run several batches at once, each on its share of the threads. Threads that work on one batch wait for
the slowest of them after every operator, and most of them idle through what is too short to share. Batches
need nothing of each other.

Prepacked weights: torch reorders the weights of a matrix product in every call. In a full batch that does not
show; for the few tokens that are left after rows have exited it costs as much as the product. oneDNN, which
torch carries, takes weights that were reordered beforehand. A reordered copy would go stale whenever somebody
writes to the weight, and not every way of writing can be seen (fused optimizers and `.data` leave no trace).
So the model never holds one: copies of its layers do, which share all else with it, are made anew for each
scoring pass, and are gone when it ends.
"""

import copy
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn

# Workers of one pass at most. Two, of one thread each, were measured to pay on two cores; more have not been
# measured.
MOST_WORKERS = 4
# Tokens of one worker that are worth starting it, which takes some 20 ms.
WORKER_TOKENS = 8192

_SETTING_THREADS = threading.Lock()

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """`count` threads that share the work of one; a single worker is the caller's own thread.

    See `open_workers`.
    """

    def __init__(self, executor: ThreadPoolExecutor | None = None, count: int = 1):
        self.count, self._executor = count, executor

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Generator[tuple[Item, Result], None, None]:
        """Each item, none of them `None`, and what the function makes of it, in order.

        Items are read in the caller's thread, few of them ahead.
        """
        rest = iter(items)
        return self.run(function, lambda: next(rest, None))

    def run(
        self, function: Callable[[Item], Result], next_item: Callable[[], Item | None]
    ) -> Generator[tuple[Item, Result], None, None]:
        """`map` for items that may depend on earlier results.

        `next_item` gives `None` where there is nothing to do before it has seen one more result. When it
        gives that and nothing is on its way, this ends. It is called in the caller's thread, at the same
        points every time: time plays no part in the order.
        """
        if self._executor is None:
            while (item := next_item()) is not None:
                yield item, function(item)
            return
        work = _with_modes_of_this_thread(function)
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


@cache
def keep_freed_memory() -> None:
    """Let this process keep up to 62 MiB that it has freed, instead of asking the system for them again;
    glibc only.

    glibc gives the end of its heap back as soon as twice as much is free there as the largest block that it
    ever freed on its own. What a layer needs between two of its steps is about as much, and going back and
    forth took a seventh of bulk scoring's time (6 layers x 384, AVX2, two threads). So a large block is freed
    once; it is never written, and takes no memory.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def workers_for(device: torch.device, tokens: int) -> int:
    """How many workers so many tokens are worth: on a CPU as many as it has threads, up to `MOST_WORKERS`.

    One where torch is built without OpenMP: its threads could not be shared out then.
    """
    if device.type != "cpu" or not torch.backends.openmp.is_available():
        return 1
    return max(1, min(torch.get_num_threads(), MOST_WORKERS, tokens // WORKER_TOKENS))


@contextmanager
def open_workers(count: int) -> Iterator[Workers]:
    """Share the threads of torch among `count` workers, for the time of a `with`.

    Example:
        >>> with open_workers(2) as workers:
        ...     list(workers.map(lambda x: x * x, [1, 2, 3]))
        [(1, 1), (2, 4), (3, 9)]
    """
    if count == 1:
        yield Workers()
        return
    with ThreadPoolExecutor(count, "worker") as executor:
        _share_threads(executor, count)
        yield Workers(executor, count)


def take_number_of_threads() -> None:
    """Let the present thread take torch's number of threads over now, if it has not yet, while nobody sets it
    for others.
    """
    with _SETTING_THREADS:
        torch.get_num_threads()


def _share_threads(executor: ThreadPoolExecutor, count: int) -> None:
    """Give each worker its share of torch's threads.

    torch holds the number for each thread, but new threads begin with the one that any thread set last. So
    the caller sets its own again, and nobody else may look meanwhile.
    """
    with _SETTING_THREADS:
        whole, all_here = torch.get_num_threads(), threading.Barrier(count)

        def begin() -> None:
            all_here.wait()  # each worker takes one of these calls
            torch.set_num_threads(max(1, whole // count))
            # A thread takes the number over when it first looks: now, not after the caller set its own
            torch.get_num_threads()

        for begun in [executor.submit(begin) for _ in range(count)]:
            begun.result()
        torch.set_num_threads(whole)


def _with_modes_of_this_thread(function: Callable[[Item], Result]) -> Callable[[Item], Result]:
    """A function for other threads, which have gradients on and neither inference mode nor autocast, whatever
    this one has.
    """
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    autocast, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def run(item: Item) -> Result:
        with (
            torch.inference_mode(inference),
            torch.set_grad_enabled(gradients),
            torch.autocast("cpu", dtype, autocast),
        ):
            return function(item)

    return run


# Where this was measured to pay. With AVX2 alone, torch's own product is as fast for the full batches of bulk
# scoring.
PAYS_ON = ("AVX512",)
# Tokens of a pass from which on reordering all weights, which takes about as long as 100 tokens, is lost in
# the noise.
PREPACKING_TOKENS = 2048


class PrepackedLinear(nn.Module):
    """The product of an `nn.Linear` with a copy of its weight in oneDNN's order, without gradients.

    (..., I) -> (..., O)
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.bias = linear.bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, input: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(input, self._weight, self.bias, "none", [], "")


def prepacked(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Layers of a model -> layers that compute the same, up to rounding, with prepacked weights.

    Modules are copied, not parameters: hooks of the layers run as before, and the model stays as it is. A
    module that occurs several times is copied once. Subclasses of `nn.Linear` stay as they are.

    Example:
        >>> layer = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> (copy,) = prepacked([layer])
        >>> type(copy[0]).__name__, type(layer[0]).__name__
        ('PrepackedLinear', 'Linear')
    """
    copies: dict[nn.Module, nn.Module] = {}
    return [_copy(layer, copies) for layer in layers]


def _copy(module: nn.Module, copies: dict[nn.Module, nn.Module]) -> nn.Module:
    if module not in copies:
        if type(module) is nn.Linear and not _has_hooks(module):
            copies[module] = PrepackedLinear(module)
        else:
            copies[module] = copy.copy(module)
            copies[module]._modules = {
                name: None if child is None else _copy(child, copies)
                for name, child in module._modules.items()
            }
    return copies[module]


def _has_hooks(module: nn.Module) -> bool:
    """Whether somebody watches this very module, or computes its weight anew."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def pays(model: nn.Module) -> bool:
    """Whether to prepack: on a processor where it was measured to pay, for a dtype that oneDNN multiplies
    there.
    """
    weight = next(model.parameters())
    return (
        weight.is_cpu
        and torch.backends.cpu.get_cpu_capability() in PAYS_ON
        and not torch.is_autocast_enabled("cpu")
        and can_prepack(weight.dtype)
    )


@cache
def can_prepack(dtype: torch.dtype) -> bool:
    """Whether this build of torch and this processor can: fp32 always, half precision where the processor
    multiplies it.

    The two operators are those that torch's own compiler uses; they have no public name.
    """
    operators = ("_reorder_linear_weight", "_linear_pointwise")
    if not torch.backends.mkldnn.is_available() or not all(
        hasattr(torch.ops.mkldnn, name) for name in operators
    ):
        return False
    asks = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if dtype in asks:
        return hasattr(torch.ops.mkldnn, asks[dtype]) and getattr(torch.ops.mkldnn, asks[dtype])()
    return dtype == torch.float32
