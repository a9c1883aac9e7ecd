"""b' = b - min(0, <b, a> / <a, a>) a: the geometry by hand, and inside a backward pass against two explicit
ones.
"""

import math

import pytest
import torch
from by_version import enable_checkpointing
from explicit import projection
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TOKENS, build, padded_batch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_romebert import ExitLoss, project
from modeling_romebert.training.gradient_projection import GradientRegularizer, conflict, dot

PROTECT = ["protect_exits", "protect_last"]


def vector(*numbers):
    return torch.tensor(numbers, dtype=torch.float32)


# ---- the geometry


@pytest.mark.parametrize(
    ("a", "b", "expected", "cosine", "projected"),
    [
        ((1, 0), (-2, 3), (0, 3), -2 / math.sqrt(13), 1),  # <b,a>/<a,a> = -2
        ((1, 1), (-3, 1), (-2, 2), -2 / math.sqrt(2 * 10), 1),  # -2/2 = -1: b + a
        ((2, 0), (-2, 3), (0, 3), -2 / math.sqrt(13), 1),  # -4/4: the length of a does not matter
        ((1, 0), (2, 3), (2, 3), 2 / math.sqrt(13), 0),
        ((1, 2), (2, 4), (2, 4), 1, 0),  # parallel
        ((1, 2), (-2, -4), (0, 0), -1, 1),  # opposite
        ((1, 2), (-2, 1), (-2, 1), 0, 0),  # orthogonal
        ((0, 0), (1, 2), (1, 2), 0, 0),
        ((1, 2), (0, 0), (0, 0), 0, 0),
        ((0, 0), (0, 0), (0, 0), 0, 0),
    ],
)
def test_projection_by_hand(a, b, expected, cosine, projected):
    result = project([vector(*a)], [vector(*b)])
    assert result.other[0].tolist() == list(expected)
    assert result.cosine.item() == pytest.approx(cosine, abs=1e-6)
    assert result.projected.item() == projected


def test_lists_are_one_flat_vector():
    """The parts (1), (2) alone conflict in the second only; together <b, a> = 3 - 4 = -1 and <a, a> = 5."""
    result = project([vector(1), vector(2)], [vector(3), vector(-2)])
    assert torch.cat(result.other).tolist() == pytest.approx([3.2, -1.6])
    no_conflict = project(
        [vector(1), vector(2)], [vector(5), vector(-2)]
    )  # 5 - 4 > 0, though the second part conflicts
    assert torch.cat(no_conflict.other).tolist() == [5, -2]


def test_shapes_are_kept_and_inputs_left_alone():
    a, b = [torch.ones(2, 3), torch.ones(4)], [-torch.ones(2, 3), 2 * torch.ones(4)]
    result = project(a, b)  # <b, a> = -6 + 8 > 0
    assert [x.shape for x in result.other] == [(2, 3), (4,)]
    project(a, [-x for x in a])
    assert torch.equal(a[0], torch.ones(2, 3)) and torch.equal(b[0], -torch.ones(2, 3))


def test_conflict_by_hand():
    products = vector(-6, 6, 0, -6, 0), vector(3, 3, 3, 0, 0)
    assert conflict(*products).tolist() == [-2, 0, 0, 0, 0]


def test_dot_is_a_sum_in_fp32():
    a = [torch.full((3, 4), 300, dtype=torch.float16), torch.full((2,), 0.5, dtype=torch.float16)]
    assert dot(a, a).item() == 12 * 90000 + 2 * 0.25  # 90000 alone is more than fp16 holds
    assert dot(a, a).dtype == torch.float32


@pytest.mark.parametrize("size", [1e-15, 1e-12, 1e12, 1e15])
def test_cosine_of_very_small_and_very_large_gradients(size):
    result = project([vector(size, 0)], [vector(-3 * size, 4 * size)])
    assert result.cosine.item() == pytest.approx(-0.6)
    assert (result.other[0] / size).tolist() == pytest.approx([0, 4], abs=1e-5)


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="zip"):
        project([vector(1)], [vector(1), vector(2)])


