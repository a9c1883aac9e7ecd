"""Trains a tiny model for a few steps, as one process or as several, and writes its weights: see test_distributed.py.

python tests/distributed_run.py OUT.safetensors key=value ...          # values are JSON
torchrun --nproc_per_node 2 tests/distributed_run.py OUT.safetensors key=value ...
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import tiny_backbone, tiny_rows, tiny_tokenizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import DataCollatorWithPadding

from modeling_romebert import RomeBertConfig, RomeBertForSequenceClassification, RomeBertTrainer, RomeBertTrainingArguments


def train(out: str, **settings) -> None:
    torch.manual_seed(0)
    backbone = tiny_backbone(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = RomeBertForSequenceClassification(RomeBertConfig(backbone, exit_pooling="mean"))
    defaults = {"max_steps": 3, "learning_rate": 0.1, "use_cpu": True, "report_to": "none", "logging_steps": 1}
    folder = str(Path(out).parent / "run")
    arguments = RomeBertTrainingArguments(folder, save_strategy="no", disable_tqdm=True, **{**defaults, **settings})
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.learning_rate)  # in proportion to the gradient, error included
    trainer = RomeBertTrainer(
        model,
        arguments,
        train_dataset=tiny_rows(64),
        data_collator=DataCollatorWithPadding(tiny_tokenizer()),
        optimizers=(optimizer, LambdaLR(optimizer, lambda step: 1.0)),
    )
    trainer.train()
    if trainer.is_world_process_zero():
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        save_file(model.state_dict(), out, metadata={"world_size": str(arguments.world_size), "logs": json.dumps(logs)})
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(sys.argv[1], **{key: json.loads(value) for key, _, value in (argument.partition("=") for argument in sys.argv[2:])})
    os._exit(0)  # the weights are written; gloo's threads now and then abort the interpreter's own way out
