"""Arguments of train_glue.py: what they are, recipes read before those of the command line, and which of them
make a run this run.
"""

import hashlib
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser, TrainingArguments

from modeling_romebert import RomeBertTrainingArguments
from support.glue_data import TASKS, data_files
from support.recipes import recipe_arguments

# Training arguments that decide which weights come out. Others (logging, saving, loading, devices) may change
# when a run goes on.
DECISIVE = (
    *(
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "train_sampling_strategy",
    ),
    *(
        "learning_rate",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "weight_decay",
        "max_grad_norm",
    ),
    *(
        "optim",
        "optim_args",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "label_smoothing_factor",
        "neftune_noise_alpha",
    ),
    *("seed", "data_seed", "dataloader_drop_last", "bf16", "fp16"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    *(
        f.name
        for f in fields(RomeBertTrainingArguments)
        if f.name not in {f.name for f in fields(TrainingArguments)}
    ),
)


@dataclass
class ModelArguments:
    """Where to start from, and which exits."""

    model_name_or_path: str = field(
        default="bert-base-uncased",
        metadata={"help": "Encoder or RomeBERT checkpoint to start from: folder or id on the Hub."},
    )
    exit_pooling: str | None = field(
        default=None,
        metadata={
            "help": "cls (default): a pooler per exit, as in the paper; mean: mean of the tokens, for"
            " backbones trained that way.",
            "choices": ["cls", "mean"],
        },
    )
    exit_layers: list[int] | None = field(
        default=None, metadata={"help": "Layers with an exit, counted from 1; default all."}
    )
    exit_mix: bool = field(
        default=False, metadata={"help": "Each exit reads a learned mix of the layers so far."}
    )
    keep_layers: float = field(
        default=1.0,
        metadata={"help": "Share of the encoder's layers to keep, from the first on: 0.5 is the first half."},
    )


@dataclass
class DataArguments:
    """What to train and evaluate on."""

    recipe: list[str] | None = field(
        default=None,
        metadata={
            "help": "Recipes: names of those that come with romebert, of a task (rte) or of a method (paper),"
            " or YAML files of arguments. A later one wins over an earlier one, the command line over all."
        },
    )
    task_name: str | None = field(
        default=None,
        metadata={"help": "GLUE task, from the Hub when no files are given.", "choices": list(TASKS)},
    )
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "CSV, TSV, JSON, JSONL with text[, text_pair], label. Labels with a decimal point (4.0)"
            " make it a regression."
        },
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "The same, to evaluate on; for mnli, matched."}
    )
    validation_mismatched_file: str | None = field(
        default=None, metadata={"help": "The same, for mnli, mismatched."}
    )
    test_file: str | None = field(
        default=None, metadata={"help": "The same, with labels, evaluated once, after training."}
    )
    max_length: int = field(default=128, metadata={"help": "Tokens that longer texts are cut to."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on a random sample, the same in every run."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on such a sample of each evaluation set."}
    )
    epochs_factor: float = field(
        default=1.0,
        metadata={
            "help": "Factor on num_train_epochs, by which a recipe of a method says how many it needs."
        },
    )
    calibrate_max_drop: float | None = field(
        default=None,
        metadata={
            "help": "Hold out a tenth of train and choose there the exit policy of least cost that is"
            " certified to lose at most this share of right answers (0.01 is one point of accuracy). It is"
            " stored in the model's config."
        },
    )


KINDS = (ModelArguments, DataArguments, RomeBertTrainingArguments)


def parse(
    argv: list[str], description: str = ""
) -> tuple[ModelArguments, DataArguments, RomeBertTrainingArguments]:
    """The command line, after the arguments of its recipe."""
    parser = HfArgumentParser(KINDS, description=description)
    recipes = parser.parse_args(argv).recipe or []
    settings = [recipe_arguments(recipe, KINDS) for recipe in recipes]
    where, data, training = parser.parse_args_into_dataclasses(
        args=[*chain(*settings), *argv], look_for_args_file=False
    )
    if not 0 < data.epochs_factor < float("inf"):
        raise SystemExit(
            f"--epochs_factor {data.epochs_factor:g} is not above 0 (1 leaves the epochs as they are)."
        )
    training.num_train_epochs *= data.epochs_factor
    return where, data, training


def settings_of(
    where: ModelArguments, data: DataArguments, training: RomeBertTrainingArguments
) -> dict[str, Any]:
    """What makes a run this run and no other. Files count by what they hold."""
    files = {
        name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in data_files(data).items()
    }
    others = ("task_name", "max_length", "max_train_samples", "max_eval_samples", "calibrate_max_drop")
    values = training.to_dict()
    return {
        "model": vars(where),
        "data": {name: getattr(data, name) for name in others} | files,
        "training": {name: values[name] for name in DECISIVE},
        "world_size": training.world_size,
    }
