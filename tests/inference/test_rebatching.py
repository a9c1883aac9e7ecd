"""Rebatching gives what one batch gives, in full batches, with few rows waiting; one wait for the device per
exit.

What is said of both packed and padded batches is tested with both.
"""

import time
import unittest.mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import pairwise, short
from rebatched import active, run, texts_of
from tiny import (
    CLASSES,
    LAYERS,
    assert_same_results,
    build,
    padded_batch,
    spread_exits,
    tiny_texts,
    tiny_tokenizer,
)

from modeling_romebert import score, scoring
from modeling_romebert.backbones import Adapter
from modeling_romebert.batch_layout import PackedBatch, PaddedBatch, rounded_up
from modeling_romebert.early_exit import ActiveBatch, run_to_the_end
from modeling_romebert.exit_policies import ExitPolicy
from modeling_romebert.rebatching import Scheduler, batches_of, fill

POLICIES = [
    {"name": "entropy", "threshold": 0.6},
    {"name": "patience", "patience": 2},
    {"name": "patient_confidence", "patience": 2, "threshold": 0.5},
    {"name": "vote", "threshold": 1.1},
]
NEVER, ALWAYS = {"name": "entropy", "threshold": 0.0}, {"name": "entropy", "threshold": 1.0}


@pytest.fixture(params=[PackedBatch, PaddedBatch])
def layout(request, monkeypatch):
    """The kind of batch in the test: families whose texts can be packed are, or none is."""
    monkeypatch.setattr(Adapter, "packs", request.param is PackedBatch)
    return request.param


@pytest.fixture
def padded(monkeypatch):
    monkeypatch.setattr(Adapter, "packs", False)


class Calls:
    """Tokens of each call of each layer of a model, padding included, by depth from 1."""

    def __init__(self, model):
        self.tokens = {depth: [] for depth in range(1, LAYERS + 1)}
        for depth, layer in enumerate(model.layers, start=1):
            layer.register_forward_pre_hook(
                lambda _, inputs, depth=depth: self.tokens[depth].append(inputs[0].shape[:2].numel())
            )


# ---- the same as one batch


@pytest.mark.parametrize(
    ("policy", "batching", "layout", "pooling"),
    pairwise(POLICIES, [(1, 1), (200, 2), (10**6, 3)], [PackedBatch, PaddedBatch], ["cls", "mean"]),
    indirect=["layout"],
    ids=short,
)
@torch.no_grad()
def test_rebatching_gives_what_one_batch_gives(policy, batching, layout, pooling):
    batch_tokens, workers = batching
    model, (ids, mask) = build(exit_pooling=pooling), padded_batch()
    logits, exit_layer = run(model, texts_of(ids, mask), policy, batch_tokens, workers)
    expected = model(ids, mask, exit_policy=policy)
    assert torch.equal(exit_layer, expected.exit_layer) and len(exit_layer.unique()) >= 3
    torch.testing.assert_close(logits, expected.logits, rtol=0, atol=1e-5)


def states(batch):
    """Hidden states (t, H) of each row, without padding."""
    if isinstance(batch, PackedBatch):
        return batch.hidden[0, : sum(batch.lengths)].split(batch.lengths)
    return [row[:length] for row, length in zip(batch.hidden, batch.lengths, strict=True)]


@torch.no_grad()
def test_merged_batches_keep_every_row_s_states_and_memory(layout):
    model, policy = build(exit_pooling="mean"), {"name": "patience", "patience": 3}
    ids, mask = padded_batch()
    texts = texts_of(ids, mask)
    batches = [active(model, range(start, start + 16), texts, policy) for start in range(0, 64, 16)]
    for batch in [*batches, expected := active(model, range(64), texts, policy)]:
        batch.step()
    merged = ActiveBatch.merge(batches)
    assert type(merged.batch) is layout and merged.rows == list(range(64)) and merged.depth == 1
    assert merged.batch.lengths == mask.sum(dim=1).tolist()
    for name in ("prediction", "total"):
        assert torch.equal(getattr(merged.policy._memory, name), getattr(expected.policy._memory, name))
    for found, of_row in zip(states(merged.batch), states(expected.batch), strict=True):
        torch.testing.assert_close(found, of_row, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [1, 7, 15])
