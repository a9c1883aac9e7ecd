"""From real reviews to a classifier that stops when it is sure, in one run of a few minutes on two cores.

    make quickstart  # or: python examples/quickstart.py
    python examples/quickstart.py --model bert-base-uncased --dataset reviews.csv --output-dir runs/mine

Fine-tunes a 6-layer MiniLM the RomeBERT way on movie-review sentences, says how good each exit is, picks on
validation the threshold that loses at most a point, and shows on test what that saves in layers and in time.
It says what it does while it does it; results.svg in the folder of the run is a picture of what it found. A
second run with the same settings continues where the first stopped, or shows what it found.
`--dataset` takes a CSV, TSV or JSONL file with columns `text` and `label`.
"""

import support.installed  # noqa: F401

# isort: split
import shutil
import statistics
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from support.assets import minilm
from support.results_picture import draw
from support.reviews import load_splits
from support.run_arguments import check_share
from support.run_folder import file_digests, finished, last_checkpoint, open_run_folder
from support.table_files import check_file
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    PrinterCallback,
    TrainerCallback,
    pipeline,
    set_seed,
)
from transformers.utils import logging

from modeling_romebert import (
    RomeBertForSequenceClassification,
    RomeBertTrainer,
    RomeBertTrainingArguments,
    calibrate,
    evaluate_exits,
    score,
)
from modeling_romebert.certificate import sentence
from modeling_romebert.evaluation.provenance import provenance, read_json, write_json

SENTENCES = (
    "A delight from start to finish.",
    "Dull, loud and far too long.",
    "It is not without charm, yet I kept looking at my watch.",
    "You could do worse, though it would take some effort.",
)


@dataclass
class QuickstartArguments:
    """What a user may want to change; `examples/train_glue.py` has every training argument."""

    model: str | None = field(
        default=None, metadata={"help": "Encoder to start from, folder or id; MiniLM-L6 when left out."}
    )
    dataset: str | None = field(
        default=None, metadata={"help": "CSV, TSV or JSONL with `text` and `label`; else movie reviews."}
    )
    output_dir: str = field(
        default="runs/quickstart", metadata={"help": "Folder of the run: checkpoints, model, results, curve."}
    )
    epochs: float | None = field(
        default=None,
        metadata={
            "help": "Passes over the training data; for deebert, per stage."
            " Left out, 3 in bfloat16 and 1.75 without."
        },
    )
    learning_rate: float = field(default=2e-4, metadata={"help": "Peak of the linear schedule."})
    objective: str = field(
        default="romebert",
        metadata={"help": "Also joint, last, deebert, alternating: what it is compared to."},
    )
    exit_scale: float = field(
        default=RomeBertTrainingArguments.exit_scale,
        metadata={"help": "Factor on the sum over the exits before the last. Less keeps the last exit good."},
    )
    distillation_reduction: str = field(
        default=RomeBertTrainingArguments.distillation_reduction,
        metadata={"help": "batchmean, or mean, which weighs distillation less."},
    )
    gradient_regularization: str = field(
        default=RomeBertTrainingArguments.gradient_regularization,
        metadata={"help": "off, protect_last or protect_exits; 1.6 times the time with it."},
    )
    exit_learning_rate_factor: float = field(
        default=RomeBertTrainer.default_head_rate,
        metadata={"help": "The exits' heads learn at so many times the learning rate."},
    )
    dropout: float | None = field(
        default=None,
        metadata={
            "help": "While training. Left out, the encoder's own in bfloat16, and none without: it costs a"
            " tenth of the time."
        },
    )
    bf16: bool | None = field(
        default=None, metadata={"help": "Train in bfloat16; when left out, where the machine has it."}
    )
    max_drop: float = field(
        default=0.01, metadata={"help": "Accuracy that the calibrated threshold may lose, as a share."}
    )
    confidence: float = field(default=0.9, metadata={"help": "With which that is promised."})
    seed: int = field(
        default=1, metadata={"help": "Of weights, order and dropout. The split of the data is fixed."}
    )


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(QuickstartArguments).parse_args_into_dataclasses(argv)
    check_share("max_drop", arguments.max_drop)
    check_share("confidence", arguments.confidence)
    if arguments.bf16 is None:
        arguments.bf16 = multiplies_bf16()
    if arguments.epochs is None:
        arguments.epochs = 3.0 if arguments.bf16 else 1.75  # about as many minutes
    if arguments.dropout is None and not arguments.bf16:
        arguments.dropout = 0.0
    settings = {"quickstart": asdict(arguments)}
    if arguments.dataset is not None:
        check_file("--dataset", arguments.dataset)
        settings["files"] = file_digests({"dataset": arguments.dataset})
    folder = open_run_folder(arguments.output_dir, settings)
    if finished(folder):
        print(f"{folder} holds a finished run with these settings; this is what it found.")
    else:
        run(arguments, folder)
    show(folder)


