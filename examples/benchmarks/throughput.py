"""Texts per second, latency and memory against what a user would otherwise run; on real texts, with
fine-tuned models.

    python examples/benchmarks/throughput.py  # after `make quickstart`; needs the extra `benchmark`
    python examples/benchmarks/throughput.py --onnx False --compile False --texts 500 --rounds 2

1. Throughput: every side (sides.py, alternatives.py) classifies the same texts, tokenisation included. The
   sides take turns within every round. Speed is told as the ratio to the stock pipeline in fp32, and to the
   stock model fed length-sorted batches in the same precision (for ONNX Runtime: its own), within rounds:
   median and quartiles. Realised / ideal is the share of the layer saving that is time saved: (time at full
   depth / time) / (1 / cost), both through our pipeline in the same precision; cost counts texts, and in
   brackets tokens, which time follows.
2. Latency: one text at a time: median, 95th and 99th percentile. A side has some texts at a stretch, then the
   next.
3. Growth: 1,000 to 200,000 texts through a generator, each number in a process of its own: throughput, and
   the peak of memory.

The stock models are fine-tuned first, on the same sentences for as many epochs, and kept in `--output_dir`.
Results are written after every round. `examples/benchmarks/layers.py` times the layers alone.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # examples/
import support.installed  # noqa: F401

# isort: split
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from quickstart import QuickstartArguments, multiplies_bf16
from support.assets import minilm
from support.reviews import load_splits
from support.run_folder import last_checkpoint
from tqdm.auto import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from benchmarks.alternatives import alternative_sides
from benchmarks.layers import policies, ratio, rotated
from benchmarks.sides import (
    Predictions,
    Side,
    half_depth_side,
    onnx_sides,
    our_onnx_sides,
    our_sides,
    stock_sides,
)
from modeling_romebert import RomeBertForSequenceClassification
from modeling_romebert.evaluation.provenance import provenance, write_json

REFERENCE = "stock pipeline, batch 32, fp32"
SORTED = "stock model, sorted by length, {}"
ONNX_SORTED = "ONNX Runtime, sorted by length, {}"


@dataclass
class BenchmarkArguments:
    """What is timed, and how long."""

    model: str = field(
        default="runs/quickstart/model", metadata={"help": "Folder of a fine-tuned RomeBERT model."}
    )
    encoder: str | None = field(
        default=None, metadata={"help": "What it was fine-tuned from; MiniLM-L6 when left out."}
    )
    dataset: str | None = field(
        default=None, metadata={"help": "CSV or JSONL with `text` and `label`; else movie reviews."}
    )
    texts: int | None = field(
        default=None, metadata={"help": "Texts per side and round; all of the test split when left out."}
    )
    rounds: int = field(default=5, metadata={"help": "Rounds; every side runs once in each."})
    costs: list[float] = field(
        default_factory=lambda: [0.5, 0.3], metadata={"help": "Costs to find entropy thresholds for."}
    )
    bf16: bool | None = field(
        default=None, metadata={"help": "Also bfloat16, for training too; when left out, where it is fast."}
    )
    onnx: bool = field(default=True, metadata={"help": "Also ONNX Runtime, fp32 and int8."})
    alternatives: bool = field(
        default=False, metadata={"help": "Also what needs no encoder; needs the extra `alternatives`."}
    )
    compile: bool = field(default=True, metadata={"help": "Also torch.compile, which needs a C++ compiler."})
    growth: list[int] = field(
        default_factory=lambda: [1000, 10_000, 200_000], metadata={"help": "Texts to stream; 0 for none."}
    )
    epochs: float = field(default=2.0, metadata={"help": "Of the stock models."})
    learning_rate: float = field(
        default=QuickstartArguments.learning_rate, metadata={"help": "Of the stock models."}
    )
    threads: int | None = field(
        default=None, metadata={"help": "CPU threads; torch's own choice when left out."}
    )
    output_dir: str = field(default="runs/benchmark", metadata={"help": "Folder of the stock models."})
    output_file: str | None = field(default=None, metadata={"help": "JSON to write; the plot lies beside."})


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.bf16 is None:
        arguments.bf16 = multiplies_bf16()
    splits, names = load_splits(arguments.dataset)
    source, depth = arguments.encoder or str(minilm()), layers_of(arguments.model)
    stock = fine_tuned_stock(Path(arguments.output_dir, "stock"), source, depth, splits, names, arguments)
    half = fine_tuned_stock(Path(arguments.output_dir, "half"), source, depth // 2, splits, names, arguments)

    sides = list(all_sides(arguments, splits["train"], splits["validation"], stock, half, depth))
    test = splits["test"].select(range(arguments.texts)) if arguments.texts else splits["test"]
    results: dict[str, Any] = {"model": Path(arguments.model).name, "layers": depth, "texts": len(test)}
    results |= provenance()

    def save() -> None:
        if arguments.output_file:
            write_json(arguments.output_file, results)

    lengths = [
        len(ids)
        for ids in AutoTokenizer.from_pretrained(arguments.model)(list(test["text"]), truncation=True)[
            "input_ids"
        ]
    ]
    for results["throughput"] in throughput(sides, test["text"], test["label"], lengths, arguments.rounds):
        save()
    results["latency"] = latency(sides, list(test["text"])[:300])
    save()
    if any(arguments.growth):
        for results["growth"] in growth(arguments.model, list(test["text"]), arguments.growth):
            save()
    print("", *tables(results), sep="\n\n")
    if arguments.output_file:
        plot(results, Path(arguments.output_file).with_suffix(".png"))
        print(f"\nResults are in {arguments.output_file}.")


def layers_of(model: str) -> int:
    return RomeBertForSequenceClassification.config_class.from_pretrained(model).num_hidden_layers


def all_sides(
    arguments: BenchmarkArguments, train: Dataset, validation: Dataset, stock: Path, half: Path, depth: int
) -> Iterator[Side]:
    """Everything that takes part."""
    dtypes = [torch.float32, torch.bfloat16] if arguments.bf16 else [torch.float32]
    yield from (
        side for side in stock_sides(stock, dtypes) if arguments.compile or "compile" not in side.name
    )
    if arguments.onnx:
        yield from onnx_sides(stock, torch.get_num_threads())
    yield half_depth_side(half, depth)
    model = RomeBertForSequenceClassification.from_pretrained(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    rows = validation.map(lambda rows: tokenizer(rows["text"], truncation=True), batched=True)
    yield from our_sides(Path(arguments.model), policies(model, rows, tokenizer, arguments.costs), dtypes)
    if arguments.onnx:
        yield from our_onnx_sides(model, tokenizer, Path(arguments.output_dir), rows, arguments.costs)
    if arguments.alternatives:
        yield from alternative_sides(train, arguments.encoder or str(minilm()))


def fine_tuned_stock(
    folder: Path,
    source: str,
    layers: int,
    splits: dict[str, Dataset],
    names: list[str],
    arguments: BenchmarkArguments,
) -> Path:
    """A stock classifier of the encoder's first `layers` layers, fine-tuned with the stock Trainer -> its
    folder. Made once.
    """
    if (folder / "config.json").is_file():
        return folder
    print(f"fine-tuning the stock model of {layers} layers")
    set_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(source)
    labels = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }
    model = AutoModelForSequenceClassification.from_pretrained(source, num_hidden_layers=layers, **labels)
    training = TrainingArguments(
        str(folder.with_name(f"{folder.name}-checkpoints")),
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=16,
        learning_rate=arguments.learning_rate,
        warmup_steps=0.06,
        train_sampling_strategy="group_by_length",
        save_strategy="epoch",
        save_total_limit=1,
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
        bf16=arguments.bf16,  # as the quickstart trains ours
        use_cpu=arguments.bf16 and not torch.cuda.is_available(),
    )
    rows = splits["train"].map(lambda rows: tokenizer(rows["text"], truncation=True), batched=True)
    trainer = Trainer(
        model,
        training,
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(training.output_dir))
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def throughput(
    sides: list[Side], texts: list[str], labels: list[int], lengths: list[int], rounds: int
) -> Iterator[list[dict[str, Any]]]:
    """Run all texts through every side, in turn, after one round that is not counted -> the figures so far,
    after every round.
    """
    texts = list(texts)
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    first = {side.name: side.run(texts) for side in tqdm(sides, desc=f"round 0 of {rounds}")}
    with without_old_objects():
        for turn in range(1, rounds + 1):
            for side in tqdm(rotated(sides, turn), desc=f"round {turn} of {rounds}"):
                start = time.perf_counter()
                side.run(texts)
                seconds[side.name].append(time.perf_counter() - start)
            yield [figures(side, sides, first, seconds, labels, lengths) for side in sides]


@contextmanager
def without_old_objects() -> Iterator[None]:
    """Keep Python's garbage collector from what there is already, for the time of a `with`.

    To look through all that torch.compile and the models of every side have made takes it half a second, now
    and then, while some side is timed that has nothing to do with them, and in every round the same one.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def figures(
    side: Side,
    sides: list[Side],
    first: dict[str, Predictions],
    seconds: dict[str, list[float]],
    labels: list[int],
    lengths: list[int],
) -> dict[str, Any]:
    """What is told of one side, from the predictions of every side, its seconds per round, and labels and
    tokens of the texts.
    """
    predicted, cost, by_tokens = (
        np.array(first[side.name].labels),
        first[side.name].cost(),
        first[side.name].cost(lengths),
    )
    full_depth = next(other for other in sides if other.group == side.group)  # the first of a group
    precision = side.name.rpartition(", ")[2]
    ours_at_full_depth = [
        other.name
        for other in sides
        if other.group == side.group and other.name.endswith(f"full depth, {precision}")
    ]
    faster = (
        ratio(seconds[ours_at_full_depth[0]], seconds[side.name])["median"] if ours_at_full_depth else None
    )
    rival = ONNX_SORTED if "ONNX" in side.name else SORTED
    if rival.format(precision) not in seconds:
        rival, precision = SORTED, "fp32"
    return {
        "side": side.name,
        "seconds": seconds[side.name],
        "texts_per_second": len(labels) / statistics.median(seconds[side.name]),
        "speedup": ratio(seconds[REFERENCE], seconds[side.name]),
        "speedup_sorted": ratio(seconds[rival.format(precision)], seconds[side.name]),
        "saving_on_the_clock": None if faster is None else faster * cost,
        "saving_on_the_clock_by_tokens": None if faster is None else faster * by_tokens,
        "accuracy": float((predicted == np.array(labels)).mean()),
        "cost": cost,
        "cost_by_tokens": by_tokens,
        "as_full_depth": float((predicted == np.array(first[full_depth.name].labels)).mean()),
    }


