"""Does a token that halts save time? Times a token classifier with exits against itself at full depth.

    python examples/benchmarks/token_exits.py --model runs/conll2003/model --file test.txt
    python examples/benchmarks/token_exits.py --model runs/conll2003/model --file test.jsonl --minutes 5

Policies let whole sentences leave, or single tokens halt. Their thresholds are those that bring the cost, in
layers times tokens, near each of `--costs` on the very sentences that are timed; F1 is told beside. What is
timed is bulk scoring of tokenised sentences, all of them anew in every round. Each policy is timed next to
full depth, as machines that are shared change their pace within a round; rounds go on until `--minutes` are
over, three at least. Figures are medians of these pairs; all times, thread count and versions are in the
JSON.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # examples/
import support.installed  # noqa: F401

# isort: split
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from support.token_data import read_sentences
from transformers import AutoModelForTokenClassification, AutoTokenizer, HfArgumentParser
from transformers.utils import logging

from modeling_romebert.data.token_rows import read_token_rows
from modeling_romebert.evaluation.provenance import provenance, write_json
from modeling_romebert.evaluation.token_evaluation import Judge, find_token_metric
from modeling_romebert.evaluation.token_outcomes import TokenOutcomes
from modeling_romebert.exit_policies import FullDepth, as_policy
from modeling_romebert.scoring import Scorer
from modeling_romebert.text_batcher import Window

FEWEST_ROUNDS = 3
BISECTIONS = 10


@dataclass
class Arguments:
    """What to time, and on what."""

    model: str = field(metadata={"help": "A token classifier with exits: folder or id on the Hub."})
    file: str = field(metadata={"help": "Sentences: CoNLL format, or JSON or JSONL with tokens and tags."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the tags in JSON."})
    word_column: int = field(default=0, metadata={"help": "Of a file in CoNLL format, counted from 0."})
    tag_column: int = field(default=-1, metadata={"help": "Of a file in CoNLL format; -1 is the last."})
    sentences: int = field(default=2000, metadata={"help": "The first so many are timed."})
    costs: list[float] = field(
        default_factory=lambda: [0.25, 0.4, 0.5, 0.75], metadata={"help": "Costs to come near."}
    )
    windows: list[int] = field(default_factory=lambda: [5], metadata={"help": "Of tokens that halt."})
    minutes: float = field(default=5.0, metadata={"help": "Time for the rounds, without the preparation."})
    output_file: str | None = field(default=None, metadata={"help": "Where to write the JSON."})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    (asked,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args=argv, look_for_args_file=False)
    model = AutoModelForTokenClassification.from_pretrained(asked.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    found = read_sentences("--file", asked.file, asked)
    pairs = list(zip(found.tokens, found.tags, strict=True))[: asked.sentences]
    rows = read_token_rows(
        model, [{"tokens": tokens, "labels": tags} for tokens, tags in pairs if tokens], tokenizer
    )
    outcomes = TokenOutcomes(model, rows, tokenizer)
    judge = Judge(outcomes, find_token_metric(None, model.config)[1])

    sides = [{"policy": None, "cost": 1.0, "metric": judge(outcomes.full_depth), "times_as_fast": 1.0}]
    sides += early_sides(outcomes, judge, asked.costs, asked.windows)
    rounds = time_in_turns(
        sides, 60 * asked.minutes, lambda policy: timed(model, rows.inputs, tokenizer.pad_token_id, policy)
    )
    results = {
        "model": Path(asked.model).name,
        "texts": len(rows.inputs),
        "tokens_per_text": sum(outcomes.counts) / len(outcomes.counts),
        "rounds": rounds,
        "sides": sides,
        **provenance(),
    }
    if asked.output_file is not None:
        write_json(asked.output_file, results)
    print(table(results))
    return results


def early_sides(
    outcomes: TokenOutcomes, judge: Judge, costs: list[float], windows: list[int]
) -> list[dict[str, Any]]:
    """A policy for whole sentences and for each window of tokens, with the threshold that comes near each
    cost.
    """
    sides = []
    for unit in ({"unit": "row"}, *({"unit": "token", "window": window} for window in windows)):
        for cost in costs:
            settings = {"name": "entropy", **unit}
            threshold = threshold_for(outcomes, settings, cost)
            outcome = outcomes.at(settings, threshold)
            policy = {**settings, "threshold": threshold}
            sides.append({"policy": policy, "cost": outcomes.cost(outcome), "metric": judge(outcome.answers)})
    return sides


def time_in_turns(sides: list[dict[str, Any]], seconds: float, run: Callable[[Any], float]) -> int:
    """Time each side but the first, which is full depth, next to that one, and write down what came of it ->
    rounds. run: policy -> seconds.
    """
    full_depth, *early = sides
    for side in sides:  # the first time is nobody's
        run(side["policy"])
    pairs: list[list[tuple[float, float]]] = [[] for _ in early]
    until = time.perf_counter() + seconds
    while len(pairs[0]) < FEWEST_ROUNDS or time.perf_counter() < until:
        for side, of_side in zip(early, pairs, strict=True):
            of_side.append((run(full_depth["policy"]), run(side["policy"])))
    for side, of_side in zip(early, pairs, strict=True):
        side |= {
            "seconds_at_full_depth": [full for full, _ in of_side],
            "seconds": [own for _, own in of_side],
        }
        share = statistics.median(own / full for full, own in of_side)
        side |= {"times_as_fast": 1 / share, "realised": (1 - share) / (1 - side["cost"])}
    return len(pairs[0])


def threshold_for(outcomes: TokenOutcomes, settings: dict[str, Any], cost: float) -> float:
    """The threshold of a policy whose cost is near the one that is asked for: it falls as thresholds rise."""
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if outcomes.cost(outcomes.at(settings, middle)) > cost:
            low = middle
        else:
            high = middle
    return high


def timed(
    model: Any, inputs: list[dict[str, Any]], pad_token_id: int, policy: dict[str, Any] | None
) -> float:
    """Seconds of bulk scoring of tokenised rows."""
    order = sorted(range(len(inputs)), key=lambda row: -len(inputs[row]["input_ids"]))
    window = Window(0, len(order), features={row: inputs[row] for row in order})
    rule = FullDepth() if policy is None else as_policy(policy)
    begin = time.perf_counter()
    scorer = Scorer(model, pad_token_id, rule, None, None, None, skips=False)
    for _ in scorer.exited(window, logging.EmptyTqdm()):
        pass
    return time.perf_counter() - begin


def table(results: dict[str, Any]) -> str:
    """The sides as Markdown; beside the median share of saved time the least and the most of a round."""
    lines = [
        "| leaves | cost | F1 | times as fast | saved time / saved layers (rounds) |",
        "|---|---|---|---|---|",
    ]
    for side in results["sides"]:
        policy = side["policy"]
        kind = "nobody early" if policy is None else "sentences"
        if policy is not None and policy["unit"] == "token":
            kind = f"tokens, window {policy['window']}"
        realised = ""
        if "realised" in side:
            saved = [
                (1 - own / full) / (1 - side["cost"])
                for own, full in zip(side["seconds"], side["seconds_at_full_depth"], strict=True)
            ]
            realised = f"{side['realised']:.0%} ({min(saved):.0%} to {max(saved):.0%})"
        lines.append(
            f"| {kind} | {side['cost']:.2f} | {100 * side['metric']:.1f} | {side['times_as_fast']:.2f} |"
            f" {realised} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