@torch.no_grad()
def test_split_batches_go_on_by_themselves(count, layout):
    model, policy = build(exit_pooling="mean"), {"name": "patience", "patience": 2}
    ids, mask = (part[:16] for part in padded_batch())
    batch = active(model, range(16), texts_of(ids, mask), policy)
    batch.step()
    halves = [ActiveBatch.merge([half]) for half in batch.split(count)]
    assert [half.rows for half in halves] == [list(range(count)), list(range(count, 16))]
    expected = model(ids, mask, exit_policy=policy)
    for half in halves:
        lengths = mask[half.rows].sum(dim=1)
        fewest = rounded_up(int(lengths.sum())) if layout is PackedBatch else lengths.max() * len(lengths)
        assert half.batch.tokens == fewest
        for exited in run_to_the_end(half):
            assert (expected.exit_layer[exited.rows] == exited.layer).all()
            torch.testing.assert_close(exited.logits, expected.logits[exited.rows], rtol=0, atol=1e-5)


@torch.no_grad()
def test_no_rows():
    model, ids = build(), torch.empty(0, 5, dtype=torch.long)
    for mask in (None, torch.ones_like(ids)):
        output = model(ids, mask, exit_policy=NEVER)
        assert (output.logits.shape, output.exit_layer.shape) == ((0, CLASSES), (0,))
    assert Scheduler([], [], None, batch_tokens=10).schedule() is None


# ---- a policy's memory goes with its rows, or its rows stay together


class Counts(ExitPolicy):
    """Exits when a row was unsure at `limit` exits; counts in an attribute of its own."""

    name = "counts"

    def __init__(self, limit=2):
        self.limit = limit

    def start(self, *args):
        started = super().start(*args)
        started._counts = None
        return started

    def leaves(self, exit_index, logits):
        unsure = (logits.softmax(-1).amax(-1) < 0.7).long()
        self._counts = unsure if self._counts is None else self._counts + unsure
        return self._counts >= self.limit

    def keep(self, rows):
        self._counts = self._counts[rows]


class MergedCounts(Counts):
    def merge(self, policies):
        merged = super().merge(policies)
        merged._counts = None if self._counts is None else torch.cat([policy._counts for policy in policies])
        return merged


class Plain(ExitPolicy):
    """Remembers nothing, and says so."""

    name = "plain"
    merge = ExitPolicy.merge

    def leaves(self, exit_index, logits):
        return logits.softmax(-1).amax(-1) > 0.7


@pytest.mark.parametrize(
    ("policy", "rebatches"), [(Counts(), False), (MergedCounts(), True), (Plain(), True)], ids=str
)
def test_a_policy_of_one_s_own(policy, rebatches, caplog):
    texts = tiny_texts(60, seed=3)
    model, tokenizer = spread_exits(build(), texts), tiny_tokenizer()
    scoring.logger.warning_once.__func__.cache_clear()
    with unittest.mock.patch.object(ActiveBatch, "merge", side_effect=ActiveBatch.merge) as merge:
        found = list(score(model, tokenizer, texts, exit_policy=policy, batch_tokens=100))
        list(score(model, tokenizer, texts, exit_policy=policy, batch_tokens=100))
    assert (merge.call_count > 0) == rebatches
    assert_same_results(
        found, [one for text in texts for one in score(model, tokenizer, [text], exit_policy=policy)]
    )
    assert len({one["exit_layer"] for one in found}) >= 3
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (0 if rebatches else 1) and all(
        "Counts has its own keep, leaves, start and no merge" in one for one in said
    )


# ---- scheduling


@torch.no_grad()
def test_rows_run_in_full_batches(layout):
    model, texts = build(), [{"input_ids": [7] * 10}] * 40
    calls = Calls(model)
    run(model, texts, NEVER, batch_tokens=160)
    assert calls.tokens == {depth: [160, 160, 80] for depth in range(1, LAYERS + 1)}


@torch.no_grad()
def test_the_deepest_full_batch_goes_first_and_few_rows_wait():
    model, texts, order = build(exit_pooling="mean"), [{"input_ids": [7] * 10}] * 400, []
    for depth, layer in enumerate(model.layers, start=1):
        layer.register_forward_pre_hook(lambda *_, depth=depth: order.append(depth))
    run(model, texts, NEVER, batch_tokens=100)  # 40 batches, a batch at each depth before the next begins
    begun = [sum(depth == 1 for depth in order[: index + 1]) for index in range(len(order))]
    through = [sum(depth == LAYERS for depth in order[: index + 1]) for index in range(len(order))]
    assert max(one - other for one, other in zip(begun, through, strict=True)) <= LAYERS + 1


