"""What the scripts that fine-tune have in common on their command line: recipes read before it, and which
arguments make a run this run.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import HfArgumentParser, TrainingArguments

from modeling_romebert import RomeBertTrainingArguments

from .recipes import recipe_arguments
from .run_folder import file_digests

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
# Of the data, what is in other arguments by now.
NO_SETTING = ("recipe", "epochs_factor")


@dataclass
class RunArguments:
    """Recipes, and how much of the data counts."""

    recipe: list[str] | None = field(
        default=None,
        metadata={
            "help": "Recipes: names of those that come with romebert, of a task (rte) or of a method (paper),"
            " or YAML files of arguments. A later one wins over an earlier one, the command line over all."
        },
    )
    max_length: int = field(default=128, metadata={"help": "Tokens that longer texts are cut to."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on a random sample, the same in every run."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on such a sample of each evaluation set."}
    )


def parse_with_recipes(kinds: Iterable[Any], argv: list[str], description: str) -> tuple[Any, ...]:
    """The command line, after the arguments of its recipes -> one of each of `kinds`."""
    parser = HfArgumentParser(kinds, description=description)
    recipes = parser.parse_args(argv).recipe or []
    settings = [one for recipe in recipes for one in recipe_arguments(recipe, kinds)]
    parsed = parser.parse_args_into_dataclasses(args=[*settings, *argv], look_for_args_file=False)
    for arguments in parsed:
        check_share("calibrate_max_drop", getattr(arguments, "calibrate_max_drop", None))
    return parsed


def check_share(name: str, value: float | None) -> None:
    """Refuse what is no share before a model is trained that it shall be used for.

    Raises:
        SystemExit: it is not between 0 and 1.
    """
    if value is not None and not 0 < value < 1:
        raise SystemExit(
            f"--{name} {value:g} is not between 0 and 1: it is a share, 0.01 is one in a hundred."
        )


def settings_of(
    where: Any, data: RunArguments, training: RomeBertTrainingArguments, files: Mapping[str, str]
) -> dict[str, Any]:
    """What makes a run this run and no other.

    Args:
        where: from which model it starts.
        files: names of arguments and the files that they name, which count by what they hold.
    """
    names = [one.name for one in fields(data) if not one.name.endswith("_file")]
    values = training.to_dict()
    return {
        "model": vars(where),
        "data": {name: getattr(data, name) for name in names if name not in NO_SETTING} | file_digests(files),
        "training": {name: values[name] for name in DECISIVE},
        "world_size": training.world_size,
    }
