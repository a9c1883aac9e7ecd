"""Where does the time of bulk scoring go, and how much time can exits save at most?

    python examples/benchmarks/profile_scoring.py --model runs/quickstart/model  # after `make quickstart`
    python examples/benchmarks/profile_scoring.py --texts 500 --rounds 2 --bf16 False

On one thread, so that nothing overlaps and the parts add up to the whole: tokenising and sorting, embedding,
layers, exits (pooling, classifier, decision, rows that leave), batches (rows put together for the next
layer), and results, which is the rest.

What of this no exit saves, tokenising first of all, bounds the share of the layer saving that becomes time
saving, (time at full depth / time) / (1 / cost): were layers and exits to take time in proportion to the
tokens that run them, and all else as long as at full depth, it would be

    at most = t / (f + c' (t - f)) * c

with the time at full depth t, of which f goes to tokenising, embedding and results, and the cost by texts c
and by tokens c'.

Policies take turns within every round; figures are medians over rounds. Results are written after each
precision.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # examples/
import support.installed  # noqa: F401

# isort: split
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from quickstart import multiplies_bf16
from support.reviews import load_splits
from tqdm.auto import tqdm
from transformers import HfArgumentParser, pipeline

from benchmarks.layers import policies, ratio, rotated
from modeling_romebert.early_exit import ActiveBatch
from modeling_romebert.encoder import TorchEncoder
from modeling_romebert.evaluation.provenance import provenance, write_json
from modeling_romebert.rebatching import Scheduler
from modeling_romebert.scoring import WINDOW
from modeling_romebert.text_batcher import TextBatcher, windows

FULL_DEPTH = "full depth"
# What takes as long however few layers run, and what depends on them.
FIXED, BY_DEPTH = ("tokenising", "embedding", "results"), ("layers", "exits", "batches")


@dataclass
class ProfileArguments:
    """What is profiled, and how often."""

    model: str = field(
        default="runs/quickstart/model", metadata={"help": "Folder or id of a fine-tuned RomeBERT model."}
    )
    dataset: str | None = field(
        default=None, metadata={"help": "CSV or JSONL with `text` and `label`; else movie reviews."}
    )
    texts: int = field(
        default=WINDOW, metadata={"help": "Texts per side and round; at most those that are sorted together."}
    )
    rounds: int = field(default=5, metadata={"help": "Rounds; every side runs once in each."})
    costs: list[float] = field(
        default_factory=lambda: [0.5, 0.3], metadata={"help": "Costs to find entropy thresholds for."}
    )
    bf16: bool | None = field(
        default=None, metadata={"help": "Also bfloat16; when left out, where it is fast."}
    )
    output_file: str | None = field(default=None, metadata={"help": "JSON to write."})


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(ProfileArguments).parse_args_into_dataclasses(argv)
    splits, _ = load_splits(arguments.dataset)
    _, texts = next(windows(list(splits["test"]["text"])[: arguments.texts], WINDOW, WINDOW))
    bf16 = multiplies_bf16() if arguments.bf16 is None else arguments.bf16
    classifiers = {
        name: pipeline("early-exit-classification", model=arguments.model, dtype=dtype, device="cpu")
        for name, dtype in {"fp32": torch.float32, **({"bf16": torch.bfloat16} if bf16 else {})}.items()
    }
    model, tokenizer = classifiers["fp32"].model, classifiers["fp32"].tokenizer
    rows = splits["validation"].map(lambda rows: tokenizer(rows["text"], truncation=True), batched=True)
    settings = {FULL_DEPTH: False, **policies(model, rows, tokenizer, arguments.costs)}
    tokens = [len(ids) for ids in tokenizer(texts, truncation=True)["input_ids"]]
    with one_thread():
        results: dict[str, Any] = {
            "model": Path(arguments.model).name,
            "layers": model.config.num_hidden_layers,
            "texts": len(texts),
            "tokens_per_text": statistics.mean(tokens),
            "rounds": arguments.rounds,
            "profile": [],
            **provenance(),
        }
        for precision, classify in classifiers.items():
            results["profile"] += profile(classify, precision, settings, texts, tokens, arguments.rounds)
            if arguments.output_file:
                write_json(arguments.output_file, results)
    print(f"\n{table(results)}")
    if arguments.output_file:
        print(f"\nResults are in {arguments.output_file}.")


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch and for tokenizers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with patch.dict(os.environ, TOKENIZERS_PARALLELISM="false"):
            yield
    finally:
        torch.set_num_threads(threads)


class Stopwatch:
    """Seconds of each part.

    What runs within a part, and is a part itself, does not count for the outer one.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._within = [0.0]  # of each part that runs now, outermost first: seconds of the parts within it

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function -> the same, whose time counts for the part."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self._within.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds = time.perf_counter() - start
                self.seconds[part] += seconds - self._within.pop()
                self._within[-1] += seconds

        return run