def latency(sides: list[Side], texts: list[str], stretch: int = 50) -> list[dict[str, Any]]:
    """Milliseconds of one text at a time. The sides take turns after every `stretch` texts, of which the
    first is not counted.

    Not after every text: threads of one side's library go on spinning for a while, and would slow down the
        next.
    """
    alone: list[tuple[str, Callable[[str], Any]]] = [
        (side.name, side.one) for side in sides if side.one is not None
    ]
    milliseconds: dict[str, list[float]] = {name: [] for name, _ in alone}
    for start in tqdm(range(0, len(texts), stretch), desc="one by one"):
        for name, one in alone:
            time.sleep(0.2)
            one(texts[start])
            for text in texts[start : start + stretch]:
                begun = time.perf_counter()
                one(text)
                milliseconds[name].append(1000 * (time.perf_counter() - begun))
    quantiles = {
        name: np.quantile(values, [0.5, 0.95, 0.99]).tolist() for name, values in milliseconds.items()
    }
    return [{"side": name, "median": q[0], "p95": q[1], "p99": q[2]} for name, q in quantiles.items()]


def growth(model: str, texts: list[str], counts: list[int]) -> Iterator[list[dict[str, Any]]]:
    """Texts per second of a stream of so many texts, and the peak of memory: each in a fresh process, so that
    peaks compare.
    """
    found = []
    for count in counts:
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as fresh:
            found.append(fresh.submit(stream, model, texts, count, torch.get_num_threads()).result())
        yield found


