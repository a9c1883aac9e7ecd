"""Does a token that halts save time? Times a token classifier with exits against itself at full depth.

    python examples/benchmarks/token_exits.py --model runs/conll2003/model --file test.txt
    python examples/benchmarks/token_exits.py --model runs/conll2003/model --file test.jsonl --minutes 5

Policies let whole sentences leave, or single tokens halt. Their thresholds are those that bring the cost, in
layers times tokens, near each of `--costs` on the very sentences that are timed; F1 is told beside. What is
timed is bulk scoring of tokenised sentences, all of them anew in every round; the sides take turns, and
rounds go on until `--minutes` are over, three at least. Figures are medians; thread count, versions and
spread are in the JSON.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # examples/
import support.installed  # noqa: F401

# isort: split
import statistics
import time
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

    # 1. Thresholds whose cost is near what is asked for.
    sides = [{"policy": None, "cost": 1.0, "metric": judge(outcomes.full_depth)}]
    units = [{"unit": "row"}, *({"unit": "token", "window": window} for window in asked.windows)]
    for unit in units:
        for cost in asked.costs:
            settings = {"name": "entropy", **unit}
            threshold = threshold_for(outcomes, settings, cost)
            outcome = outcomes.at(settings, threshold)
            policy = {**settings, "threshold": threshold}
            sides.append({"policy": policy, "cost": outcomes.cost(outcome), "metric": judge(outcome.answers)})

    # 2. Rounds.
    seconds: list[list[float]] = [[] for _ in sides]
    for side in sides:  # the first time is nobody's
        timed(model, rows.inputs, tokenizer.pad_token_id, side["policy"])
    until = time.perf_counter() + 60 * asked.minutes
    while len(seconds[0]) < FEWEST_ROUNDS or time.perf_counter() < until:
        for side, of_side in zip(sides, seconds, strict=True):
            of_side.append(timed(model, rows.inputs, tokenizer.pad_token_id, side["policy"]))
    for side, of_side in zip(sides, seconds, strict=True):
        side |= {"seconds": of_side, **figures(of_side, seconds[0], side["cost"])}
    results = {
        "model": Path(asked.model).name,
        "texts": len(rows.inputs),
        "tokens_per_text": sum(outcomes.counts) / len(outcomes.counts),
        "rounds": len(seconds[0]),
        "sides": sides,
        **provenance(),
    }
    if asked.output_file is not None:
        write_json(asked.output_file, results)
    print(table(results))
    return results


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


def figures(own: list[float], full: list[float], cost: float) -> dict[str, float | None]:
    """Seconds of a side and of full depth, round by round -> how many times as fast, and the share of the
    saved layers that is saved time.
    """
    share = statistics.median(mine / whole for mine, whole in zip(own, full, strict=True))
    return {"times_as_fast": 1 / share, "realised": None if cost == 1 else (1 - share) / (1 - cost)}


def table(results: dict[str, Any]) -> str:
    """The sides as Markdown."""
    lines = ["| leaves | cost | F1 | times as fast | saved time / saved layers |", "|---|---|---|---|---|"]
    for side in results["sides"]:
        policy = side["policy"]
        kind = "nobody early" if policy is None else "sentences"
        if policy is not None and policy["unit"] == "token":
            kind = f"tokens, window {policy['window']}"
        realised = "" if side["realised"] is None else f"{side['realised']:.0%}"
        lines.append(
            f"| {kind} | {side['cost']:.2f} | {100 * side['metric']:.1f} | {side['times_as_fast']:.2f} |"
            f" {realised} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
