"""Workers take the work of one thread: the same results in the same order, the same modes of torch, and
nothing left behind.
"""

import threading
import time
from contextlib import closing

import pytest
import torch
from tiny import build, spread_exits, tiny_texts, tiny_tokenizer

from modeling_romebert import cpu as cpu_module
from modeling_romebert import score
from modeling_romebert.cpu import open_workers, workers_for
from modeling_romebert.early_exit import ActiveBatch

ENTROPY = {"name": "entropy", "threshold": 0.6}
TEXTS = tiny_texts(150, seed=3)
MODEL = spread_exits(build(exit_policy=ENTROPY), TEXTS)


@pytest.fixture
def two_threads():
    """torch has two threads in the test; what it leaves behind is checked."""
    before, alive = torch.get_num_threads(), set(threading.enumerate())
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2 and set(threading.enumerate()) == alive
    torch.set_num_threads(before)


def in_new_thread(function):
    """What a function gives in a thread that starts now."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_the_order_of_their_items(count, two_threads):
    def slow_at_first(item):
        time.sleep(0.05 if item == 0 else 0)
        return item * item

    with open_workers(count) as several:
        assert several.count == count
        assert list(several.map(slow_at_first, range(9))) == [(item, item * item) for item in range(9)]
        assert list(several.map(slow_at_first, [])) == []


def test_items_run_side_by_side(two_threads):
    meet = threading.Barrier(2, timeout=20)
    with open_workers(2) as several:
        assert (
            len(list(several.map(lambda item: meet.wait(), range(4)))) == 4
        )  # alone, each would wait for another


def test_items_are_read_in_the_caller_s_thread_and_few_ahead(two_threads):
    read, readers = [], set()

    def items():
        for item in range(20):
            read.append(item)
            readers.add(threading.current_thread())
            yield item

    with open_workers(2) as several:
        for number, _ in enumerate(several.map(lambda item: item, items()), start=1):
            assert len(read) <= number + 2
    assert readers == {threading.current_thread()} and len(read) == 20


@pytest.mark.parametrize("count", [1, 2, 3])
def test_items_may_depend_on_results(count, two_threads):
    waiting, asked = [1, 2], []  # each item below 50 gives the next but one

    def next_item():
        asked.append(len(waiting))
        return waiting.pop(0) if waiting else None

    seen = []
    with open_workers(count) as several:
        for item, result in several.run(lambda item: item + 2, next_item):
            assert result == item + 2
            seen.append(item)
            if result <= 50:
                waiting.append(result)
    assert seen == list(range(1, 51)) and asked[-1] == 0


def test_each_worker_has_its_share_of_the_threads_and_nobody_else_less(two_threads):
    torch.set_num_threads(4)
    with open_workers(2) as several:
        assert {threads for _, threads in several.map(lambda item: torch.get_num_threads(), range(4))} == {2}
        assert torch.get_num_threads() == in_new_thread(torch.get_num_threads) == 4
        assert {threads for _, threads in several.map(lambda item: torch.get_num_threads(), range(4))} == {2}
    assert torch.get_num_threads() == in_new_thread(torch.get_num_threads) == 4
    with open_workers(1) as one:
        assert next(one.map(lambda item: torch.get_num_threads(), [0])) == (0, 4)
    torch.set_num_threads(2)


@pytest.mark.slow
def test_concurrent_passes_leave_the_number_of_threads_as_it_was(two_threads, monkeypatch):
    monkeypatch.setattr(cpu_module, "WORKER_TOKENS", 1)
    found, expected = [], list(score(MODEL, tiny_tokenizer(), TEXTS))

    def one_pass(delay):
        time.sleep(delay)
        for _ in range(3):
            results = list(score(MODEL, tiny_tokenizer(), TEXTS, batch_tokens=100))
            found.append(([one["exit_layer"] for one in results], torch.get_num_threads()))

    threads = [threading.Thread(target=one_pass, args=(0.01 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [([one["exit_layer"] for one in expected], 2)] * 12
    assert torch.get_num_threads() == in_new_thread(torch.get_num_threads) == 2


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_modes_of_torch_are_those_of_the_caller(inference, gradients, autocast, two_threads):
    def modes(item=None):
        x = torch.ones(2, 2, requires_grad=True) @ torch.ones(2, 2)
        return x.is_inference(), x.requires_grad, x.dtype

    with (
        open_workers(2) as several,
        torch.inference_mode(inference),
        torch.set_grad_enabled(gradients),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        assert {found for _, found in several.map(modes, range(4))} == {modes()}
        assert len({modes(), in_new_thread(modes)}) == (
            1 if gradients and not inference and not autocast else 2
        )


def test_an_error_comes_where_its_item_would_and_ends_the_rest(two_threads):
    begun = []

    def fails(item):
        begun.append(item)
        if item == 3:
            raise KeyError(item)
        return item

    seen = []
    with pytest.raises(KeyError, match="3"), open_workers(2) as several:
        for item, _ in several.map(fails, range(100)):
            seen.append(item)
    assert seen == [0, 1, 2] and max(begun) <= 6


def test_closed_early_it_runs_no_more_items(two_threads):
    begun = []
    with open_workers(2) as several, closing(several.map(begun.append, range(100))) as run:
        next(run)
    assert len(begun) <= 4


def test_workers_are_for_a_cpu_with_threads_and_enough_to_do(two_threads, monkeypatch):
    cpu, enough = torch.device("cpu"), 10**6
    assert workers_for(cpu, enough) == 2
    assert workers_for(cpu, 2 * cpu_module.WORKER_TOKENS - 1) == workers_for(cpu, 0) == 1
    assert workers_for(torch.device("cuda"), enough) == 1
    torch.set_num_threads(1)
    assert workers_for(cpu, enough) == 1
    torch.set_num_threads(8)
    assert workers_for(cpu, enough) == cpu_module.MOST_WORKERS == 4
    monkeypatch.setattr(torch.backends.openmp, "is_available", lambda: False)
    assert workers_for(cpu, enough) == 1
    torch.set_num_threads(2)


# ---- bulk scoring with workers


@pytest.fixture
def used(monkeypatch, two_threads):
    """Threads that layers ran in; workers are used for however few tokens."""
    monkeypatch.setattr(cpu_module, "WORKER_TOKENS", 1)
    threads = set()
    hook = MODEL.layers[0].register_forward_pre_hook(
        lambda *_: threads.add(threading.current_thread().name[:6])
    )
    yield threads
    hook.remove()


@pytest.mark.parametrize("policy", [ENTROPY, {"name": "patience", "patience": 2}, False], ids=str)
def test_bulk_scoring_with_workers_is_one_by_one(policy, used):
    texts = TEXTS[:60]
    expected = list(score(MODEL, tiny_tokenizer(), texts, exit_policy=policy, batch_size=1))
    assert used == {threading.current_thread().name[:6]}  # a text alone needs no worker
    for rebatching in (False, True):
        used.clear()
        settings = {"exit_policy": policy, "rebatching": rebatching, "batch_tokens": 100}
        found = list(score(MODEL, tiny_tokenizer(), texts, **settings))
        assert used == {"worker"}
        for one, other in zip(found, expected, strict=True):
            assert one == {**other, "score": pytest.approx(other["score"], abs=1e-5)}


@pytest.mark.parametrize("rebatching", [False, True])
def test_an_error_in_a_worker_is_raised_as_it_is(rebatching, used):
    def fails(module, inputs):
        raise KeyError("a fault of the model")

    hook = MODEL.layers[1].register_forward_pre_hook(fails)
    try:
        with pytest.raises(KeyError, match="a fault of the model"):
            list(
                score(
                    MODEL, tiny_tokenizer(), TEXTS, batch_tokens=100, rebatching=rebatching, on_error="skip"
                )
            )
    finally:
        hook.remove()
    assert used == {"worker"}


def test_between_results_torch_has_all_its_threads(used):
    results = score(MODEL, tiny_tokenizer(), TEXTS, window=50, batch_tokens=100)
    assert {torch.get_num_threads() for _ in results} == {2} and "worker" in used


def test_an_interrupt_leaves_no_thread(monkeypatch, used):
    step = ActiveBatch.step

    def interrupted(batch):
        if batch.depth:
            raise KeyboardInterrupt
        return step(batch)

    monkeypatch.setattr(ActiveBatch, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(score(MODEL, tiny_tokenizer(), TEXTS, batch_tokens=100))