numbers = st.floats(-1000, 1000, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)
pairs = st.integers(1, 6).flatmap(lambda n: st.tuples(*[st.lists(numbers, min_size=n, max_size=n)] * 2))


@given(pairs)
@settings(deadline=None, max_examples=300)
def test_result_never_conflicts_and_is_b_where_b_does_not(pair):
    a, b = (torch.tensor(side) for side in pair)
    result = project([a], [b])
    (other,) = result.other
    exact = torch.dot(a.double(), b.double())
    scale = a.double().norm() * b.double().norm()
    assert torch.dot(a.double(), other.double()) >= -1e-5 * scale
    if result.projected == 0:
        assert torch.equal(other, b)
        assert exact >= -1e-5 * scale
    else:
        assert exact < 1e-5 * scale
        expected = b - exact / a.double().square().sum() * a.double()
        torch.testing.assert_close(other.double(), expected, rtol=1e-4, atol=1e-5 * b.double().norm().item())
    assert result.cosine.isfinite()
    assert other.double().norm() <= b.double().norm() * (1 + 1e-5)


# ---- inside a backward pass, by hand


def regularized_gradients(protect, losses, weights, shared, groups=1):
    """.grad of weights after the backward passes of a group; `losses` maps a batch index to the two terms."""
    regularizer = GradientRegularizer(weights, shared, protect)
    for index in range(groups):
        regularizer.loss(*losses(index), end_of_group=index == groups - 1).backward()
    return regularizer, [weight.grad for weight in weights]


@pytest.mark.parametrize(
    ("protect", "expected"),
    [
        ("protect_last", (1, 3)),  # a = (1, 0), b = (-2, 3), b' = (0, 3)
        ("protect_exits", (-17 / 13, 45 / 13)),  # a = (-2, 3), b = (1, 0), b' = (1, 0) + 2/13 (-2, 3)
    ],
)
def test_both_directions_by_hand(protect, expected):
    weight = torch.zeros(2, requires_grad=True)
    terms = (weight * vector(1, 0)).sum() + 5, (weight * vector(-2, 3)).sum() + 7
    regularizer = GradientRegularizer([weight], [weight], protect)
    loss = regularizer.loss(*terms)
    assert loss.item() == 12
    loss.backward()
    assert weight.grad.tolist() == pytest.approx(expected)
    assert regularizer.cosine.item() == pytest.approx(-2 / math.sqrt(13))
    assert regularizer.projected.item() == 1


def test_group_is_projected_once_by_hand():
    """Batches (a, b): ((1,0), (-2,3)) conflicts alone; with ((3,0), (5,1)) the sums (4,0), (3,4) do not."""
    weight = torch.zeros(2, requires_grad=True)
    terms = [(vector(1, 0), vector(-2, 3)), (vector(3, 0), vector(5, 1))]
    regularizer, (gradient,) = regularized_gradients(
        "protect_last",
        lambda index: [(weight * slope).sum() for slope in terms[index]],
        [weight],
        [weight],
        groups=2,
    )
    assert gradient.tolist() == [7, 4]
    assert regularizer.projected.item() == 0 and regularizer.cosine.item() == pytest.approx(0.6)


def test_weights_that_a_term_does_not_reach():
    both, only_last, only_exits, other, unused = (torch.zeros(1, requires_grad=True) for _ in range(5))
    weights = [both, only_last, only_exits, other, unused]
    regularizer, gradients = regularized_gradients(
        "protect_last",
        lambda _: ((2 * both + 3 * only_last + other).sum(), (-both + 5 * only_exits - 4 * other).sum()),
        weights,
        [both, only_last, only_exits],
    )
    # On the shared three a = (2, 3, 0), b = (-1, 0, 5): <b, a>/<a, a> = -2/13; a + b' = (1, 3, 5) + 2/13 (2,
    # 3, 0).
    values = [gradient.item() for gradient in gradients[:4]]
    assert values == pytest.approx([17 / 13, 45 / 13, 5, -3])  # `other` is not shared: the plain sum 1 - 4
    assert gradients[4] is None
    assert regularizer.projected.item() == 1


