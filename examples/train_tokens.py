"""Fine-tune a multi-exit token classifier on own files or a data set of the Hub, with every training argument
of transformers.

    python examples/train_tokens.py --train_file train.conll --validation_file dev.conll \\
        --output_dir runs/mine
    python examples/train_tokens.py --recipe conll2003 --train_file train.txt --validation_file valid.txt \\
        --test_file test.txt --output_dir runs/conll2003
    python examples/train_tokens.py --dataset_name wnut_17 --output_dir runs/wnut

Files are in CoNLL format (a word and its tag per line, a blank line between sentences), or JSON or JSONL with
`tokens` and `tags`. The same command again continues from the last checkpoint, or reports the finished run.
--output_dir receives metrics.json, exits_row.json and for each of --windows exits_token_WINDOW.json (cost and
metric of policies under which whole sentences leave, or single tokens halt), and model/, which
`pipeline("early-exit-token-classification")` loads.
"""

import support.installed  # noqa: F401

# isort: split
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from support.fine_tuning import fine_tune, in_processes, tell_finished
from support.run_arguments import RunArguments, parse_with_recipes, settings_of
from support.run_folder import check_run_folder, open_run_folder
from support.token_data import data_files, load_tokens
from transformers import AutoTokenizer, set_seed

from modeling_romebert import (
    RomeBertForTokenClassification,
    RomeBertTrainer,
    RomeBertTrainingArguments,
    SelfSampling,
    SelfSamplingTrainer,
    calibrate,
    evaluate_exits,
)
from modeling_romebert.data.token_rows import tokenize_words


@dataclass
class ModelArguments:
    """Where to start from, and which exits."""

    model_name_or_path: str = field(
        default="bert-base-cased",
        metadata={"help": "Encoder or RomeBERT checkpoint to start from: folder or id on the Hub."},
    )
    exit_layers: list[int] | None = field(
        default=None, metadata={"help": "Layers with an exit, counted from 1; default all."}
    )
    first_stage: str | None = field(
        default=None,
        metadata={
            "help": "Folder of a model that was trained here: go on from it, with tokens halting where it"
            " would let them (self-sampling). Takes the place of --model_name_or_path; needs --objective"
            " joint."
        },
    )
    sampling_windows: list[int] = field(
        default_factory=lambda: [5, 15],
        metadata={"help": "Smallest and largest window of --first_stage, in tokens."},
    )
    sampling_thresholds: list[float] = field(
        default_factory=lambda: [0.01, 0.25],
        metadata={"help": "Smallest and largest threshold of --first_stage."},
    )