@torch.no_grad()
def test_the_last_rows_are_shared_out_among_the_workers():
    model, texts = build(), [{"input_ids": [7] * 40}] * 36  # 1,440 tokens
    calls = Calls(model)
    run(model, texts, NEVER, batch_tokens=1600, workers=2)
    assert calls.tokens == {1: [1472], 2: [768, 768], 3: [768, 768], 4: [768, 768]}  # of 720, and a filler


@torch.no_grad()
def test_time_plays_no_part_in_what_workers_put_together():
    model, texts, batches = build(), texts_of(*padded_batch()), []
    step = ActiveBatch.step

    def at_random_speed(batch):
        batches.append((batch.depth, batch.rows))
        time.sleep(torch.rand(()).item() / 100)
        return step(batch)

    with unittest.mock.patch.object(ActiveBatch, "step", at_random_speed):
        for _ in range(3):
            run(model, texts, POLICIES[0], batch_tokens=100, workers=2)
    third = len(batches) // 3
    first, *others = (sorted(batches[start : start + third]) for start in range(0, len(batches), third))
    assert len(first) > 8 and others == [first, first]


@torch.no_grad()
def test_all_exiting_at_once_leaves_nothing_to_put_back():
    model, (ids, mask) = build(), padded_batch()
    calls = Calls(model)
    run(model, texts_of(ids, mask), ALWAYS, batch_tokens=100)
    assert sum(calls.tokens[1]) >= mask.sum() and calls.tokens[2] == calls.tokens[3] == calls.tokens[4] == []


@settings(derandomize=True, deadline=None, max_examples=200, database=None)
@given(
    lengths=st.lists(st.integers(1, 512), max_size=100),
    batch_tokens=st.integers(1, 4096),
    batch_rows=st.none() | st.integers(1, 64),
    padded=st.booleans(),
)
def test_batches_hold_every_row_once_within_the_bounds_and_are_full(
    lengths, batch_tokens, batch_rows, padded
):
    counts, start = batches_of(lengths, batch_tokens, batch_rows, padded), 0
    assert sum(counts) == len(lengths) and all(counts)

    def too_many(rows):
        tokens = len(rows) * max(rows) if padded else sum(rows)
        return len(rows) > 1 and (
            tokens > batch_tokens or (batch_rows is not None and len(rows) > batch_rows)
        )

    for count in counts:
        assert not too_many(lengths[start : start + count])
        assert start + count == len(lengths) or too_many(lengths[start : start + count + 1])
        assert fill(lengths[start:], batch_tokens, batch_rows, padded) == (
            count,
            start + count < len(lengths),
        )
        start += count


# ---- waits for the device


class OnDevice(torch.Tensor):
    """A tensor whose values may be looked at only through `cpu()` or `tolist()`, which are counted."""

    waits = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in ("cpu", "tolist"):
            OnDevice.waits += 1
            return getattr(args[0].as_subclass(torch.Tensor), name)()
        looks = name in (
            "nonzero",
            "item",
            "numpy",
            "__bool__",
            "__int__",
            "__float__",
            "__index__",
            "masked_select",
        )
        keys = args[1] if name in ("__getitem__", "__setitem__") else ()
        keys = keys if isinstance(keys, tuple) else (keys,)
        if looks or any(isinstance(key, OnDevice) and key.dtype == torch.bool for key in keys):
            raise AssertionError(f"{name} waits for the device")
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("asked", [None, [2, 4], [3]], ids=str)
@torch.no_grad()
def test_one_wait_per_exit_that_is_evaluated(asked, attention, padded):
    model, (ids, mask) = build(exit_pooling="mean", attention=attention), padded_batch()
    policy = {"name": "patient_confidence", "patience": 1, "threshold": 0.55}
    batch = active(
        model,
        range(len(ids)),
        texts_of(ids, mask),
        policy if asked is None else {**policy, "ask_exits": asked},
    )
    for name in ("hidden", "attention_mask"):
        setattr(batch.batch, name, getattr(batch.batch, name).as_subclass(OnDevice))
    OnDevice.waits = 0
    sizes = []
    while len(batch):
        sizes.append(len(batch))
        batch.step()
    exits_before_the_last = 3 if asked is None else len([layer for layer in asked if layer < LAYERS])
    assert OnDevice.waits == exits_before_the_last
    assert sizes == sorted(set(sizes), reverse=True)  # rows did exit everywhere
