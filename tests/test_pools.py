"""Steps of the walk: merging changes nothing, pools fill batches and hold few rows, one wait for the device per exit.

Rows lie end to end where they can, and padded where they cannot; what is said of both is tested with both.
"""

import threading
import time
import unittest.mock

import pytest
import torch
from tiny import CLASSES, LAYERS, PAD, build, padded_batch
from transformers import RobertaConfig

from modeling_romebert.backbones import Adapter
from modeling_romebert.layouts import Padded, Unpadded, with_filler
from modeling_romebert.policies import as_policy
from modeling_romebert.pools import walk_in_pools
from modeling_romebert.streams import open_streams
from modeling_romebert.walk import Walk, begin, merge

POLICIES = [
    {"name": "entropy", "threshold": 0.6},
    {"name": "patience", "patience": 2},
    {"name": "patient_confidence", "patience": 2, "threshold": 0.5},
    {"name": "vote", "threshold": 1.1},
]
NEVER, ALWAYS = {"name": "entropy", "threshold": 0.0}, {"name": "entropy", "threshold": 1.0}


@pytest.fixture(params=[Unpadded, Padded])
def layout(request, monkeypatch):
    """How rows lie in the test: families that can do without padding do, or none does."""
    monkeypatch.setattr(Adapter, "unpads", request.param is Unpadded)
    return request.param


@pytest.fixture
def padded(monkeypatch):
    monkeypatch.setattr(Adapter, "unpads", False)


def parts(ids, mask, size):
    """Rows of a batch in parts of `size`, each cut to its longest row: numbers and inputs."""
    for start in range(0, len(ids), size):
        of_part = mask[start : start + size]
        longest = int(of_part.sum(dim=1).max())
        rows = torch.arange(start, start + len(of_part))
        yield rows, {"input_ids": ids[start : start + size, :longest], "attention_mask": of_part[:, :longest]}


def run_in_pools(model, ids, mask, policy, size=5, streams=1, **settings):
    """logits (B, C) and exit layers (B,) of all rows, in their order."""
    begins = [lambda r=r, i=i: begin(model, r, i, as_policy(policy)) for r, i in parts(ids, mask, size)]
    with open_streams(streams) as several:
        left = list(walk_in_pools(begins, **settings, streams=several))
    rows = torch.cat([one.rows for one in left])
    assert rows.sort().values.tolist() == list(range(len(ids)))
    logits = torch.cat([one.logits for one in left])[rows.argsort()]
    return logits, torch.cat([torch.full_like(one.rows, one.depth) for one in left])[rows.argsort()]


class Calls:
    """Tokens of each call of each layer of a model, padding included, by depth from 1."""

    def __init__(self, model):
        self.tokens = {depth: [] for depth in range(1, LAYERS + 1)}
        for depth, layer in enumerate(model.layers, start=1):
            layer.register_forward_pre_hook(lambda _, inputs, depth=depth: self.tokens[depth].append(inputs[0].shape[:2].numel()))


