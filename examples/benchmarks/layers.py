"""Does every saved layer save time? Times a fine-tuned model against the stock classifier and against
itself.

    python examples/benchmarks/layers.py --model runs/quickstart/model  # after `make quickstart`
    python examples/benchmarks/layers.py --sentences 4  # the same with longer texts
    python examples/benchmarks/layers.py --tokens 22 30  # with texts of nearly the same length
    python examples/benchmarks/layers.py --model runs/mine/model --dataset reviews.csv --output_file mine.json

1. Full depth, every exit computed, against the stock sequence classifier of the same backbone: time ours /
    time stock.
2. Early exit against full depth at each batch size: (time full / time early) / (1 / cost), the share of the
   layer saving that becomes time saving; with the calibrated policy and with entropy thresholds that bring
   the cost near each of `--costs`. Cost counts texts; time follows tokens. Where long texts leave later than
   short ones, the cost by tokens is higher, and the share is told for both. Batches of more than one text run
   as in bulk scoring: full batches, in which survivors at the same depth join, packed where the family allows
   it. Full depth is the model called batch by batch.

Batches are length-sorted, tokenised beforehand, and the same for all sides. The sides take turns within every
round, after every hundred texts where nothing is merged; figures are medians over rounds. Thread count,
versions and spread are in the JSON.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # examples/
import support.installed  # noqa: F401

# isort: split
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from support.reviews import load_splits
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
)

from modeling_romebert import RomeBertForSequenceClassification, make_policy
from modeling_romebert.early_exit import ActiveBatch
from modeling_romebert.evaluation.exit_logits import collect_exit_logits
from modeling_romebert.evaluation.metrics import METRICS
from modeling_romebert.evaluation.provenance import provenance, write_json
from modeling_romebert.evaluation.sweep import sweep
from modeling_romebert.rebatching import Scheduler
from modeling_romebert.scoring import BATCH_TOKENS, REBATCHING_PAYS

Batch = dict[str, Tensor]

# So many texts, then it is the next side's turn: less than a slow moment of the machine lasts.
TURN = 100


@dataclass
class BenchmarkArguments:
    """What is timed, and how long."""

    model: str = field(
        default="runs/quickstart/model", metadata={"help": "Folder or id of a fine-tuned RomeBERT model."}
    )
    dataset: str | None = field(
        default=None, metadata={"help": "CSV or JSONL with `text` and `label`; else movie reviews."}
    )
    batch_sizes: list[int] = field(
        default_factory=lambda: [1, 8, 32, 128], metadata={"help": "Batch sizes of early exit."}
    )
    costs: list[float] = field(
        default_factory=lambda: [0.5, 0.3], metadata={"help": "Costs to find entropy thresholds for."}
    )
    sentences: int = field(
        default=1, metadata={"help": "Sentences of the same label that are joined to one text."}
    )
    tokens: list[int] | None = field(
        default=None, metadata={"help": "Only texts of at least and at most so many tokens."}
    )
    texts: int = field(default=1000, metadata={"help": "Texts per side and round, spread over all lengths."})
    rounds: int = field(default=5, metadata={"help": "Rounds; every side runs once in each."})
    threads: int | None = field(
        default=None, metadata={"help": "CPU threads; torch's own choice when left out."}
    )
    output_file: str | None = field(default=None, metadata={"help": "JSON to write."})


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = RomeBertForSequenceClassification.from_pretrained(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    splits, _ = load_splits(arguments.dataset)
    test = join(splits["test"], arguments.sentences).map(
        lambda rows: tokenizer(rows["text"], truncation=True), batched=True
    )
    if arguments.tokens:
        least, most = arguments.tokens
        test = test.filter(lambda row: least <= len(row["input_ids"]) <= most)
    rows = sorted(test, key=lambda row: len(row["input_ids"]))[:: math.ceil(len(test) / arguments.texts)]

    against = against_stock(model, make_batches(rows, tokenizer, 32), arguments.rounds)
    results = {
        "model": Path(arguments.model).name,
        "sentences_per_text": arguments.sentences,
        "texts": len(rows),
        "tokens": arguments.tokens,
        "tokens_per_text": sum(len(row["input_ids"]) for row in rows) / len(rows),
        "rounds": arguments.rounds,
        "full_depth": against,
        "early_exit": early_exit(
            model, tokenizer, rows, policies(model, test, tokenizer, arguments.costs), arguments
        ),
        **provenance(),
    }
    print(f"\n{table(results)}")
    if arguments.output_file:
        write_json(arguments.output_file, results)
        print(f"\nResults are in {arguments.output_file}.")


def join(dataset: Dataset, sentences: int) -> Dataset:
    """Rows of `text` and `label` -> the same with `sentences` texts of one label in each row; what is left
    over is left out.
    """
    joined = []
    for label in sorted(set(dataset["label"])):
        texts = [row["text"] for row in dataset if row["label"] == label]
        whole = range(0, len(texts) - sentences + 1, sentences)
        joined += [{"text": " ".join(texts[start : start + sentences]), "label": label} for start in whole]
    return Dataset.from_list(joined)


def make_batches(rows: list[dict[str, Any]], tokenizer: Any, batch_size: int) -> list[Batch]:
    """Tokenised rows in order of length -> padded batches."""
    collate = DataCollatorWithPadding(tokenizer)
    inputs = [{name: row[name] for name in tokenizer.model_input_names if name in row} for row in rows]
    return [dict(collate(inputs[start : start + batch_size])) for start in range(0, len(rows), batch_size)]


def rotated(sides: list[Any], turn: int) -> list[Any]:
    """Another side is first every time: what a side leaves behind, in caches and in the clock, is not always
    the same one's.
    """
    first = turn % len(sides)
    return sides[first:] + sides[:first]


@torch.inference_mode()
def seconds_of(
    sides: dict[str, Callable[[list[Batch]], Any]],
    batches: list[Batch],
    rounds: int,
    title: str,
    turn: int | None = None,
) -> dict[str, list[float]]:
    """Run all batches through every side `rounds` times, after one round that is not counted.

    The sides take turns after every `turn` batches; after all of them when left out.
    """
    turn = turn or len(batches)
    stretches = [batches[start : start + turn] for start in range(0, len(batches), turn)]
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in tqdm(range(rounds + 1), desc=title):
        of_round = dict.fromkeys(sides, 0.0)
        for at, stretch in enumerate(stretches):
            for side in rotated(list(sides), number + at):
                start = time.perf_counter()
                sides[side](stretch)
                of_round[side] += time.perf_counter() - start
        if number > 0:
            for side, value in of_round.items():
                seconds[side].append(value)
    return seconds


def one_by_one(model: Any, **settings: Any) -> Callable[[list[Batch]], Any]:
    """A model as a side: one batch after the other."""

    def run(batches: list[Batch]) -> None:
        for batch in batches:
            model(**batch, **settings)

    return run


def rebatched(model: Any, tokenizer: Any, policy: dict[str, Any]) -> Callable[[list[Batch]], Any]:
    """Early exit as bulk scoring runs it: full batches, and survivors at the same depth share one."""
    exit_policy = make_policy(**policy)

    def run(batches: list[Batch]) -> None:
        lengths = [int(length) for batch in batches for length in batch["attention_mask"].sum(dim=1)]
        ids = [row for batch in batches for row in batch["input_ids"]]
        texts = [{"input_ids": row[:length].tolist()} for row, length in zip(ids, lengths, strict=True)]
        encoder = model.encoder(pad_token_id=tokenizer.pad_token_id, for_tokens=sum(lengths))

        def begin(rows: list[int]) -> ActiveBatch:
            started = exit_policy.start(len(model.exit_layers), model.problem_type, model.exit_layers)
            return ActiveBatch(encoder, rows, None, started, texts=[texts[row] for row in rows])

        batch_tokens = BATCH_TOKENS[model.device.type]
        scheduler = Scheduler(range(len(texts)), lengths, begin, batch_tokens, padded=not encoder.packs)
        while (active := scheduler.schedule()) is not None:
            active.step()
            scheduler.put_back(active)

    return run


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Median of the ratios within rounds, and their quartiles: a slow moment of the machine hits both sides
    of a round.
    """
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
    return {"median": median, "quartile_1": low, "quartile_3": high}