@pytest.mark.parametrize("protect", PROTECT)
@pytest.mark.parametrize("zero", ["last", "exits", "both"])
def test_zero_gradients_give_no_nan(zero, protect):
    weight = torch.ones(2, requires_grad=True)
    last = (weight * vector(1, -2)).sum() * (zero == "exits")
    exits = (weight * vector(-3, 1)).sum() * (zero == "last")
    regularizer, (gradient,) = regularized_gradients(protect, lambda _: (last, exits), [weight], [weight])
    assert gradient.tolist() == {"last": [-3, 1], "exits": [1, -2], "both": [0, 0]}[zero]
    assert regularizer.cosine.item() == regularizer.projected.item() == 0


# ---- inside the backward pass of a model, against two explicit backward passes


def make_batches(count, conflicting, rows=8, tokens=TOKENS):
    """Batches of one group: ids, mask, labels and how much of L_last goes into the other term: less than
    nothing conflicts.
    """
    ids, mask = padded_batch(rows * count, tokens)
    labels = torch.randint(3, (rows * count,), generator=torch.Generator().manual_seed(4))
    mixed_in = [-4 if conflicting else 4] * count
    return list(zip(ids.split(rows), mask.split(rows), labels.split(rows), mixed_in, strict=True))


def two_terms(model, batch, seed):
    """L_last and L_exit of a batch in training mode, the second with some of the first; the seed settles
    dropout.
    """
    ids, mask, labels, mixed_in = batch
    torch.manual_seed(seed)
    terms = ExitLoss()(
        model(ids, mask).exit_logits,
        labels,
        exit_layers=model.config.exit_layers,
        problem_type="single_label_classification",
    )
    return terms.last, terms.exits + mixed_in * terms.last


def shared_names(model):
    """Weight matrices of every layer but the last."""
    return [
        name
        for name, weight in model.named_parameters()
        if any(f"encoder.layer.{layer}." in name for layer in range(3)) and weight.ndim == 2
    ]


def explicit(model, batches, protect):
    """Name -> gradient: summed over the batches for each loss by itself, then one projection."""
    sums = [{}, {}]
    for seed, batch in enumerate(batches):
        for which in (0, 1):
            model.zero_grad()
            two_terms(model, batch, seed)[which].backward()
            for name, weight in model.named_parameters():
                gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
                sums[which][name] = sums[which].get(name, 0) + gradient.double()
    model.zero_grad()
    return projection(*sums, shared_names(model), protect)


def assert_gradients(model, expected, scale=1.0):
    for name, weight in model.named_parameters():
        error = (weight.grad.double() / scale - expected[name]).norm()
        if name.endswith(
            "key.bias"
        ):  # it adds the same to every score of a query, so its gradient is rounding alone
            assert max(error, expected[name].norm()) < 1e-6, name
        else:
            assert error < 1e-5 * expected[name].norm(), name


def regularize(model, batches, protect, scale=1.0):
    weights = dict(model.named_parameters())
    regularizer = GradientRegularizer(
        list(weights.values()), [weights[name] for name in shared_names(model)], protect
    )
    for index, batch in enumerate(batches):
        loss = regularizer.loss(*two_terms(model, batch, index), end_of_group=index == len(batches) - 1)
        (loss * scale).backward()
    return regularizer


@pytest.mark.parametrize("conflicting", [True, False], ids=["conflict", "agreement"])
@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("protect", PROTECT)
def test_gradients_are_those_of_two_backward_passes(protect, group, conflicting):
    model, batches = build().train(), make_batches(group, conflicting)
    expected, cosine = explicit(model, batches, protect)
    assert (cosine < -0.01) == conflicting
    regularizer = regularize(model, batches, protect)
    assert_gradients(model, expected)
    assert regularizer.cosine.item() == pytest.approx(cosine, abs=1e-5)
    assert regularizer.projected.item() == conflicting