# ---- pools give what the walk gives


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy["name"])
@pytest.mark.parametrize(("batch_tokens", "pool_batches", "streams"), [(1, 8, 1), (200, 1, 1), (200, 8, 2), (10**6, 1, 3)])
@torch.no_grad()
def test_pools_give_what_one_batch_gives(policy, pooling, batch_tokens, pool_batches, streams, layout):
    model, (ids, mask) = build(exit_pooling=pooling), padded_batch()
    settings = {"batch_tokens": batch_tokens, "pool_batches": pool_batches, "streams": streams}
    logits, exit_layer = run_in_pools(model, ids, mask, policy, **settings)
    expected = model(ids, mask, exit_policy=policy)
    assert torch.equal(exit_layer, expected.exit_layer) and len(exit_layer.unique()) >= 3
    torch.testing.assert_close(logits, expected.logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_left_padding_in_pools(layout):
    model, (ids, mask) = build(RobertaConfig, exit_pooling="mean"), padded_batch()
    ids[16:24], mask[16:24] = ids[0], 1  # a batch without padding, which is joined with the others all the same
    lengths = mask.sum(dim=1)
    left = torch.stack([row.roll(len(row) - int(length)) for row, length in zip(ids, lengths, strict=True)])
    expected = model(ids, mask, exit_policy=POLICIES[0])
    begins = [
        lambda s=s: begin(
            model,
            torch.arange(s, s + 8),
            {"input_ids": left[s : s + 8], "attention_mask": (left[s : s + 8] != PAD).long()},
            as_policy(POLICIES[0]),
        )
        for s in range(0, len(ids), 8)
    ]
    for one in walk_in_pools(begins, batch_tokens=500):
        assert (expected.exit_layer[one.rows] == one.depth).all()
        torch.testing.assert_close(one.logits, expected.logits[one.rows], rtol=0, atol=1e-5)


def states(batch):
    """Hidden states (t, H) of each row, without padding."""
    if isinstance(batch, Unpadded):
        return batch.hidden[0, : sum(batch.lengths)].split(batch.lengths)
    return [row[:length] for row, length in zip(batch.hidden, batch.lengths, strict=True)]


@torch.no_grad()
def test_merge_keeps_every_row_s_states_and_memory(layout):
    model, policy = build(exit_pooling="mean"), as_policy({"name": "patience", "patience": 3})
    ids, mask = padded_batch()
    walks = [begin(model, rows, inputs, policy) for rows, inputs in parts(ids, mask, 16)]
    for walk in walks:
        walk.advance()
    merged = merge(walks)
    assert type(merged.batch) is layout and merged.rows.tolist() == list(range(64)) and merged.depth == 1
    assert merged.batch.lengths == mask.sum(dim=1).tolist()
    expected = begin(model, torch.arange(64), {"input_ids": ids, "attention_mask": mask}, policy)
    expected.advance()
    for name in ("prediction", "total"):
        assert torch.equal(getattr(merged.policy._memory, name), getattr(expected.policy._memory, name))
    for found, of_row in zip(states(merged.batch), states(expected.batch), strict=True):
        torch.testing.assert_close(found, of_row, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [1, 7, 15])
@torch.no_grad()
def test_parts_are_walks_that_go_on_alone(count, layout):
    model, policy = build(exit_pooling="mean"), as_policy({"name": "patience", "patience": 2})
    ids, mask = (part[:16] for part in padded_batch())
    walk = begin(model, torch.arange(16), {"input_ids": ids, "attention_mask": mask}, policy)
    walk.advance()
    assert walk.part(0, 16) is walk
    first, others = (merge([walk.part(*bounds)]) for bounds in ((0, count), (count, 16)))
    assert first.rows.tolist() == list(range(count)) and others.rows.tolist() == list(range(count, 16))
    for part in (first, others):
        lengths = mask[part.rows].sum(dim=1)
        cells = with_filler(int(lengths.sum())) if layout is Unpadded else lengths.max() * len(lengths)
        assert part.batch.cells == cells  # as few as can be
    expected = model(ids, mask, exit_policy=policy)
    found = torch.zeros(16, dtype=torch.long)
    for part in (others, first):
        while len(part):
            if (left := part.advance()) is not None:
                found[left.rows] = left.depth
                torch.testing.assert_close(left.logits, expected.logits[left.rows], rtol=0, atol=1e-5)
    assert torch.equal(found, expected.exit_layer)


@torch.no_grad()
def test_walks_without_padding_merge_without_a_mask(padded):
    model, ids = build(), torch.randint(5, 100, (6, 9))
    walks = [begin(model, torch.arange(2), {"input_ids": part}, as_policy(NEVER)) for part in ids.split(2)]
    assert merge(walks).batch.attention_mask is None
    assert merge(walks[:1]) is walks[0]


@torch.no_grad()
def test_no_rows():
    model, ids = build(), torch.empty(0, 5, dtype=torch.long)
    for mask in (None, torch.ones_like(ids)):
        output = model(ids, mask, exit_policy=NEVER)
        assert (output.logits.shape, output.exit_layer.shape) == ((0, CLASSES), (0,))
    assert list(walk_in_pools([], batch_tokens=10)) == []


# ---- scheduling


@pytest.mark.parametrize("size", [2, 5, 24])
@torch.no_grad()
def test_rows_run_in_full_batches(size, layout):
    model = build()
    ids, mask = torch.randint(5, 100, (40, 10)), torch.ones(40, 10, dtype=torch.long)
    calls = Calls(model)
    run_in_pools(model, ids, mask, NEVER, size=size, batch_tokens=160)
    first = [len(rows) * 10 for rows, _ in parts(ids, mask, size)] if layout is Padded else [160, 160, 80]
    others = [160, 160, 80]
    assert calls.tokens == {1: first, 2: others, 3: others, 4: others}


@torch.no_grad()
def test_the_last_batches_are_level_for_streams():
    model, ids, mask = build(), torch.randint(5, 100, (36, 40)), torch.ones(36, 40, dtype=torch.long)
    calls = Calls(model)
    run_in_pools(model, ids, mask, NEVER, size=2, streams=2, batch_tokens=800)
    # 1,440 tokens make two batches of 720, and some tokens that fill up.
    assert list(calls.tokens.values()) == [[768, 768]] * 4


@torch.no_grad()
def test_streams_do_not_wait_at_the_end_of_a_depth():
    model, ids = build(), torch.randint(5, 100, (60, 40))
    calls, second_layer = Calls(model), threading.Event()

    def wait_in_the_last_batch(*_):
        if len(calls.tokens[1]) == 6:
            assert second_layer.wait(timeout=20)  # it would not come if all of the first layer had to be done before

    model.layers[0].register_forward_pre_hook(wait_in_the_last_batch)
    model.layers[1].register_forward_pre_hook(lambda *_: second_layer.set())
    run_in_pools(model, ids, torch.ones_like(ids), NEVER, streams=2, batch_tokens=400)
    assert calls.tokens == {depth: [400] * 6 for depth in range(1, LAYERS + 1)}


@torch.no_grad()
def test_time_plays_no_part_in_what_streams_put_together():
    model, (ids, mask), batches = build(), padded_batch(), []
    advance = Walk.advance

    def at_random_speed(walk):
        batches.append((walk.depth, walk.rows.tolist()))
        time.sleep(torch.rand(()).item() / 100)
        return advance(walk)

    with unittest.mock.patch.object(Walk, "advance", at_random_speed):
        for _ in range(3):
            run_in_pools(model, ids, mask, POLICIES[0], streams=2, batch_tokens=100)
    third = len(batches) // 3
    first, *others = (sorted(batches[start : start + third]) for start in range(0, len(batches), third))
    assert len(first) > 8 and others == [first, first]


@torch.no_grad()
def test_a_layer_runs_on_all_its_batches_in_a_row():
    model, order = build(), []
    for depth, layer in enumerate(model.layers, start=1):
        layer.register_forward_pre_hook(lambda *_, depth=depth: order.append(depth))
    run_in_pools(model, *padded_batch(), NEVER, size=4, batch_tokens=100)
    assert order == sorted(order) and order.count(2) > 2


@torch.no_grad()
def test_all_leaving_at_once_pools_nothing():
    model, (ids, mask) = build(), padded_batch()
    calls = Calls(model)
    run_in_pools(model, ids, mask, ALWAYS, size=8, batch_tokens=100)
    assert sum(calls.tokens[1]) >= mask.sum() and calls.tokens[2] == calls.tokens[3] == calls.tokens[4] == []


@pytest.mark.parametrize("pool_batches", [1, 3])
@torch.no_grad()
def test_no_row_waits_longer_than_the_bound(pool_batches, layout):
    model, ids, started, begun, waits = build(), torch.randint(5, 100, (64, 10)), 0, {}, []

    def beginning(rows):
        def start():
            nonlocal started
            started += 1
            begun.update(dict.fromkeys(rows.tolist(), started))
            return begin(model, rows, {"input_ids": ids[rows]}, as_policy(NEVER))

        return start

    for left in walk_in_pools(map(beginning, torch.arange(64).split(2)), batch_tokens=80, pool_batches=pool_batches):
        waits += [started - begun[row] for row in left.rows.tolist()]
    assert started == 32 and len(waits) == 64
    # Four parts of two rows of ten tokens fill a batch; of those that are joined before they go on, the next has begun by then.
    assert max(waits) == 4 * pool_batches - (layout is Padded)


@torch.no_grad()
def test_batches_are_embedded_when_their_turn_comes(padded):
    model, (ids, mask) = build(), padded_batch()
    begun = []
    begins = (lambda p=p: begun.append(1) or begin(model, *p, as_policy(ALWAYS)) for p in parts(ids, mask, 8))
    for number, _ in enumerate(walk_in_pools(begins, batch_tokens=100), start=1):
        assert len(begun) == number


# ---- waits for the device


class OnDevice(torch.Tensor):
    """A tensor whose values may be looked at only through `cpu()`, which is counted."""

    waits = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name == "cpu":
            OnDevice.waits += 1
            return args[0].as_subclass(torch.Tensor)
        looks = name in ("nonzero", "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "masked_select")
        keys = args[1] if name in ("__getitem__", "__setitem__") else ()
        keys = keys if isinstance(keys, tuple) else (keys,)
        if looks or any(isinstance(key, OnDevice) and key.dtype == torch.bool for key in keys):
            raise AssertionError(f"{name} waits for the device")
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("asked", [None, [2, 4], [3]], ids=str)
@torch.no_grad()
def test_one_wait_per_exit_that_is_asked(asked, attention, padded):
    model, (ids, mask) = build(exit_pooling="mean", attention=attention), padded_batch()
    policy = {"name": "patient_confidence", "patience": 1, "threshold": 0.55}
    policy = as_policy(policy if asked is None else {**policy, "ask_exits": asked})
    walk = begin(model, torch.arange(len(ids)), {"input_ids": ids, "attention_mask": mask}, policy)
    walk.rows = walk.rows.as_subclass(OnDevice)
    for name in ("hidden", "attention_mask"):
        setattr(walk.batch, name, getattr(walk.batch, name).as_subclass(OnDevice))
    OnDevice.waits = 0
    sizes = []
    while len(walk):
        sizes.append(len(walk))
        walk.advance()
    exits_before_the_last = 3 if asked is None else len([layer for layer in asked if layer < LAYERS])
    assert OnDevice.waits == exits_before_the_last
    assert sizes == sorted(set(sizes), reverse=True)  # rows did leave everywhere


@torch.no_grad()
def test_a_mask_that_masks_nothing_is_dropped(padded):
    model, ids = build(), torch.randint(5, 100, (3, 9))
    walk = begin(model, torch.arange(3), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, as_policy(NEVER))
    assert walk.batch.attention_mask is None


# ---- padding


@torch.no_grad()
def test_rows_of_quite_another_length_are_not_joined(padded):
    model = build()
    lengths = [20, 19, 8]  # of 12 rows each
    calls = []
    model.layers[1].register_forward_pre_hook(lambda _, inputs: calls.append(tuple(inputs[0].shape[:2])))
    begins = [
        lambda start=12 * number, length=length: begin(
            model, torch.arange(start, start + 12), {"input_ids": torch.full((12, length), 7)}, as_policy(NEVER)
        )
        for number, length in enumerate(lengths)
    ]
    assert sum(len(left.rows) for left in walk_in_pools(begins, batch_tokens=960)) == 36
    assert calls == [(24, 20), (12, 8)]  # a batch costs 48 tokens: 12 of padding save one, 144 would save one more


@torch.no_grad()
def test_position_ids_go_with_their_rows(layout):
    model, (ids, mask) = build(), padded_batch(12, 20)
    positions = torch.arange(20).flip(0).expand(12, -1)
    inputs = [
        {"input_ids": ids[s : s + 3], "attention_mask": mask[s : s + 3], "position_ids": positions[s : s + 3]} for s in (0, 3, 6, 9)
    ]
    begins = [
        lambda n=n, i=i: begin(model, torch.arange(3 * n, 3 * n + 3), i, as_policy(POLICIES[0])) for n, i in enumerate(inputs)
    ]
    expected = model(ids, mask, position_ids=positions, exit_policy=POLICIES[0])
    for left in walk_in_pools(begins, batch_tokens=10**6):
        assert (expected.exit_layer[left.rows] == left.depth).all()
        torch.testing.assert_close(left.logits, expected.logits[left.rows], rtol=0, atol=1e-5)