@dataclass
class DataArguments(RunArguments):
    """What to train and evaluate on."""

    train_file: str | None = field(
        default=None, metadata={"help": "CoNLL format, or JSON or JSONL with tokens and tags."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same, to evaluate on."})
    test_file: str | None = field(
        default=None, metadata={"help": "The same, evaluated once, after training."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set of the Hub with tokens and tags, instead of files."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    label_column: str | None = field(
        default=None, metadata={"help": "Column of the tags; found by its name when left out."}
    )
    word_column: int = field(
        default=0, metadata={"help": "Of a file in CoNLL format, counted from 0; of CoNLL-U 1."}
    )
    tag_column: int = field(
        default=-1, metadata={"help": "Of a file in CoNLL format; -1 is the last. Of CoNLL-U 3."}
    )
    windows: list[int] = field(
        default_factory=lambda: [5],
        metadata={"help": "Windows of tokens that have to be sure, for policies under which tokens halt."},
    )
    calibrate_max_drop: float | None = field(
        default=None,
        metadata={
            "help": "Hold out a tenth of train and choose there the exit policy of least cost that is"
            " certified to lose at most this share of sentences without a wrong word. It is stored in the"
            " model's config."
        },
    )


KINDS = (ModelArguments, DataArguments, RomeBertTrainingArguments)


def main(argv: list[str] | None = None) -> None:
    where, data, training = parse(sys.argv[1:] if argv is None else argv)
    in_processes(run, where, data, training)


def run(where: ModelArguments, data: DataArguments, training: RomeBertTrainingArguments) -> None:
    """Train, evaluate and save, unless that is done already."""
    settings = settings_of(where, data, training, data_files(data))
    folder = check_run_folder(training.output_dir, settings)
    is_main = training.process_index == 0
    if tell_finished(folder, say=is_main):
        return

    # Data, tokens and the model.
    if not is_main:
        disable_progress_bars()
    with training.main_process_first(desc="loading the data"):
        tokens = load_tokens(data)
    tokenizer = load_tokenizer(where.first_stage or where.model_name_or_path)
    max_length = min(data.max_length, tokenizer.model_max_length)
    set_seed(training.seed)  # which the weights of the exits depend on
    model = load_model(where, tokens.names)
    with training.main_process_first(local=False, desc="opening the run's folder"):
        open_run_folder(folder, settings)

    rows = {name: as_rows(part, tokenizer, max_length) for name, part in tokens.evaluation.items()}
    trainer = make_trainer(
        where,
        model=model,
        args=training,
        train_dataset=as_rows(tokens.train, tokenizer, max_length),
        eval_dataset=rows["eval"],
        processing_class=tokenizer,
    )

    def judge() -> dict[str, Any] | None:
        held_out = None if tokens.held_out is None else as_rows(tokens.held_out, tokenizer, max_length)
        return judge_policies(model, tokenizer, rows, held_out, data, training, folder)

    fine_tune(trainer, rows, folder, settings, judge)


def parse(argv: list[str]) -> tuple[ModelArguments, DataArguments, RomeBertTrainingArguments]:
    """The command line, after the arguments of its recipe."""
    where, data, training = parse_with_recipes(KINDS, argv, __doc__.split("\n")[0])
    for window in data.windows:
        if window < 1 or window % 2 == 0:
            raise SystemExit(f"--windows {window}: give odd numbers from 1.")
    return where, data, training


# ---- the run


def load_tokenizer(name: str) -> Any:
    """A tokenizer that takes words: BPE ones, such as RoBERTa's, need a blank before the first."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    if getattr(tokenizer, "add_prefix_space", None) is False:
        tokenizer = AutoTokenizer.from_pretrained(name, add_prefix_space=True)
    return tokenizer


def load_model(where: ModelArguments, names: list[str]) -> RomeBertForTokenClassification:
    """The checkpoint with a fresh head per exit, told its labels."""
    given = {} if where.exit_layers is None else {"exit_layers": where.exit_layers}
    if where.first_stage is not None:
        model = RomeBertForTokenClassification.from_pretrained(where.first_stage, **given)
        if [model.config.id2label[index] for index in range(model.config.num_labels)] != names:
            raise SystemExit(
                f"--first_stage {where.first_stage} was trained on other tags,"
                f" {', '.join(model.config.id2label.values())}; the data have {', '.join(names)}."
            )
        return model
    return RomeBertForTokenClassification.from_pretrained(
        where.model_name_or_path,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        **given,
    )


def make_trainer(where: ModelArguments, **given: Any) -> RomeBertTrainer:
    """The trainer of the first stage, or of the second where there is a model of the first."""
    if where.first_stage is None:
        return RomeBertTrainer(**given)
    return SelfSamplingTrainer(
        first_stage=load_model(where, [*given["model"].config.id2label.values()]),
        sampling=SelfSampling(tuple(where.sampling_windows), tuple(where.sampling_thresholds)),
        **given,
    )


def as_rows(part: Dataset, tokenizer: Any, max_length: int) -> Dataset:
    """`tokens` and `labels` of words -> what the model takes, with `labels` and `word_ids` of its tokens."""

    def tokenize(rows: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        return tokenize_words(tokenizer, rows["tokens"], rows["labels"], max_length, first_row=indices[0])

    return part.map(tokenize, batched=True, with_indices=True, remove_columns=["tokens", "labels"])


def judge_policies(
    model: Any,
    tokenizer: Any,
    rows: dict[str, Dataset],
    held_out: Dataset | None,
    data: DataArguments,
    training: RomeBertTrainingArguments,
    folder: Path,
) -> dict[str, Any] | None:
    """Sweep policies for whole sentences and for tokens over every evaluation set, and with
    --calibrate_max_drop choose one and tell what it does there.

    Written: exits_row.json and exits_token_WINDOW.json; for a --test_file exits_test_row.json and so on.
    """
    common = {"batch_size": training.per_device_eval_batch_size, "progress": False}
    policies = {"row": {"name": "entropy"}}
    policies |= {
        f"token_{window}": {"name": "entropy", "unit": "token", "window": window} for window in data.windows
    }
    chosen = None
    if held_out is not None:
        chosen = calibrate(
            model, held_out, tokenizer, max_drop=data.calibrate_max_drop, **common
        ).policy.to_dict()
    outcome, for_card = {}, None
    for prefix, part in rows.items():
        for kind, policy in policies.items():
            report = evaluate_exits(model, part, tokenizer, policy=policy, **common)
            report.model = str(folder / "model")
            middle = "" if prefix == "eval" else f"{prefix}_"
            report.to_json(folder / f"exits_{middle}{kind}.json")
            if for_card is None:
                origin = data.dataset_name or Path(data.validation_file).name
                for_card = {**report.to_dict(), "dataset": {"name": origin, "split": prefix}}
        if chosen is not None:
            settings = {name: value for name, value in chosen.items() if name != "threshold"}
            (point,) = evaluate_exits(
                model, part, tokenizer, policy=settings, thresholds=[chosen["threshold"]], **common
            ).curve
            outcome[prefix] = {
                "cost": point.cost,
                "metric": point.metric,
                "full_depth": for_card["exits"][-1] if prefix == "eval" else report.exits[-1],
            }
    if chosen is not None:
        for_card["calibrated"] = {name: outcome["eval"][name] for name in ("cost", "metric")}
    model.evaluation = for_card  # of the first set, for the model card
    if chosen is None:
        return None
    return {"settings": chosen, "held_out_samples": len(held_out), "outcome": outcome}


if __name__ == "__main__":
    main()
