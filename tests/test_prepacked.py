"""Packed linear layers give what nn.Linear gives, follow their weights, and stay out of everything but inference on a CPU."""

import copy
import math
import pickle
import runpy

import pytest
import torch
import torch.nn.functional as F
from modeling_romebert.batching import GROUP
from modeling_romebert.packing import PackedLinear
from tiny import build, padded_batch
from torch import nn

from modeling_romebert import pack_linears, packing

POLICY = {"name": "confidence", "threshold": 0.75}


def packed(bias=True) -> PackedLinear:
    torch.manual_seed(0)
    return PackedLinear(nn.Linear(48, 96, bias=bias))


def uses_copy(layer: PackedLinear) -> bool:
    return layer._packed is not None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 48), (7, 48), (3, 5, 48), (48,), (5, 13, 48), (513, 48), (8, 72, 48)])
@torch.no_grad()
def test_gives_what_linear_gives(shape, bias, monkeypatch):
    monkeypatch.setattr(packing, "PAYS_UP_TO", 1000)
    layer, x = packed(bias), torch.randn(*shape)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)
    assert uses_copy(layer)


@pytest.mark.parametrize("capability", ["AVX2", "AVX512", "DEFAULT"])
def test_many_rows_are_packed_unless_there_is_only_avx2(capability, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    most = runpy.run_path(packing.__file__)["PAYS_UP_TO"]
    assert most == (512 if capability == "AVX2" else math.inf)


@torch.no_grad()
def test_beyond_the_rows_that_packing_pays_for_it_is_a_linear(monkeypatch):
    monkeypatch.setattr(packing, "PAYS_UP_TO", 6)
    layer, x = packed(), torch.randn(7, 48)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias)) and not uses_copy(layer)
    layer(x[:6])
    assert uses_copy(layer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_packed_where_the_processor_has_it(dtype):
    layer, x = packed().to(dtype), torch.randn(67, 48).to(dtype)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=2e-2, atol=2e-2)
    assert uses_copy(layer) == packing.packs(dtype)


def test_few_numbers_of_rows_and_few_rows_more():
    numbers = range(1, 4097)
    assert all(0 <= packing.rounded_up(rows) - rows <= rows / 8 for rows in numbers)
    assert len({packing.rounded_up(rows) for rows in range(1, 2049)}) == 64 + 56 + 96
    assert all(packing.rounded_up(tokens) == tokens for tokens in range(2 * GROUP, 2049, 2 * GROUP))  # a group of even length fits


@torch.no_grad()
def test_copy_follows_the_weight():
    layer, x = packed(), torch.randn(3, 48)
    layer(x)
    layer.weight.mul_(2)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)
    layer.load_state_dict({"weight": torch.ones(96, 48), "bias": torch.zeros(96)})
    torch.testing.assert_close(layer(x), x.sum(1, keepdim=True).expand(3, 96), rtol=1e-5, atol=1e-5)
    layer.weight = nn.Parameter(torch.zeros(96, 48))
    assert torch.equal(layer(x), torch.zeros(3, 96))


@torch.no_grad()
def test_copy_is_never_of_a_weight_that_is_gone():
    layer, x = packed(), torch.randn(3, 48)
    for _ in range(20):  # memory that was freed is given out again
        layer(x)
        layer.load_state_dict(packed().state_dict())
        layer.to(torch.bfloat16).to(torch.float32)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)


def test_optimizer_steps_are_seen():
    layer, x = packed(), torch.randn(3, 48)
    with torch.no_grad():
        layer(x)
    layer(x).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-4)


def test_gradients_are_those_of_linear():
    layer, x = packed(), torch.randn(3, 48)
    layer(x).square().sum().backward()
    weight = layer.weight.detach().clone().requires_grad_()
    F.linear(x, weight, layer.bias.detach()).square().sum().backward()
    assert torch.equal(layer.weight.grad, weight.grad) and not uses_copy(layer)


@pytest.mark.parametrize("why", ["fp64", "autocast", "empty"])
@torch.no_grad()
def test_elsewhere_it_is_a_linear(why):
    layer, x = packed(), torch.randn(3, 48)
    if why == "fp64":
        layer, x = layer.double(), x.double()
    x = x[:0] if why == "empty" else x
    with torch.autocast("cpu", torch.bfloat16, enabled=why == "autocast"):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert not uses_copy(layer)


@torch.no_grad()
def test_can_be_copied_and_pickled_after_use():
    layer, x = packed(), torch.randn(3, 48)
    expected = layer(x)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert not uses_copy(again) and torch.equal(again(x), expected)


@torch.no_grad()
def test_packed_model_leaves_at_the_same_exits_and_saves_the_same_weights(tmp_path):
    model, (ids, mask) = build(), padded_batch()
    before, weights = model(ids, mask, exit_policy=POLICY), model.state_dict()
    assert pack_linears(model) is model
    after = model(ids, mask, exit_policy=POLICY)
    assert torch.equal(after.exit_layer, before.exit_layer)
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=1e-5)
    assert all(type(module) is not nn.Linear for module in model.modules())
    assert model.state_dict().keys() == weights.keys()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded(ids, mask).logits, build()(ids, mask).logits)


def test_subclasses_stay_and_torch_without_the_operators_is_left_alone(monkeypatch):
    class Other(nn.Linear):
        pass

    assert type(pack_linears(nn.Sequential(Other(2, 2)))[0]) is Other
    monkeypatch.setattr(packing, "can_pack", lambda: False)
    assert type(pack_linears(nn.Sequential(nn.Linear(2, 2)))[0]) is nn.Linear