def against_stock(model: Any, batches: list[Batch], rounds: int) -> dict[str, Any]:
    """Full depth against the stock sequence classifier with the same backbone weights, batch 32."""
    stock = AutoModelForSequenceClassification.from_config(
        model.config.backbone_config, dtype=model.dtype
    ).eval()
    stock.base_model.load_state_dict(model.backbone.state_dict(), strict=False)
    sides = {"stock": one_by_one(stock), "ours": one_by_one(model)}
    seconds = seconds_of(sides, batches, rounds, "full depth", turn=TURN // 32)
    return {
        "batch_size": 32,
        "seconds": {side: statistics.median(values) for side, values in seconds.items()},
        "ours_over_stock": ratio(seconds["ours"], seconds["stock"]),
    }


def policies(model: Any, dataset: Any, tokenizer: Any, costs: list[float]) -> dict[str, dict[str, Any]]:
    """The calibrated policy, where the model has one, and the entropy threshold whose cost is nearest to each
    of `costs`.
    """
    found = {"calibrated": model.config.exit_policy} if model.config.exit_policy is not None else {}
    exit_logits, labels, _ = collect_exit_logits(model, dataset, tokenizer)
    thresholds = np.linspace(0, 1, 401).tolist()
    entropy = {"name": "entropy"}
    points = sweep(
        exit_logits,
        labels,
        model.config.exit_layers,
        model.problem_type,
        METRICS["accuracy"],
        entropy,
        thresholds,
    )
    for cost in costs:
        nearest = min(points, key=lambda point: abs(point.cost - cost))
        found[f"cost near {cost:g}"] = {"name": "entropy", "threshold": round(nearest.threshold, 6)}
    return found


def early_exit(
    model: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    policies: dict[str, dict[str, Any]],
    arguments: BenchmarkArguments,
) -> list[dict[str, Any]]:
    """Every policy at every batch size against full depth."""
    results = []
    for batch_size in arguments.batch_sizes:
        batches = make_batches(rows, tokenizer, batch_size)
        sides: dict[str, Callable[[list[Batch]], Any]] = {"full depth": one_by_one(model)}
        shares = (
            model.device.type in REBATCHING_PAYS and batch_size > 1
        )  # one text at a time waits for no other
        for name, policy in policies.items():
            sides[name] = (
                rebatched(model, tokenizer, policy)
                if shares
                else one_by_one(model, exit_policy=make_policy(**policy))
            )
        turn = None if shares else max(1, TURN // batch_size)  # rebatching needs all batches
        seconds = seconds_of(sides, batches, arguments.rounds, f"early exit, batch {batch_size}", turn)
        for name, policy in policies.items():
            cost, by_tokens = cost_of(model, batches, policy)
            faster = ratio(seconds["full depth"], seconds[name])
            results.append(
                {
                    "batch_size": batch_size,
                    "policy": name,
                    "settings": policy,
                    "cost": cost,
                    "cost_by_tokens": by_tokens,
                    "seconds": {side: statistics.median(seconds[side]) for side in ("full depth", name)},
                    "speedup_layers": 1 / cost,
                    "speedup_time": faster,
                    "saving_on_the_clock": faster["median"] * cost,
                    "saving_on_the_clock_by_tokens": faster["median"] * by_tokens,
                }
            )
    return results


@torch.inference_mode()
def cost_of(model: Any, batches: list[Batch], policy: dict[str, Any]) -> tuple[float, float]:
    """Layers run / layers, averaged over texts and averaged over tokens."""
    layers = torch.cat([model(**batch, exit_policy=policy).exit_layer for batch in batches])
    share = layers.double() / model.config.num_hidden_layers
    tokens = torch.cat([batch["attention_mask"].sum(dim=1) for batch in batches]).double()
    return share.mean().item(), ((share * tokens).sum() / tokens.sum()).item()


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    full = results["full_depth"]["ours_over_stock"]
    lines = [
        f"Full depth with all exits takes {full['median']:.3f} times as long as the stock classifier"
        f" (quartiles {full['quartile_1']:.3f}, {full['quartile_3']:.3f}; batch"
        f" {results['full_depth']['batch_size']}).",
        "",
        "| batch | policy | cost | ideal speed-up | realised speed-up | realised / ideal | cost by tokens |"
        " realised / ideal by tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["early_exit"]:
        lines.append(
            f"| {row['batch_size']} | {row['policy']} | {row['cost']:.3f} | {row['speedup_layers']:.2f}"
            f" | {row['speedup_time']['median']:.2f} | {row['saving_on_the_clock']:.0%} |"
            f" {row['cost_by_tokens']:.3f} | {row['saving_on_the_clock_by_tokens']:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