@contextmanager
def in_parts(stopwatch: Stopwatch) -> Iterator[None]:
    """Time the parts of bulk scoring for the time of a `with`."""
    parts = [
        ("tokenising", TextBatcher, "__call__"),
        ("embedding", TorchEncoder, "embed_texts"),
        ("layers", TorchEncoder, "run"),
        ("exits", ActiveBatch, "step"),
        ("batches", Scheduler, "schedule"),
        ("batches", Scheduler, "put_back"),
    ]
    with ExitStack() as patches:
        for part, owner, name in parts:
            patches.enter_context(patch.object(owner, name, stopwatch.timed(part, getattr(owner, name))))
        yield


def profile(
    classify: Any, precision: str, settings: dict[str, Any], texts: list[str], tokens: list[int], rounds: int
) -> list[dict[str, Any]]:
    """Every policy, full depth first, `rounds` times after one round that is not counted -> a row of figures
    each.
    """
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    costs: dict[str, tuple[float, float]] = {}
    for turn in tqdm(range(rounds + 1), desc=precision):
        for name in rotated(list(settings), turn):
            stopwatch = Stopwatch()
            with in_parts(stopwatch):
                run = stopwatch.timed("results", classify)  # what is no other part
                found = run(texts, exit_policy=settings[name])
            shares = [result["exit_layer"] / classify.model.config.num_hidden_layers for result in found]
            costs[name] = float(np.mean(shares)), float(np.average(shares, weights=tokens))
            if turn > 0:
                seconds[name].append({part: stopwatch.seconds[part] for part in (*FIXED, *BY_DEPTH)})
    return [figures(name, precision, seconds[name], seconds[FULL_DEPTH], *costs[name]) for name in settings]


def figures(
    policy: str,
    precision: str,
    rounds: list[dict[str, float]],
    full: list[dict[str, float]],
    cost: float,
    by_tokens: float,
) -> dict[str, Any]:
    """What is told of one policy, from the seconds of each part in every round, its own and those of full
    depth, and its costs.
    """
    totals, full_totals = [sum(parts.values()) for parts in rounds], [sum(parts.values()) for parts in full]
    fixed = [sum(parts[part] for part in FIXED) for parts in full]
    least = [
        of_round + by_tokens * (total - of_round) for of_round, total in zip(fixed, full_totals, strict=True)
    ]
    return {
        "policy": policy,
        "precision": precision,
        "cost": cost,
        "cost_by_tokens": by_tokens,
        "seconds": {part: statistics.median(parts[part] for parts in rounds) for part in rounds[0]},
        "total": statistics.median(totals),
        "added_to_layers": statistics.median(
            total / parts["layers"] - 1 for total, parts in zip(totals, rounds, strict=True)
        ),
        "saving_on_the_clock": ratio(full_totals, totals)["median"] * cost,
        "at_most": ratio(full_totals, least)["median"] * cost,
    }


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    parts = ("layers", *(part for part in (*FIXED, *BY_DEPTH) if part != "layers"))
    lines = [
        f"| precision, policy | cost | by tokens | seconds | {' | '.join(parts)} | added to the layers |"
        " realised / ideal | at most |",
        "|---|---|---|---|" + "---|" * len(parts) + "---|---|---|",
    ]
    for row in results["profile"]:
        seconds = " | ".join(
            f"{seconds:.2f}" for seconds in (row["total"], *(row["seconds"][part] for part in parts))
        )
        lines.append(
            f"| {row['precision']}, {row['policy']} | {row['cost']:.2f} | {row['cost_by_tokens']:.2f} |"
            f" {seconds} | {row['added_to_layers']:.0%} | {row['saving_on_the_clock']:.0%} |"
            f" {row['at_most']:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
