"""The loss terms are the formula's: against hand-worked numbers, and against a loop over rows and exits in
plain Python.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from modeling_romebert import ExitLoss
from modeling_romebert.losses import check_labels, distillation_losses, infer_problem_type, task_losses

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEMS = [SINGLE, MULTI, REGRESSION]
LAYERS = [1, 2, 4, 6]


def example(problem_type, rows=5, exits=4, classes=3):
    """exit_logits (B, E, C) and labels."""
    generator = torch.Generator().manual_seed(0)
    classes = 1 if problem_type == REGRESSION else classes
    exit_logits = 2 * torch.randn(rows, exits, classes, generator=generator)
    labels = {
        SINGLE: torch.randint(classes, (rows,), generator=generator),
        MULTI: torch.randint(2, (rows, classes), generator=generator).float(),
        REGRESSION: torch.randn(rows, generator=generator),
    }
    return exit_logits, labels[problem_type]


# ---- the formula in plain Python, one row at a time


def softmax(logits):
    powers = [math.exp(z - max(logits)) for z in logits]
    return [power / sum(powers) for power in powers]


def kl(teacher, student, temperature):
    p, q = softmax([z / temperature for z in teacher]), softmax([z / temperature for z in student])
    return sum(here * math.log(here / there) for here, there in zip(p, q, strict=True))


def task_of_row(logits, label, problem_type):
    if problem_type == SINGLE:
        return -math.log(softmax(logits)[label])
    if problem_type == MULTI:  # class c against "not c", whose logit is 0
        chances = [softmax([0.0, z])[int(y)] for z, y in zip(logits, label, strict=True)]
        return -sum(map(math.log, chances)) / len(logits)
    return (logits[0] - label) ** 2


def distillation_of_row(teacher, student, problem_type, temperature, reduction):
    if problem_type == REGRESSION:
        return (student[0] - teacher[0]) ** 2
    if problem_type == MULTI:
        each = [kl([0.0, t], [0.0, s], temperature) for t, s in zip(teacher, student, strict=True)]
        divergence, classes = sum(each) / len(each), 2
    else:
        divergence, classes = kl(teacher, student, temperature), len(teacher)
    return temperature**2 * divergence / (classes if reduction == "mean" else 1)


def plain_terms(
    exit_logits, labels, layers, problem_type, gamma, temperature, reduction, teacher, weights, scale
):
    """L_last and L_exit, by the formula at the top of losses.py."""
    rows, exits = exit_logits.tolist(), len(layers)
    labels = labels.tolist()
    last = sum(task_of_row(row[-1], y, problem_type) for row, y in zip(rows, labels, strict=True)) / len(rows)
    terms = []
    for k in range(exits - 1):
        taught_by = exits - 1 if teacher == "last" else k + 1
        term = 0.0
        for row, y in zip(rows, labels, strict=True):
            distilled = distillation_of_row(row[taught_by], row[k], problem_type, temperature, reduction)
            term += ((1 - gamma) * task_of_row(row[k], y, problem_type) + gamma * distilled) / len(rows)
        mean_depth = sum(layers[:-1]) / (exits - 1)
        terms.append(term * (layers[k] / mean_depth if weights == "depth" else 1))
    return last, scale * sum(terms)


@pytest.mark.parametrize(
    ("reduction", "teacher", "weights", "scale"),
    list(itertools.product(["batchmean", "mean"], ["last", "next"], ["uniform", "depth"], [1.0, 0.3])),
)
@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_terms_are_the_formula(problem_type, reduction, teacher, weights, scale):
    exit_logits, labels = example(problem_type)
    loss = ExitLoss(0.7, 2.5, reduction, teacher, weights, scale)
    terms = loss(exit_logits, labels, exit_layers=LAYERS, problem_type=problem_type)
    last, exits = plain_terms(
        exit_logits, labels, LAYERS, problem_type, 0.7, 2.5, reduction, teacher, weights, scale
    )
    assert terms.last.item() == pytest.approx(last, rel=1e-5)
    assert terms.exits.item() == pytest.approx(exits, rel=1e-5)
    assert terms.last.shape == terms.exits.shape == ()


# ---- by hand


@pytest.mark.parametrize(("reduction", "share"), [("batchmean", 1), ("mean", 1 / 2)])
def test_two_exits_by_hand(reduction, share):
    # One row of class 1, T = 2. Exit 1: logits (0, 2 ln 3) are probabilities (1/10, 9/10), and (1/4, 3/4) at
    # T = 2. Last exit: (0, 0), that is (1/2, 1/2) at any T. CE: ln(10/9) and ln 2. KL(teacher || student) =
    # 1/2 ln 2 + 1/2 ln(2/3) = 1/2 ln(4/3); times T^2: 2 ln(4/3).
    exit_logits = torch.tensor([[[0.0, 2 * math.log(3)], [0.0, 0.0]]])
    loss = ExitLoss(
        distillation_weight=0.9,
        distillation_temperature=2.0,
        distillation_reduction=reduction,
        exit_scale=0.2,
    )
    terms = loss(exit_logits, torch.tensor([1]), exit_layers=[1, 2], problem_type=SINGLE)
    assert terms.last.item() == pytest.approx(math.log(2))
    expected = 0.1 * math.log(10 / 9) + 0.9 * share * 2 * math.log(4 / 3)
    assert terms.exits.item() == pytest.approx(0.2 * expected, rel=1e-5)
    assert terms.per_exit.tolist() == pytest.approx([math.log(10 / 9), math.log(2)], rel=1e-5)


def test_regression_by_hand():
    # Target 2. Exits say 0, 1, 4: squared errors 4, 1, 4; squared distances to the last exit 16 and 9, to the
    # next one 1 and 9.
    exit_logits, labels = torch.tensor([[[0.0], [1.0], [4.0]]]), torch.tensor([2.0])
    for teacher, divergence in (("last", 16 + 9), ("next", 1 + 9)):
        loss = ExitLoss(0.25, teacher=teacher, exit_scale=1.0)
        terms = loss(exit_logits, labels, exit_layers=[1, 2, 3], problem_type=REGRESSION)
        assert terms.exits.item() == 0.75 * (4 + 1) + 0.25 * divergence
        assert terms.last.item() == 4


def test_multi_label_by_hand():
    # Logit ln 3 says yes with 3/4, logit 0 with 1/2. Targets (1, 0): BCE = (ln 4/3 + ln 2) / 2 at exit 1, ln
    # 2 at the last. KL((1/2, 1/2) || (3/4, 1/4)) = 1/2 ln(4/3) for the first label, 0 for the second;
    # averaged over labels: 1/4 ln(4/3).
    exit_logits = torch.tensor([[[math.log(3), 0.0], [0.0, 0.0]]])
    terms = ExitLoss(0.6, 1.0, exit_scale=1.0)(
        exit_logits, torch.tensor([[1.0, 0.0]]), exit_layers=[1, 2], problem_type=MULTI
    )
    assert terms.last.item() == pytest.approx(math.log(2))
    expected = 0.4 * (math.log(4 / 3) + math.log(2)) / 2 + 0.6 * math.log(4 / 3) / 4
    assert terms.exits.item() == pytest.approx(expected, rel=1e-5)


def test_depth_weights_by_hand():
    # Exits after layers 1 and 3 weigh 1 and 3 over their mean 2; squared errors 4 and 1: 0.5 * 4 + 1.5 * 1.
    exit_logits = torch.tensor([[[0.0], [1.0], [4.0]]])
    terms = ExitLoss(0.0, exit_weights="depth", exit_scale=1.0)(
        exit_logits, torch.tensor([2.0]), exit_layers=[1, 3, 4], problem_type=REGRESSION
    )
    assert terms.exits.item() == 3.5


# ---- identities


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_mean_reduction_is_one_over_the_classes(problem_type):
    exit_logits, _ = example(problem_type)
    student, teacher = exit_logits[:, :-1], exit_logits[:, 1:]
    paper = distillation_losses(student, teacher, problem_type, 3.0, "batchmean")
    code = distillation_losses(student, teacher, problem_type, 3.0, "mean")
    torch.testing.assert_close(code, paper / (3 if problem_type == SINGLE else 2))


def test_distillation_is_torch_s_kl_div():
    exit_logits, _ = example(SINGLE)
    student, teacher = exit_logits[:, 0], exit_logits[:, -1]
    arguments = (student / 3).log_softmax(1), (teacher / 3).softmax(1)
    stock = {
        "batchmean": F.kl_div(*arguments, reduction="batchmean"),
        "mean": F.kl_div(*arguments, reduction="none").mean(),
    }
    for reduction, value in stock.items():
        ours = distillation_losses(student[:, None], teacher[:, None], SINGLE, 3.0, reduction)
        torch.testing.assert_close(ours, 9 * value[None])


@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_equal_exits_distil_nothing(problem_type):
    exit_logits, _ = example(problem_type)
    same = exit_logits[:, :1].expand(-1, 2, -1)
    assert distillation_losses(same, same, problem_type, 3.0, "batchmean").abs().max() < 1e-6


@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_gamma_0_is_the_task_loss_of_every_exit(problem_type):
    exit_logits, labels = example(problem_type)
    terms = ExitLoss(distillation_weight=0.0, exit_scale=1.0)(
        exit_logits, labels, exit_layers=LAYERS, problem_type=problem_type
    )
    each = task_losses(exit_logits, labels, problem_type)
    torch.testing.assert_close(terms.exits, each[:-1].sum())
    torch.testing.assert_close(terms.last, each[-1])


@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_gamma_1_hides_the_labels_from_the_early_exits(problem_type):
    exit_logits, labels = example(problem_type)
    other = labels.flip(0)
    assert not torch.equal(labels, other)
    loss = ExitLoss(distillation_weight=1.0)
    one, two = (loss(exit_logits, y, exit_layers=LAYERS, problem_type=problem_type) for y in (labels, other))
    assert torch.equal(one.exits, two.exits) and one.exits > 0
    assert not torch.equal(one.last, two.last)


@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_one_exit_is_ordinary_fine_tuning(problem_type):
    exit_logits, labels = example(problem_type, exits=1)
    terms = ExitLoss()(exit_logits, labels, exit_layers=[6], problem_type=problem_type)
    stock = {SINGLE: F.cross_entropy, MULTI: F.binary_cross_entropy_with_logits, REGRESSION: F.mse_loss}[
        problem_type
    ]
    logits = exit_logits[:, 0, 0] if problem_type == REGRESSION else exit_logits[:, 0]
    torch.testing.assert_close(terms.last, stock(logits, labels))
    assert terms.exits.item() == 0
    assert terms.per_exit.shape == (1,)


@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_task_loss_is_torch_s_at_every_exit(problem_type):
    exit_logits, labels = example(problem_type)
    stock = {SINGLE: F.cross_entropy, MULTI: F.binary_cross_entropy_with_logits, REGRESSION: F.mse_loss}[
        problem_type
    ]
    shaped = labels[:, None] if problem_type == REGRESSION else labels
    torch.testing.assert_close(
        task_losses(exit_logits, labels, problem_type),
        torch.stack([stock(z, shaped) for z in exit_logits.unbind(1)]),
    )
    torch.testing.assert_close(
        task_losses(exit_logits, shaped, problem_type), task_losses(exit_logits, labels, problem_type)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_label_smoothing_and_ignored_labels_are_torch_s(smoothing):
    exit_logits, labels = example(SINGLE)
    labels[1] = labels[3] = -100
    stock = torch.stack(
        [F.cross_entropy(z, labels, label_smoothing=smoothing) for z in exit_logits.unbind(1)]
    )
    torch.testing.assert_close(task_losses(exit_logits, labels, SINGLE, smoothing), stock)
    terms = ExitLoss(0.0, label_smoothing=smoothing)(
        exit_logits, labels, exit_layers=LAYERS, problem_type=SINGLE
    )
    torch.testing.assert_close(terms.per_exit, stock)


@pytest.mark.parametrize("weights", [None, (0.2, 3.0, 0.7)])
@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_rows_without_a_label_are_as_if_they_were_not_there(gamma, weights):
    exit_logits, labels = example(SINGLE)
    unlabelled = labels.clone()
    unlabelled[[1, 3]] = -100
    loss, rows = ExitLoss(gamma, class_weights=weights), unlabelled != -100
    settings = {"exit_layers": LAYERS, "problem_type": SINGLE}
    for one, other in zip(
        loss(exit_logits, unlabelled, **settings),
        loss(exit_logits[rows], labels[rows], **settings),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "settings",
    [{}, {"class_weights": (1.0, 2.0, 3.0)}, {"label_smoothing": 0.1}, {"teacher": "next"}],
    ids=str,
)
def test_without_any_label_loss_and_gradient_are_0(settings):
    exit_logits, labels = example(SINGLE)
    exit_logits.requires_grad_()
    terms = ExitLoss(0.5, **settings)(
        exit_logits, torch.full_like(labels, -100), exit_layers=LAYERS, problem_type=SINGLE
    )
    assert [value.item() for value in (terms.last, terms.exits, *terms.per_exit)] == [0.0] * 6
    (gradient,) = torch.autograd.grad(terms.last + terms.exits, exit_logits)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weights", [[0.3, 2.0, 0.7], [1.0, 0.0, 5.0], [2.0, 2.0, 2.0]], ids=str)
def test_class_weights_are_torch_s(weights, smoothing):
    exit_logits, labels = example(SINGLE)
    labels[1] = -100
    stock = [
        F.cross_entropy(z, labels, weight=torch.tensor(weights), label_smoothing=smoothing)
        for z in exit_logits.unbind(1)
    ]
    torch.testing.assert_close(
        task_losses(exit_logits, labels, SINGLE, smoothing, weights), torch.stack(stock)
    )
    exit_logits, labels = example(MULTI)
    stock = [
        F.binary_cross_entropy_with_logits(z, labels, pos_weight=torch.tensor(weights))
        for z in exit_logits.unbind(1)
    ]
    torch.testing.assert_close(
        task_losses(exit_logits, labels, MULTI, class_weights=weights), torch.stack(stock)
    )


def test_a_batch_of_classes_that_weigh_nothing_has_a_loss_of_0():
    exit_logits, labels = example(SINGLE)
    assert (
        task_losses(exit_logits, torch.ones_like(labels), SINGLE, class_weights=[1.0, 0.0, 1.0]).tolist()
        == [0.0] * 4
    )


def test_single_labels_in_a_column():
    exit_logits, labels = example(SINGLE)
    check_labels(labels[:, None], SINGLE, 3)
    assert torch.equal(
        task_losses(exit_logits, labels[:, None], SINGLE), task_losses(exit_logits, labels, SINGLE)
    )


# ---- gradients


@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_no_gradient_into_the_teacher(problem_type):
    exit_logits, labels = example(problem_type)
    exit_logits.requires_grad_()
    terms = ExitLoss()(exit_logits, labels, exit_layers=LAYERS, problem_type=problem_type)
    (gradient,) = torch.autograd.grad(terms.exits, exit_logits, retain_graph=True)
    assert gradient[:, -1].abs().max() == 0
    assert (gradient[:, :-1].abs().amax(dim=(0, 2)) > 0).all()
    (gradient,) = torch.autograd.grad(terms.last, exit_logits)
    assert gradient[:, :-1].abs().max() == 0 and gradient[:, -1].abs().max() > 0
    assert not terms.per_exit.requires_grad


def test_next_exit_is_not_moved_by_the_one_it_teaches():
    exit_logits, labels = example(SINGLE)
    exit_logits.requires_grad_()
    terms = ExitLoss(1.0, teacher="next")(exit_logits[:, :2], labels, exit_layers=[1, 2], problem_type=SINGLE)
    (gradient,) = torch.autograd.grad(terms.exits, exit_logits)
    assert gradient[:, 0].abs().max() > 0 and gradient[:, 1].abs().max() == 0


# ---- precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_half_precision_logits_are_computed_in_fp32(problem_type, dtype):
    exit_logits, labels = example(problem_type)
    half = exit_logits.to(dtype)
    ours = ExitLoss()(half, labels, exit_layers=LAYERS, problem_type=problem_type)
    full = ExitLoss()(half.float(), labels, exit_layers=LAYERS, problem_type=problem_type)
    for one, other in zip(ours, full, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_large_logits_are_finite(problem_type, dtype):
    exit_logits = torch.tensor([[[6e4, -6e4], [-6e4, 6e4], [-6e4, 6e4]]], dtype=dtype, requires_grad=True)
    labels = torch.tensor([1]) if problem_type == SINGLE else torch.tensor([[0.0, 1.0]])
    terms = ExitLoss(exit_scale=1.0)(exit_logits, labels, exit_layers=[1, 2, 3], problem_type=problem_type)
    assert terms.last.item() == 0
    assert terms.exits.isfinite() and terms.exits > 1e4
    (terms.last + terms.exits).backward()
    assert exit_logits.grad.isfinite().all()


# ---- errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"distillation_reduction": "sum"},
            "distillation_reduction='sum' is unknown; choose from batchmean, mean",
        ),
        ({"teacher": "first"}, "teacher='first' is unknown; choose from last, next"),
        ({"exit_weights": "linear"}, "exit_weights='linear' is unknown; choose from uniform, depth"),
        ({"exit_scale": 0.0}, r"exit_scale=0.0 is not above 0 .*objective='last' trains the last exit alone"),
        ({"exit_scale": math.inf}, "exit_scale=inf is not above 0"),
        ({"distillation_weight": 1.1}, r"distillation_weight=1.1 is not in 0\.\.1"),
        ({"distillation_weight": -0.1}, r"distillation_weight=-0.1 is not in 0\.\.1"),
        ({"distillation_weight": math.nan}, r"distillation_weight=nan is not in 0\.\.1"),
        ({"distillation_temperature": 0}, "distillation_temperature=0 is not above 0"),
        ({"distillation_temperature": math.inf}, "distillation_temperature=inf is not above 0"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1.0 is not in 0\.\.1"),
        ({"label_smoothing": -0.1}, r"label_smoothing=-0.1 is not in 0\.\.1"),
        (
            {"class_weights": (1.0, -1.0)},
            r"class_weights=\[1.0, -1.0\] are not finite numbers of 0 or more, some of them above 0",
        ),
        ({"class_weights": (math.nan, 1.0)}, r"class_weights=\[nan, 1.0\] are not finite"),
        ({"class_weights": (0.0, 0.0)}, r"class_weights=\[0.0, 0.0\] are not .* some of them above 0"),
    ],
)
def test_settings_that_mean_nothing(settings, message):
    with pytest.raises(ValueError, match=message):
        ExitLoss(**settings)


@pytest.mark.parametrize(
    ("labels", "problem_type", "num_labels", "message"),
    [
        (
            torch.tensor([0, 3]),
            SINGLE,
            3,
            r"labels hold 3; .* class ids 0\.\.2, or -100 for none.*config\.num_labels",
        ),
        (torch.tensor([0, -1]), SINGLE, 3, r"labels hold -1; .* class ids 0\.\.2"),
        (torch.tensor([0.0, 1.0]), SINGLE, 3, r"dtype torch\.float32; a single label needs \(2,\) class ids"),
        (torch.tensor([[0, 1], [1, 0]]), SINGLE, 2, r"shape \(2, 2\) .* a single label needs \(2,\)"),
        (
            torch.tensor([0.0, 1.0]),
            MULTI,
            3,
            r"shape \(2,\); problem_type='multi_label_classification' needs \(2, 3\)",
        ),
        (
            torch.tensor([[0.0, 2.0]]),
            MULTI,
            2,
            r"labels hold 2\.0; multi_label_classification takes targets in 0\.\.1",
        ),
        (torch.tensor([[0.0, math.nan]]), MULTI, 2, r"labels hold nan; .* targets in 0\.\.1"),
        (
            torch.tensor([[0.0, 1.0]]),
            REGRESSION,
            1,
            r"shape \(1, 2\); problem_type='regression' needs \(1, 1\)",
        ),
        (torch.tensor([0.5, math.inf]), REGRESSION, 1, "labels hold inf; regression takes finite numbers"),
    ],
)
def test_labels_that_do_not_fit(labels, problem_type, num_labels, message):
    with pytest.raises(ValueError, match=message):
        check_labels(labels, problem_type, num_labels)


@pytest.mark.parametrize(
    ("problem_type", "weights", "message"),
    [
        (SINGLE, (1.0, 2.0), r"class_weights=\[1.0, 2.0\] has 2 entries, and the model has 3 classes"),
        (
            MULTI,
            (1.0,) * 4,
            "has 4 entries, and the model has 3 classes; give one number per class, in the order of"
            " config.id2label",
        ),
        (REGRESSION, (1.0,), "class_weights=.* are given, but a regression has no classes; leave them out"),
    ],
)
def test_class_weights_that_do_not_fit(problem_type, weights, message):
    exit_logits, labels = example(problem_type)
    with pytest.raises(ValueError, match=message):
        task_losses(exit_logits, labels, problem_type, class_weights=weights)


@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_labels_that_fit_are_let_through(problem_type):
    _, labels = example(problem_type)
    assert check_labels(labels, problem_type, 1 if problem_type == REGRESSION else 3) is None
    assert check_labels(torch.tensor([-100, 2]), SINGLE, 3) is None


def test_problem_type_is_inferred_as_transformers_does():
    assert infer_problem_type(1, torch.tensor([1, 2])) == REGRESSION
    assert infer_problem_type(3, torch.tensor([1, 2])) == SINGLE
    assert infer_problem_type(3, torch.ones(2, 3)) == MULTI
