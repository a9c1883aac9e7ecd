"""Gradient regularization written out: two backward passes for every micro-batch, one flat vector, one
projection.

The oracle of the tests of exactness, and what they share: models whose gradients conflict, and a record of a
    Trainer's steps.
"""

import copy
import re
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from tiny import CLASSES, PAPER, PAPER_LOSS, padded_batch, tiny_backbone, tiny_rows, tiny_tokenizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import DataCollatorWithPadding, TrainerCallback

from modeling_romebert import (
    ExitLoss,
    RomeBertConfig,
    RomeBertForSequenceClassification,
    RomeBertTrainer,
    RomeBertTrainingArguments,
)

GAMMA, T, LEARNING_RATE = 0.9, 3.0, 1e-3
COLLATE = DataCollatorWithPadding(tiny_tokenizer())


@torch.no_grad()
def contrary(layers=5, exit_layers=None, dropout=0.0, **settings):
    """A tiny model whose early exits read the states as the opposite of what the last does: the two gradients
    conflict.
    """
    torch.manual_seed(0)
    backbone = tiny_backbone(
        num_hidden_layers=layers, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    )
    model = RomeBertForSequenceClassification(
        RomeBertConfig(
            backbone,
            num_labels=CLASSES,
            exit_layers=exit_layers,
            **{"exit_pooling": "mean"} | PAPER_LOSS | settings,
        )
    )
    *early, last = model.exits.values()
    torch.nn.init.normal_(last.classifier.weight)
    logits = model.eval()(*padded_batch()).logits
    scale = 0.2 / logits.std()  # nobody is sure of anything yet
    last.classifier.weight.mul_(scale)
    last.classifier.bias.copy_(-logits.mean(dim=0) * scale)
    for head in early:
        head.load_state_dict(
            {name: -0.3 * w if "classifier" in name else w for name, w in last.state_dict().items()}
        )
    return model.train()


def adapted(model, **settings):
    """A copy with LoRA adapters that already say something, and trained exits: `SEQ_CLS` makes their
    classifiers so.
    """
    poolers = ["pooler"] if model.config.exit_pooling == "cls" else None
    settings = {
        "target_modules": ["query", "value"],
        "modules_to_save": poolers,
        "r": 4,
        "lora_alpha": 1,
    } | settings
    torch.manual_seed(1)
    return get_peft_model(
        copy.deepcopy(model), LoraConfig(task_type="SEQ_CLS", init_lora_weights=False, **settings)
    )


def rows_of(count):
    """Rows mostly of one class, so that what conflicts in one of them conflicts in their mean too."""
    return [row | {"labels": int(index % 4 > 0)} for index, row in enumerate(tiny_rows(count, seed=3))]


def groups_of(rows, size, accumulation, processes=1, even_batches=True):
    """The micro-batches of each step as the stock Trainer takes them, without shuffling: step -> process ->
    its micro-batches.

    Batches go round the processes. Several processes get whole batches and equally many, for which the first
    rows come again, unless `even_batches` is off.
    """
    rows = list(rows)
    if processes > 1 and even_batches:
        rows += rows[: -len(rows) % (size * processes)]
    batches = [COLLATE(rows[start : start + size]) for start in range(0, len(rows), size)]
    of_process = [batches[process::processes] for process in range(processes)]
    steps = range(0, len(of_process[0]), accumulation)
    return [[mine[start : start + accumulation] for mine in of_process] for start in steps]


def two_losses(model, batch, label_smoothing=0.0):
    """L_last and L_exit of a micro-batch, each averaged over its rows."""
    labels = batch["labels"]
    *early, last = model(batch["input_ids"], batch["attention_mask"]).exit_logits.unbind(1)
    exits = 0.0
    for logits in early:
        teacher, student = (last.detach().float() / T).softmax(-1), (logits.float() / T).softmax(-1)
        divergence = (teacher * (teacher / student).log()).sum(-1).mean()
        exits = exits + (1 - GAMMA) * F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
        exits = exits + GAMMA * T**2 * divergence
    return F.cross_entropy(last.float(), labels, label_smoothing=label_smoothing), exits