def stream(model: str, texts: list[str], count: int, threads: int) -> dict[str, Any]:
    """The texts over and over, through a generator."""
    torch.set_num_threads(threads)
    classify = pipeline("early-exit-classification", model=model)
    start = time.perf_counter()
    for _ in tqdm(
        classify(itertools.islice(itertools.cycle(texts), count)), total=count, desc=f"{count} texts"
    ):
        pass
    seconds = time.perf_counter() - start
    return {"texts": count, "texts_per_second": count / seconds, "peak_megabytes": peak_megabytes()}


def peak_megabytes() -> float:
    """The most memory that this process has held, where the system tells it."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return float("nan")
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def tables(results: dict[str, Any]) -> list[str]:
    """Throughput, latency and growth as Markdown, as far as they were measured."""
    throughput = [
        "| side | texts per second | times the stock pipeline | times sorted batches, same precision |"
        " accuracy | cost | realised / ideal (by tokens) | same label as at full depth |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["throughput"]:
        clock = ""
        if row["saving_on_the_clock"] is not None:
            clock = f"{row['saving_on_the_clock']:.0%} ({row['saving_on_the_clock_by_tokens']:.0%})"
        throughput.append(
            f"| {row['side']} | {row['texts_per_second']:.0f} | {spread(row['speedup'])} |"
            f" {spread(row['speedup_sorted'])} | {row['accuracy']:.3f} | {row['cost']:.2f} | {clock} |"
            f" {row['as_full_depth']:.1%} |"
        )
    latency = [
        "| one text at a time, milliseconds | median | 95th percentile | 99th percentile |",
        "|---|---|---|---|",
    ]
    for row in results.get("latency", []):
        latency.append(f"| {row['side']} | {row['median']:.1f} | {row['p95']:.1f} | {row['p99']:.1f} |")
    growth = ["| texts in a stream | texts per second | memory |", "|---|---|---|"]
    for row in results.get("growth", []):
        # Older files say by how much one process grew, from one stream to the next.
        memory = (
            f"peak of {row['peak_megabytes']:.0f} MB"
            if "peak_megabytes" in row
            else f"{row['grew_by_megabytes']:.0f} MB more"
        )
        growth.append(f"| {row['texts']:,} | {row['texts_per_second']:.0f} | {memory} |")
    return ["\n".join(lines) for lines in (throughput, latency, growth) if len(lines) > 2]


def spread(speedup: dict[str, float]) -> str:
    return f"{speedup['median']:.2f} ({speedup['quartile_1']:.2f} to {speedup['quartile_3']:.2f})"


def plot(results: dict[str, Any], path: Path) -> None:
    """Accuracy over texts per second, a dot for each side."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for row in results["throughput"]:
        ours = row["side"].startswith("RomeBERT")
        axes.plot(row["texts_per_second"], 100 * row["accuracy"], "o" if ours else "s", label=row["side"])
    axes.set(
        xscale="log", xlabel="texts per second", ylabel="accuracy (%)", title=f"{results['texts']} texts"
    )
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
