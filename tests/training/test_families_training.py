"""Every family in training: the projection on the weights that two losses share, and checkpointing."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from by_version import enable_checkpointing
from explicit import projection
from families import families
from tiny import CLASSES, PAPER, ROWS, build, padded_batch
from torch import Tensor

from modeling_romebert import RomeBertForSequenceClassification, RomeBertTrainer, RomeBertTrainingArguments

pytestmark = pytest.mark.slow


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def contrary(family) -> tuple[RomeBertForSequenceClassification, list[dict[str, Tensor]]]:
    """A model in training mode whose early exits say the opposite of the last, and rows labelled with what
    its first exit deems
    least likely: the gradients of the two losses conflict."""
    model, (ids, mask) = without_dropout(build(backbone=family.backbone())), padded_batch()
    *early, last = model.exits.values()
    for head in early:
        head.load_state_dict(
            {name: -w if "classifier" in name else w for name, w in last.state_dict().items()}
        )
    labels = model(ids, mask).exit_logits[:, 0].argmin(dim=-1)
    labels[0] = (labels[1] + 1) % CLASSES  # a trainer refuses rows that are all of one class
    return model, [
        {"input_ids": i, "attention_mask": m, "labels": y} for i, m, y in zip(ids, mask, labels, strict=True)
    ]


def gradients(model, rows, term) -> dict[str, Tensor]:
    """Of the last exit's cross entropy (term 0) or of the others' sum (term 1), by name of the weight, by a
    plain backward pass.
    """
    ids, mask, labels = (
        torch.stack([row[name] for row in rows]) for name in ("input_ids", "attention_mask", "labels")
    )
    *early, last = model(ids, mask).exit_logits.unbind(1)
    model.zero_grad()
    (
        F.cross_entropy(last, labels)
        if term == 0
        else sum(F.cross_entropy(logits, labels) for logits in early)
    ).backward()
    found = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }
    model.zero_grad()
    return found


def projected(family, model, rows) -> tuple[dict[str, Tensor], float]:
    """The gradient of a step that protects the exits, and the cosine of the two losses'."""
    b, a = gradients(model, rows, 0), gradients(model, rows, 1)
    in_layers = re.compile(rf"backbone\.{re.escape(family.layers)}\.")
    shared = [
        name for name in a if in_layers.match(name) and a[name].ndim == 2 and a[name].any() and b[name].any()
    ]
    assert len(shared) == family.matrices
    return projection(b, a, shared, "protect_exits")


@families
def test_a_step_is_the_projection_of_two_explicit_backward_passes(family, tmp_path):
    before, rows = contrary(family)
    expected, cosine = projected(family, before, rows)
    assert cosine < -0.05

    after, rate = (
        copy.deepcopy(before),
        100.0,
    )  # plain gradient descent, far above the rounding of the weights
    optimizer = torch.optim.SGD(after.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    quiet = {
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "max_grad_norm": 0.0,
    }
    arguments = RomeBertTrainingArguments(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=ROWS,
        **PAPER | quiet | {"distillation_weight": 0.0},
    )
    RomeBertTrainer(after, arguments, train_dataset=rows, optimizers=(optimizer, schedule)).train()
    whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    moved = dict(after.named_parameters())
    for name, parameter in before.named_parameters():
        step = (parameter - moved[name]).detach() / rate
        assert (step - expected[name]).norm() <= 1e-5 * expected[name].norm() + 1e-6 * whole, name


@families
def test_gradient_checkpointing_gives_the_same_gradients(family):
    model, rows = contrary(family)
    runs = []
    inside = next(module for module in model.layers[0].modules() if isinstance(module, torch.nn.Linear))
    inside.register_forward_hook(lambda *_: runs.append(1))
    plain, once = gradients(model, rows, 1), len(runs)
    enable_checkpointing(model, use_reentrant=False)
    again = gradients(model, rows, 1)
    assert len(runs) == once + 2 * once  # each layer ran a second time, in the backward pass
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-6)


@families
def test_no_weight_goes_untrained(family):
    """A weight without a gradient would stall distributed training."""
    model, rows = contrary(family)
    ids, mask, labels = (
        torch.stack([row[name] for row in rows]) for name in ("input_ids", "attention_mask", "labels")
    )
    types = {"token_type_ids": ids % 2} if family.token_types else {}
    model(ids, mask, labels=labels, **types).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
