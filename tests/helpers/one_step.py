"""One step of plain gradient descent by a Trainer, and the gradient that it has to take."""

import torch
import torch.nn.functional as F
from explicit import projection
from tiny import CLASSES, LAYERS, PAPER, PAPER_LOSS, build, padded_batch

from modeling_romebert import RomeBertTrainer, RomeBertTrainingArguments

GAMMA, T = 0.9, 3.0


LR = 1000.0  # of plain gradient descent: a step far above the rounding of the weights


SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def arguments(folder, kind=RomeBertTrainingArguments, **settings):
    """Quiet arguments on the CPU, without clipping, that save nothing and log every step."""
    quiet = {
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    quiet |= PAPER if kind is RomeBertTrainingArguments else {}
    return kind(str(folder), **quiet | {"max_grad_norm": 0.0, "logging_nan_inf_filter": False} | settings)


def steady(**settings):
    """A tiny model without dropout, in training mode."""
    model = build(**PAPER_LOSS | settings).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def contrary(**settings):
    """As `steady`, but the early exits say the opposite of the last: gradients then conflict, for labels of
    seed 0.
    """
    model = steady(**settings)
    *early, last = model.exits.values()
    for head in early:
        head.load_state_dict(
            {name: -w if "classifier" in name else w for name, w in last.state_dict().items()}
        )
    return model


def labels_for(problem_type, rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if problem_type == SINGLE:
        return torch.randint(CLASSES, (rows,), generator=generator)
    if problem_type == MULTI:
        return torch.randint(2, (rows, CLASSES), generator=generator).float()
    return torch.randn(rows, generator=generator)


def batch_rows(labels):
    """Rows of the padded batch, each with its padding, so that every way to batch them is the same work."""
    ids, mask = padded_batch()
    return [
        {"input_ids": i, "attention_mask": m, "labels": y} for i, m, y in zip(ids, mask, labels, strict=False)
    ]


def two_losses(model, rows, distills=True):
    """L_last and L_exit of rows, for a single label."""
    ids, mask, labels = (
        torch.stack([row[name] for row in rows]) for name in ("input_ids", "attention_mask", "labels")
    )
    *early, last = model(ids, mask).exit_logits.unbind(1)
    exits = 0.0
    for logits in early:
        if distills:
            teacher, student = (last.detach() / T).softmax(-1), (logits / T).softmax(-1)
            divergence = (teacher * (teacher / student).log()).sum(-1).mean()
            exits = exits + (1 - GAMMA) * F.cross_entropy(logits, labels) + GAMMA * T**2 * divergence
        else:
            exits = exits + F.cross_entropy(logits, labels)
    return F.cross_entropy(last, labels), exits


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    found = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }
    model.zero_grad()
    return found


def expected_gradient(model, rows, regularization, distills=True):
    """The gradient (by name) that a step takes, the cosine on the shared weights, and the two losses."""
    last, exits = two_losses(model, rows, distills)
    of_last, of_exits = (gradients_of(model, two_losses(model, rows, distills)[term]) for term in (0, 1))
    shared = [
        name
        for name in of_last
        if ".layer." in name and f".layer.{LAYERS - 1}." not in name and of_last[name].ndim == 2
    ]
    assert len(shared) == 6 * (LAYERS - 1)  # the matrices of every layer but the last
    return *projection(of_last, of_exits, shared, regularization), last.item(), exits.item()


def train_plainly(model, rows, folder, rates=lambda step: LR, **settings):
    """Gradient descent of a Trainer at a rate per step -> the trainer."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rates)
    settings = {"max_steps": 1, "per_device_train_batch_size": len(rows)} | settings
    trainer = RomeBertTrainer(
        model, arguments(folder, **settings), train_dataset=rows, optimizers=(optimizer, schedule)
    )
    trainer.train()
    return trainer


def assert_moved_along(before, after, gradient):
    """after = before - LR gradient, up to 1e-5 of each weight's own step."""
    whole = torch.cat([g.flatten() for g in gradient.values()]).norm()
    start = dict(before.named_parameters())
    for name, parameter in after.named_parameters():
        moved, expected = (start[name] - parameter).detach() / LR, gradient[name]
        # below 1e-6 of the whole gradient it is rounding: attention ignores a bias of the keys
        assert (moved - expected).norm() <= 1e-5 * expected.norm() + 1e-7 * whole, name
