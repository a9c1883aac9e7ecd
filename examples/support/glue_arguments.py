"""Arguments of train_glue.py: what they are, and a recipe's factor on the epochs."""

from dataclasses import dataclass, field

from modeling_romebert import RomeBertTrainingArguments
from support.glue_data import TASKS
from support.run_arguments import RunArguments, parse_with_recipes


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
class DataArguments(RunArguments):
    """What to train and evaluate on."""

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
    """The command line, after the arguments of its recipes."""
    where, data, training = parse_with_recipes(KINDS, argv, description)
    if not 0 < data.epochs_factor < float("inf"):
        raise SystemExit(
            f"--epochs_factor {data.epochs_factor:g} is not above 0 (1 leaves the epochs as they are)."
        )
    training.num_train_epochs *= data.epochs_factor
    return where, data, training