@pytest.mark.parametrize("protect", PROTECT)
def test_group_is_not_projected_batch_by_batch(protect):
    model, batches = build().train(), make_batches(2, conflicting=True)
    together, _ = explicit(model, batches, protect)
    one, two = (explicit(model, [batch], protect)[0] for batch in batches)
    name = shared_names(model)[0]
    assert (one[name] + two[name] - together[name]).norm() > 1e-3 * together[name].norm()


def test_groups_do_not_see_each_other():
    model, batches = build().train(), make_batches(3, conflicting=True)
    weights = dict(model.named_parameters())
    arguments = list(weights.values()), [weights[name] for name in shared_names(model)], "protect_last"
    used, fresh = GradientRegularizer(*arguments), GradientRegularizer(*arguments)
    gradients = []
    for regularizer, group in ((used, [0, 1]), (used, [2]), (fresh, [2])):
        model.zero_grad()
        for index in group:
            regularizer.loss(
                *two_terms(model, batches[index], index), end_of_group=index == group[-1]
            ).backward()
        gradients.append([weight.grad for weight in weights.values()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients[1:], strict=True))


@pytest.mark.parametrize("scale", [1024.0, 1 / 3])
@pytest.mark.parametrize("protect", PROTECT)
def test_scaled_loss_gives_scaled_gradients(protect, scale):
    model, batches = build().train(), make_batches(2, conflicting=True)
    expected, _ = explicit(model, batches, protect)
    regularize(model, batches, protect, scale)
    assert_gradients(model, expected, scale)


def test_without_conflict_it_is_the_plain_sum():
    model, (batch,) = build().train(), make_batches(1, conflicting=False)
    regularizer = regularize(model, [batch], "protect_last")
    assert regularizer.projected.item() == 0
    regularized = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    sum(two_terms(model, batch, 0)).backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(regularized[name], weight.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("protect", PROTECT)
def test_non_reentrant_checkpointing_changes_nothing(protect):
    model, batches = build().train(), make_batches(2, conflicting=True)
    expected, _ = explicit(model, batches, protect)
    enable_checkpointing(model, use_reentrant=False)
    calls = []
    model.layers[0].attention.register_forward_hook(lambda *_: calls.append(1))
    regularize(model, batches, protect)
    assert len(calls) > len(batches)  # layers did run again in the backward passes
    assert_gradients(model, expected)


# ---- what it costs


class Memory(TorchDispatchMode):
    """The most bytes held at once by tensors that were made under it."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak = {}, 0  # where a storage lies -> a weak reference to it, and its bytes

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.alive = {
            at: (reference, size) for at, (reference, size) in self.alive.items() if not reference.expired()
        }
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def bytes_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("protect", PROTECT)
def test_memory_beyond_the_joint_step(protect, group):
    """At most one copy of all gradients and one of the shared ones; texts are so short that it is the
    gradients that are held.
    """
    model, batches = build().train(), make_batches(group, conflicting=True, rows=2, tokens=1)
    weights = dict(model.named_parameters())
    shared = [weights[name] for name in shared_names(model)]
    regularizer = GradientRegularizer(list(weights.values()), shared, protect)
    peaks = []
    for regularized in (True, False):
        model.zero_grad()
        with Memory() as memory:
            for index, batch in enumerate(batches):
                terms = two_terms(model, batch, index)
                loss = (
                    regularizer.loss(*terms, end_of_group=index == group - 1) if regularized else sum(terms)
                )
                loss.backward()
        peaks.append(memory.peak)
    largest = max(
        map(bytes_of, zip(shared, strict=True))
    )  # the products of one matrix while they are added up
    allowed = bytes_of(shared) + largest + (bytes_of(weights.values()) if group > 1 else 0)
    assert bytes_of(shared) // 2 < peaks[0] - peaks[1] <= allowed


def test_products_of_large_matrices_keep_their_digits():
    """Added up one after the other in fp32, as torch.dot and norms do on a CPU, they are off by more than
    1e-5.
    """
    x = torch.randn(3072, 768, generator=torch.Generator().manual_seed(0))
    y = x + 1
    exact = (x.double() * y.double()).sum().item()
    assert dot([x] * 4, [y] * 4).item() == pytest.approx(4 * exact, rel=1e-6)