def multiplies_bf16() -> bool:
    """Whether the machine has instructions for bfloat16, which make training about 1.7 times as fast;
    emulated it is slower.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Narrator(TrainerCallback):
    """Says in words how far the training is, where the library would print dicts of numbers."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start, self.first_step = time.perf_counter(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss_last" in (logs or {}):
            done = state.global_step - self.first_step
            said = f"   step {state.global_step} of {state.max_steps}"
            said += f": loss of the last exit {logs['loss_last']:.2f}"
            if "loss_exits" in logs:
                said += f", of the others {logs['loss_exits']:.2f}"
            if done >= 10:
                seconds = (time.perf_counter() - self.start) / done * (state.max_steps - state.global_step)
                said += f"; {seconds / 60:.1f} minutes left"
            print(said, flush=True)


def run(arguments: QuickstartArguments, folder: Path) -> None:
    """Fine-tune, evaluate, calibrate and time; the folder then holds the model, the results and the curve."""
    # 1. Data: sentences and labels, split by a hash of the sentence, so that the split never moves.
    step(
        1,
        "Reading the texts: some to train on, some to choose a threshold, some to test.",
    )
    splits, names = load_splits(arguments.dataset)
    source = arguments.model or str(minilm())
    tokenizer = AutoTokenizer.from_pretrained(source)
    rows = {
        name: split.map(lambda rows: tokenizer(rows["text"], truncation=True), batched=True)
        for name, split in splits.items()
    }

    # 2. Fine-tune: one stage, all exits.
    step(2, f"Training: every layer of {Path(source).name} gets an exit, and all exits learn together.")
    set_seed(arguments.seed)
    model = RomeBertForSequenceClassification.from_pretrained(
        source,
        exit_pooling="mean",
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    if arguments.dropout is not None:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = arguments.dropout
    training = RomeBertTrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=16,
        learning_rate=arguments.learning_rate,
        warmup_steps=0.06,
        train_sampling_strategy="group_by_length",
        objective=arguments.objective,
        exit_scale=arguments.exit_scale,
        distillation_reduction=arguments.distillation_reduction,
        gradient_regularization=arguments.gradient_regularization,
        exit_learning_rate_factor=arguments.exit_learning_rate_factor,
        bf16=arguments.bf16,
        use_cpu=arguments.bf16 and not torch.cuda.is_available(),  # else transformers looks for a GPU
        logging_steps=50,
        logging_first_step=True,
        save_strategy="epoch",
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=arguments.seed,
    )
    trainer = RomeBertTrainer(
        model=model,
        args=training,
        train_dataset=rows["train"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        callbacks=[Narrator()],
    )
    trainer.remove_callback(PrinterCallback)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=last_checkpoint(training.output_dir))
    seconds = time.perf_counter() - start
    model = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # its forward without autocast

    # 3. How good is each exit, and what does a threshold cost?
    step(3, f"Testing each exit on {len(rows['test'])} sentences that the model has not seen.")
    report = evaluate_exits(model, rows["test"], tokenizer, progress=False)
    for layer, accuracy in zip(report.exit_layers, report.exits, strict=True):
        print(f"   if all texts stop after layer {layer}, {accuracy:.1%} of the answers are right")
    report.to_json(folder / "exits.json")
    (folder / "exits.md").write_text(f"{report.table()}\n", encoding="utf-8")
    report.plot(folder / "curve.png")

    # 4. Pick the threshold on validation; it is stored in the model's config.
    step(4, f"Choosing how sure an exit has to be, on {len(rows['validation'])} other sentences.")
    calibration = calibrate(
        model,
        rows["validation"],
        tokenizer,
        max_drop=arguments.max_drop,
        confidence=arguments.confidence,
        progress=False,
    )
    print(f"   {calibration}")

    # 5. On test: full depth against exits, in accuracy, layers and time.
    step(5, "Timing: the test sentences through every layer, and with early exit, in turns.")
    comparison = compare(model, rows["test"], tokenizer)

    # 6. Save: weights, config, code, tokenizer, and a card that tells the figures. The results say that the
    # run is finished.
    model.evaluation |= {
        "dataset": {
            "name": Path(arguments.dataset).name if arguments.dataset else "movie reviews",
            "split": "test",
        },
        "calibrated": {
            "cost": comparison["early_exit"]["cost"],
            "metric": comparison["early_exit"]["accuracy"],
        },
        "picture": True,
    }
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    shutil.copy(folder / "curve.png", folder / "model")
    results = {
        "settings": asdict(arguments),
        "rows": {name: len(split) for name, split in splits.items()},
        "training_seconds": round(seconds, 1),
        "exits": {str(layer): value for layer, value in zip(report.exit_layers, report.exits, strict=True)},
        "mean_over_exits": report.mean,
        "area": report.area,
        "policy": calibration.policy.to_dict(),
        "calibration": calibration.to_dict(),
        **comparison,
        "sentences": classify(folder / "model"),
        **provenance(),
    }
    (folder / "results.svg").write_text(draw(results), encoding="utf-8")
    write_json(folder / "results.json", results)


