"""Streams take the work of one thread: the same results in the same order, the same modes of torch, and nothing left behind."""

import threading
import time
from contextlib import closing

import pytest
import torch
from modeling_romebert.streams import open_streams, streams_for
from tiny import build, spread_exits, tiny_texts, tiny_tokenizer

from modeling_romebert import score, streams
from modeling_romebert.early_exit import Walk

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

    with open_streams(count) as several:
        assert several.count == count
        assert list(several.map(slow_at_first, range(9))) == [(item, item * item) for item in range(9)]
        assert list(several.map(slow_at_first, [])) == []


def test_items_run_side_by_side(two_threads):
    meet = threading.Barrier(2, timeout=20)
    with open_streams(2) as several:
        assert len(list(several.map(lambda item: meet.wait(), range(4)))) == 4  # alone, each would wait for another


def test_items_are_read_in_the_caller_s_thread_and_few_ahead(two_threads):
    read, readers = [], set()

    def items():
        for item in range(20):
            read.append(item)
            readers.add(threading.current_thread())
            yield item

    with open_streams(2) as several:
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
    with open_streams(count) as several:
        for item, result in several.run(lambda item: item + 2, next_item):
            assert result == item + 2
            seen.append(item)
            if result <= 50:
                waiting.append(result)
    assert seen == list(range(1, 51)) and asked[-1] == 0


def test_each_stream_has_its_share_of_the_threads(two_threads):
    torch.set_num_threads(4)
    with open_streams(2) as several:
        assert {threads for _, threads in several.map(lambda item: torch.get_num_threads(), range(4))} == {2}
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == in_new_thread(torch.get_num_threads) == 4
    with open_streams(1) as one:
        assert next(one.map(lambda item: torch.get_num_threads(), [0])) == (0, 4)
    torch.set_num_threads(2)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_modes_of_torch_are_those_of_the_caller(inference, gradients, autocast, two_threads):
    def modes(item=None):
        x = torch.ones(2, 2, requires_grad=True) @ torch.ones(2, 2)
        return x.is_inference(), x.requires_grad, x.dtype

    with (
        open_streams(2) as several,
        torch.inference_mode(inference),
        torch.set_grad_enabled(gradients),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        assert {found for _, found in several.map(modes, range(4))} == {modes()}
        assert len({modes(), in_new_thread(modes)}) == (1 if gradients and not inference and not autocast else 2)


def test_an_error_comes_where_its_item_would_and_ends_the_rest(two_threads):
    begun = []

    def fails(item):
        begun.append(item)
        if item == 3:
            raise KeyError(item)
        return item

    seen = []
    with pytest.raises(KeyError, match="3"), open_streams(2) as several:
        for item, _ in several.map(fails, range(100)):
            seen.append(item)
    assert seen == [0, 1, 2] and max(begun) <= 6


def test_closed_early_it_runs_no_more_items(two_threads):
    begun = []
    with open_streams(2) as several, closing(several.map(begun.append, range(100))) as run:
        next(run)
    assert len(begun) <= 4


def test_streams_are_for_a_cpu_with_threads_and_enough_to_do(two_threads, monkeypatch):
    cpu, enough = torch.device("cpu"), 10**6
    assert streams_for(cpu, enough) == 2
    assert streams_for(cpu, 2 * streams.STREAM_TOKENS - 1) == streams_for(cpu, 0) == 1
    assert streams_for(torch.device("cuda"), enough) == 1
    torch.set_num_threads(1)
    assert streams_for(cpu, enough) == 1
    torch.set_num_threads(8)
    assert streams_for(cpu, enough) == streams.STREAMS == 4
    monkeypatch.setattr(torch.backends.openmp, "is_available", lambda: False)
    assert streams_for(cpu, enough) == 1
    torch.set_num_threads(2)


# ---- bulk scoring in streams


@pytest.fixture
def used(monkeypatch, two_threads):
    """Threads that layers ran in; streams are used for however few tokens."""
    monkeypatch.setattr(streams, "STREAM_TOKENS", 1)
    threads = set()
    hook = MODEL.layers[0].register_forward_pre_hook(lambda *_: threads.add(threading.current_thread().name[:6]))
    yield threads
    hook.remove()


@pytest.mark.parametrize("pools", [False, True])
@pytest.mark.parametrize("policy", [ENTROPY, {"name": "patience", "patience": 2}, False], ids=str)
def test_bulk_scoring_in_streams_is_one_by_one(policy, pools, used):
    expected = list(score(MODEL, tiny_tokenizer(), TEXTS, exit_policy=policy, batch_size=1))
    assert used == {threading.current_thread().name[:6]}  # a text alone needs no stream
    used.clear()
    found = list(score(MODEL, tiny_tokenizer(), TEXTS, exit_policy=policy, depth_pools=pools, batch_tokens=200))
    assert used == {"stream"}
    for one, other in zip(found, expected, strict=True):
        assert one == {**other, "score": pytest.approx(other["score"], abs=1e-5)}


@pytest.mark.parametrize("pools", [False, True])
def test_an_error_in_a_stream_is_told_by_its_text(pools, used):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"w{index}" for index in range(100)])  # beyond the model's vocabulary of 100
    texts = [*TEXTS[:90], "film w99", *TEXTS[90:]]
    settings = {"batch_tokens": 100, "depth_pools": pools, "exit_policy": ENTROPY if pools else False}
    with pytest.raises(RuntimeError, match="text 90: IndexError"):
        list(score(MODEL, tokenizer, texts, **settings))
    skipped = list(score(MODEL, tokenizer, texts, on_error="skip", **settings))
    assert [row for row, result in enumerate(skipped) if "error" in result] == [90] and "stream" in used


def test_between_results_torch_has_all_its_threads(used):
    results = score(MODEL, tiny_tokenizer(), TEXTS, window=50, batch_tokens=100)
    assert {torch.get_num_threads() for _ in results} == {2} and "stream" in used


def test_an_interrupt_leaves_no_thread(monkeypatch, used):
    advance = Walk.advance

    def interrupted(walk):
        if walk.depth:
            raise KeyboardInterrupt
        return advance(walk)

    monkeypatch.setattr(Walk, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(score(MODEL, tiny_tokenizer(), TEXTS, batch_tokens=100))
