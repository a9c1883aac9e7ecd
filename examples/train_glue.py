"""Fine-tune a multi-exit classifier on a GLUE task or on own files, with every training argument of
transformers.

    python examples/train_glue.py --recipe rte --output_dir runs/rte
    python examples/train_glue.py --train_file train.csv --validation_file dev.csv --output_dir runs/mine
    torchrun --nproc_per_node 2 examples/train_glue.py --recipe mnli --output_dir runs/mnli

Files are CSV, TSV, JSON or JSONL with `text`, `label` and for pairs `text_pair`; with --task_name also with
the Hub's column names. A recipe is a YAML file of arguments, read before those of the command line; one of a
task and one of a method go together (`--recipe rte kl-0.3`). The same command again continues from the last
checkpoint, or reports the finished run. --output_dir receives metrics.json, exits.json (cost and metric of an
exit policy) and model/, which `pipeline("early-exit-classification")` loads.
"""

import support.installed  # noqa: F401

# isort: split
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars
from support.fine_tuning import fine_tune, in_processes, tell_finished
from support.glue_arguments import DataArguments, ModelArguments, parse
from support.glue_data import GlueData, data_files, load_glue
from support.run_arguments import settings_of
from support.run_folder import check_run_folder, open_run_folder
from transformers import AutoConfig, AutoTokenizer, DataCollatorWithPadding, TrainerCallback, set_seed

from modeling_romebert import (
    RomeBertForSequenceClassification,
    RomeBertTrainer,
    RomeBertTrainingArguments,
    calibrate,
    evaluate_exits,
)
from modeling_romebert.evaluation.metrics import compute_metrics
from modeling_romebert.exit_policies import POLICIES

TOLERANCE = 0.1  # of the range of labels: exits whose numbers differ by less agree


def main(argv: list[str] | None = None) -> None:
    where, data, training = parse(sys.argv[1:] if argv is None else argv, __doc__.split("\n")[0])
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
        glue = load_glue(data)
    trainer, glue = make_trainer(where, data, training, glue)
    model, tokenizer = trainer.model, trainer.processing_class
    with training.main_process_first(local=False, desc="opening the run's folder"):
        open_run_folder(folder, settings)

    def judge() -> dict[str, Any] | None:
        return judge_policy(model, tokenizer, glue, data, training, folder)

    fine_tune(trainer, glue.evaluation, folder, settings, judge)


# ---- the run


def make_trainer(
    where: ModelArguments,
    data: DataArguments,
    training: RomeBertTrainingArguments,
    glue: GlueData,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[RomeBertTrainer, GlueData]:
    """Arguments and rows of text -> the trainer of a model that is loaded, and the rows as tokens."""
    tokenizer = AutoTokenizer.from_pretrained(where.model_name_or_path)
    max_length = min(data.max_length, tokenizer.model_max_length)
    glue = glue.map(
        lambda rows: tokenizer(rows["text"], rows.get("text_pair"), truncation=True, max_length=max_length)
    )
    set_seed(training.seed)  # which the weights of the exits depend on
    model = load_model(where, glue.names)
    trainer = RomeBertTrainer(
        model=model,
        args=training,
        train_dataset=glue.train,
        eval_dataset=validation_sets(glue),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=compute_metrics(glue.metrics, model.problem_type),
        callbacks=list(callbacks),
    )
    return trainer, glue


def load_model(where: ModelArguments, names: list[str]) -> RomeBertForSequenceClassification:
    """The checkpoint with a fresh head per exit, told its labels."""
    given = {
        name: getattr(where, name)
        for name in ("exit_pooling", "exit_layers")
        if getattr(where, name) is not None
    }
    if where.exit_mix:
        given["exit_mix"] = True
    if where.keep_layers != 1:
        given["num_hidden_layers"] = layers_kept(where)
    if names:
        labels = {
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
        }
        given |= {**labels, "problem_type": "single_label_classification"}
    else:
        given |= {"num_labels": 1, "problem_type": "regression"}
    return RomeBertForSequenceClassification.from_pretrained(where.model_name_or_path, **given)


def layers_kept(where: ModelArguments) -> int:
    """How many layers `--keep_layers` leaves of the encoder."""
    if not 0 < where.keep_layers <= 1:
        raise SystemExit(f"--keep_layers {where.keep_layers:g} is not in 0..1 (0 excluded): it is a share.")
    layers = AutoConfig.from_pretrained(where.model_name_or_path).num_hidden_layers
    return max(1, round(where.keep_layers * layers))


def validation_sets(glue: GlueData) -> Any:
    """What a Trainer evaluates between epochs so that the names of the metrics are those of the end: one set,
    or sets by name.
    """
    if "eval" in glue.evaluation:
        return glue.evaluation["eval"]
    return {
        prefix.removeprefix("eval_"): rows
        for prefix, rows in glue.evaluation.items()
        if prefix.startswith("eval_")
    }


def judge_policy(
    model: Any,
    tokenizer: Any,
    glue: GlueData,
    data: DataArguments,
    training: RomeBertTrainingArguments,
    folder: Path,
) -> dict[str, Any] | None:
    """Sweep a policy over every evaluation set, and with --calibrate_max_drop choose one and tell what it
    does there.

    Written: exits.json; for mnli exits_matched.json and exits_mismatched.json; for a --test_file
        exits_test.json.
    """
    policy: dict[str, Any] = {"name": "entropy"}
    if not glue.names:
        policy = {"name": "patience", "tolerance": TOLERANCE * glue.label_range}
    common = {
        "metric": glue.metrics[0],
        "policy": policy,
        "batch_size": training.per_device_eval_batch_size,
        "progress": False,
    }
    thresholds = POLICIES[policy["name"]].grid(len(model.config.exit_layers))
    chosen, at = None, []
    if glue.held_out is not None:
        chosen = calibrate(
            model, glue.held_out, tokenizer, max_drop=data.calibrate_max_drop, **common
        ).policy.to_dict()
        at = [chosen["patience" if policy["name"] == "patience" else "threshold"]]
    outcome, for_card = {}, None
    for prefix, rows in glue.evaluation.items():
        report = evaluate_exits(model, rows, tokenizer, thresholds=[*thresholds, *at], **common)
        if chosen is not None:
            point = report.curve.pop()
            outcome[prefix] = {"cost": point.cost, "metric": point.metric, "full_depth": report.exits[-1]}
        if for_card is None:
            name = f"GLUE {data.task_name}" if data.task_name else Path(data.validation_file).name
            for_card = {**report.to_dict(), "dataset": {"name": name, "split": prefix}}
            if chosen is not None:
                for_card["calibrated"] = {"cost": point.cost, "metric": point.metric}
        report.model = str(folder / "model")
        report.to_json(
            folder / ("_".join(["exits", *(part for part in prefix.split("_") if part != "eval")]) + ".json")
        )
    model.evaluation = for_card  # the first set's, for the model card
    return (
        None
        if chosen is None
        else {"settings": chosen, "held_out_samples": len(glue.held_out), "outcome": outcome}
    )


if __name__ == "__main__":
    main()