def step(number: int, what: str) -> None:
    print(f"\n{number}. {what}", flush=True)


def compare(model: Any, dataset: Dataset, tokenizer: Any, turn: int = 500) -> dict[str, Any]:
    """Full depth and the calibrated policy on the same texts, in turns of so many: accuracy, cost, and
    seconds with tokenising.
    """
    texts, labels = list(dataset["text"]), list(dataset["label"])
    sides = {"full_depth": False, "early_exit": model.config.exit_policy}
    for policy in sides.values():
        list(score(model, tokenizer, texts[:300], exit_policy=policy))  # what happens but once is not counted
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    seconds = dict.fromkeys(sides, 0.0)
    for start in range(0, len(texts), turn):
        for side, policy in sides.items():
            started = time.perf_counter()
            results[side] += score(model, tokenizer, texts[start : start + turn], exit_policy=policy)
            seconds[side] += time.perf_counter() - started
    found: dict[str, dict[str, Any]] = {}
    for side, of_side in results.items():
        predicted = (model.config.label2id[result["label"]] for result in of_side)
        found[side] = {
            "accuracy": statistics.mean(one == other for one, other in zip(predicted, labels, strict=True)),
            "cost": statistics.mean(result["exit_layer"] for result in of_side)
            / model.config.num_hidden_layers,
            "seconds": seconds[side],
        }
    stopped_after = Counter(result["exit_layer"] for result in results["early_exit"])
    return {
        **found,
        "stopped_after": {str(layer): stopped_after[layer] for layer in model.config.exit_layers},
        "speedup_layers": 1 / found["early_exit"]["cost"],
        "speedup_time": found["full_depth"]["seconds"] / found["early_exit"]["seconds"],
    }


def classify(model: Path) -> list[dict[str, Any]]:
    """A few sentences, with the label of each and the layer after which it stopped."""
    results = pipeline("early-exit-classification", model=str(model))(list(SENTENCES))
    return [{"text": text, **result} for text, result in zip(SENTENCES, results, strict=True)]


def show(folder: Path) -> None:
    """Print what a finished run found."""
    results = read_json(folder / "results.json")
    print(f"\n{sentence(results['calibration'])}\n\nWhat was found, on the test sentences:\n")
    print("| | right answers | layers run | seconds |\n|---|---|---|---|")
    for side in ("full_depth", "early_exit"):
        figures = results[side]
        print(
            f"| {side.replace('_', ' ')} | {figures['accuracy']:.1%} | {figures['cost']:.0%} |"
            f" {figures['seconds']:.2f} |"
        )
    drop = 100 * (results["full_depth"]["accuracy"] - results["early_exit"]["accuracy"])
    layers, time_saved = results["speedup_layers"], results["speedup_time"]
    print(
        f"\nEarly exit loses {drop:.1f} points there, runs {layers:.2f} times fewer layers, and takes"
        f" {time_saved:.2f} times less time. Four sentences:\n"
    )
    for one in results["sentences"]:
        print(f"stopped after layer {one['exit_layer']}  {one['label']:>8} {one['score']:.2f}  {one['text']}")
    print(
        f"\nIn {folder}:"
        "\n  results.svg   a picture of the results, for your browser"
        "\n  model/        the model, for pipeline('early-exit-classification', model=...)"
        "\n  exits.md      every exit and threshold in a table (exits.json, curve.png: the same)"
        "\n  results.json  every figure, and what it was measured with"
    )


if __name__ == "__main__":
    disable_progress_bars()  # words instead
    logging.disable_progress_bar()
    main()
