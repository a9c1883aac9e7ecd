"""Trainings in one process and in two, with a fault in one step where asked: a loss or a gradient that is not
finite.
"""

import torch
from processes import SERVER, enter, environments, leave_group
from tiny import PAPER, build, tiny_rows, tiny_tokenizer
from transformers import TrainerCallback

from modeling_romebert import RomeBertTrainer, RomeBertTrainingArguments

LOGITS, GRADIENT = "logits", "gradient"


class Fault:
    """Makes the logits of one exit, or the gradient that flows back from them, not finite.

    Args:
        layer: of the exit.
        where: `"logits"` or `"gradient"`.
        batches: in which forward passes of training, from 1.
        value: that takes the place of the first number.
    """

    def __init__(self, model, layer, where=LOGITS, batches=(), value=float("nan")):
        self.where, self.batches, self.value, self.passes = where, batches, value, 0
        model.exits[str(layer)].register_forward_hook(self)

    def __call__(self, exit_, inputs, logits):
        if not logits.requires_grad:
            return logits
        self.passes += 1
        if self.passes not in self.batches:
            return logits
        spoiled = torch.zeros_like(logits)
        spoiled[0, 0] = self.value
        if self.where == LOGITS:
            return logits + spoiled
        logits = logits.clone()
        logits.register_hook(lambda gradient: gradient + spoiled)
        return logits


class Watch(TrainerCallback):
    """The weights, the optimizer's moments and the learning rate after every step."""

    def __init__(self):
        self.weights, self.moments, self.rates = [], [], []

    def on_train_begin(self, args, state, control, model, **rest):
        self.weights.append({name: weight.clone() for name, weight in model.state_dict().items()})

    def on_step_end(self, args, state, control, model, optimizer, lr_scheduler, **rest):
        self.weights.append({name: weight.clone() for name, weight in model.state_dict().items()})
        states = optimizer.state_dict()["state"]
        self.moments.append(
            {(i, k): v.clone() for i, of in states.items() for k, v in of.items() if torch.is_tensor(v)}
        )
        self.rates.append(lr_scheduler.get_last_lr()[0])


def trainer_of(folder, fault=None, watch=None, rows=24, dropout=True, **settings):
    """A trainer of six steps on toy texts, `fault` being the arguments of `Fault`."""
    quiet = {
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "seed": 3,
    }
    sizes = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "weight_decay": 0.1}
    model = build(num_labels=2, exit_pooling="cls")
    arguments = RomeBertTrainingArguments(str(folder), **quiet | PAPER | sizes | settings)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and not dropout:
            module.p = 0.0
    if fault is not None:
        Fault(model, **fault)
    callbacks = [] if watch is None else [watch]
    return RomeBertTrainer(
        model,
        arguments,
        train_dataset=tiny_rows(rows),
        processing_class=tiny_tokenizer(),
        callbacks=callbacks,
    )


def two_processes(folder, fault_of_rank, **settings):
    """Each process's error, logs and weights."""
    results, started = SERVER.Queue(), []
    for environment in environments(2):
        started.append(
            SERVER.Process(
                target=_train_as_one_of_two, args=(results, environment, folder, fault_of_rank, settings)
            )
        )
        started[-1].start()
    found = sorted((results.get(timeout=120) for _ in started), key=lambda result: result[0])
    for process in started:
        process.join(timeout=60)
    assert [process.exitcode for process in started] == [0, 0]
    assert [world_size for _, world_size, *_ in found] == [2, 2]
    return [result[2:] for result in found]


def _train_as_one_of_two(results, environment, folder, fault_of_rank, settings) -> None:
    enter(environment)
    rank = int(environment["RANK"])
    trainer, error = trainer_of(folder, fault_of_rank.get(rank), **settings), None
    try:
        trainer.train()
    except FloatingPointError as raised:
        error = str(raised)
    weights = {name: weight.numpy() for name, weight in trainer.model.state_dict().items()}
    results.put((rank, trainer.args.world_size, error, trainer.state.log_history, weights))
    results.close()
    results.join_thread()
    trainer.accelerator.wait_for_everyone()
    leave_group()