def shared_names(model):
    """Trained matrices of every layer up to the deepest exit before the last."""
    deepest = model.config.exit_layers[-2]
    layer_of = {
        name: re.search(r"encoder\.layer\.(\d+)\.", name)
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    return [
        name
        for name, at in layer_of.items()
        if at and int(at[1]) < deepest and model.get_parameter(name).ndim == 2
    ]


def stated_losses(model, batch):
    """The two losses by the package's own formula: where rounding to few bits is compared, it must be the
    same rounding.

    Outputs become fp32 once, as accelerate has it.
    """
    logits = model(batch["input_ids"], batch["attention_mask"]).exit_logits.float()
    losses = ExitLoss(**PAPER_LOSS)(
        logits,
        batch["labels"],
        exit_layers=model.config.exit_layers,
        problem_type="single_label_classification",
    )
    return losses.last, losses.exits


def backward_pass(model, batch, which, count, context, rng, losses):
    """Name -> gradient of one term, or of both, divided by the count; None where it reaches nothing."""
    model.zero_grad()
    if rng is not None:
        torch.set_rng_state(rng)
    with context():
        last, exits = losses(model, batch)
    terms = {"last": [last], "exits": [exits], "both": [last, exits]}[which]
    torch.autograd.backward([term / count for term in terms])
    return {
        name: None if p.grad is None else p.grad.double()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def projection(of_last, of_exits, shared, protect):
    """The formula written out, once for all tests.

    With a the gradient of the loss that is protected and b that of the other it is a + b, and on the shared
    weights, as one flat vector, a + b - min(0, <b, a> / <a, a>) a.

    Args:
        of_last, of_exits: name -> gradient of either loss.
        shared: the names of the weights that both losses reach.
        protect: `"protect_exits"`, `"protect_last"`, or `"off"`, for the plain sum.

    Returns:
        Name -> gradient, and the cosine of the two on the shared weights.
    """
    a, b = (of_exits, of_last) if protect == "protect_exits" else (of_last, of_exits)
    total = {name: a[name] + b[name] for name in a}
    if not shared:
        return total, 0.0
    flat_a, flat_b = (torch.cat([side[name].flatten() for name in shared]).double() for side in (a, b))
    if protect != "off" and flat_a @ flat_b < 0:
        share = float(flat_a @ flat_b / (flat_a @ flat_a))
        total |= {name: total[name] - share * a[name] for name in shared}
    return total, torch.cosine_similarity(flat_a, flat_b, dim=0).item()


def explicit(
    model, group, protect="protect_exits", context=nullcontext, rng=None, losses=two_losses, joint=False
):
    """Name -> gradient that a step is to take, and the cosine of the two on the shared weights.

    Each term's gradient is the mean over the group's micro-batches and over processes; then there is one
    projection.

    Args:
        group: process -> its micro-batches.
        context: what every forward pass runs in.
        losses: model, micro-batch -> the two losses.
        rng: the state of the generator before every micro-batch of the only process.
        joint: take b from the backward pass of a + b, as rounding in fewer bits makes a difference.
    """
    model, count = copy.deepcopy(model), sum(map(len, group))
    a_term, b_term = ("exits", "last") if protect == "protect_exits" else ("last", "exits")
    sums = {}
    for term in (a_term, "both" if joint else b_term):
        mean = {name: None for name, p in model.named_parameters() if p.requires_grad}
        for index, batch in enumerate(batch for batches in group for batch in batches):
            found = backward_pass(
                model, batch, term, count, context, None if rng is None else rng[index], losses
            )
            for name, gradient in found.items():
                if gradient is not None:
                    mean[name] = gradient + (0 if mean[name] is None else mean[name])
        sums[term] = mean
    a, b = sums.values()
    reached = [name for name in a if a[name] is not None or b[name] is not None]
    for name in reached:
        zero = torch.zeros_like(model.get_parameter(name), dtype=torch.float64)
        a[name], b[name] = (zero if side[name] is None else side[name] for side in (a, b))
        b[name] = b[name] - a[name] if joint else b[name]
    a_reached, b_reached = ({name: side[name] for name in reached} for side in (a, b))
    of_exits, of_last = (a_reached, b_reached) if protect == "protect_exits" else (b_reached, a_reached)
    shared = [name for name in shared_names(model) if name in reached]
    total, cosine = projection(of_last, of_exits, shared, protect)
    return {name: total.get(name) for name in a}, cosine


class Steps(TrainerCallback):
    """Weights before every step, and the gradients with which the optimizer takes it."""

    def __init__(self):
        self.weights, self.gradients, self.rng = [], [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
        self.gradients.append(
            {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
        )


def train(
    model, rows, folder, trainer=RomeBertTrainer, kind=RomeBertTrainingArguments, resume_from=None, **settings
):
    """One epoch of plain gradient descent over rows in their order -> the steps taken, and the trainer."""
    quiet = {
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    order = {
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": 4,
        "max_grad_norm": 0.0,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    steps = Steps()
    hook = model.register_forward_pre_hook(lambda *_: steps.rng.append(torch.get_rng_state()))
    made = trainer(
        model,
        kind(str(folder), **quiet | order | (PAPER if kind is RomeBertTrainingArguments else {}) | settings),
        train_dataset=rows,
        data_collator=COLLATE,
        optimizers=(optimizer, LambdaLR(optimizer, lambda step: 1.0)),
        callbacks=[steps],
    )
    made.train(resume_from_checkpoint=resume_from)
    hook.remove()
    return steps, made


@torch.no_grad()
def at(model, weights):
    """A copy of the model with other weights."""
    model = copy.deepcopy(model)
    for name, weight in model.named_parameters():
        weight.copy_(weights[name])
    return model


def assert_equal_gradients(found, expected, bound=1e-5):
    """Relative error below the bound, parameter by parameter; nothing where nothing is due."""
    whole = torch.cat([gradient.flatten() for gradient in expected.values() if gradient is not None]).norm()
    for name, gradient in found.items():
        if expected.get(name) is None:
            assert gradient is None, name
            continue
        error = (gradient.double() - expected[name]).norm()
        if name.endswith(
            "key.bias"
        ):  # it adds the same to every score of a query, so its gradient is rounding alone
            assert error < 0.1 * bound * whole, name
        else:
            assert error < bound * expected[name].norm(), (name, (error / expected[name].norm()).item())


def assert_exact(
    steps, model, groups, protect="protect_exits", bound=1e-5, scale=lambda expected: 1.0, **how
):
    """Every step's gradients are those written out at its weights; returns the cosines."""
    assert len(steps.gradients) == len(groups)
    cosines, taken = [], 0
    for weights, found, group in zip(steps.weights, steps.gradients, groups, strict=True):
        micro_batches = sum(map(len, group))
        rng = steps.rng[taken : taken + micro_batches] if how.get("rng") else None
        expected, cosine = explicit(at(model, weights), group, protect, **how | {"rng": rng})
        factor = scale(expected)
        assert_equal_gradients(
            found, {name: g if g is None else factor * g for name, g in expected.items()}, bound
        )
        cosines.append(cosine)
        taken += micro_batches
    return cosines
