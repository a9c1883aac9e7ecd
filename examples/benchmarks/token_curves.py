"""F1 over cost of token classifiers that examples/train_tokens.py trained: what each way to leave loses.

    python examples/benchmarks/token_curves.py --runs runs/first runs/second --output_file curves.json

Reads metrics.json and the exits_*.json of every run, of the test set where there is one. Of each policy the
table tells the best F1 within each of `--costs`, in layers times tokens.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # examples/
import support.installed  # noqa: F401

# isort: split
from dataclasses import dataclass, field
from typing import Any

from transformers import HfArgumentParser

from modeling_romebert import ExitReport
from modeling_romebert.evaluation.provenance import provenance, read_json, write_json

COSTS = (0.75, 0.5, 0.33, 0.25)
# Of the settings of a run, what tells it from others.
TOLD = (*("num_train_epochs", "learning_rate", "per_device_train_batch_size", "objective"), "seed")


@dataclass
class Arguments:
    """Which runs."""

    runs: list[str] = field(metadata={"help": "Folders of finished runs, in the order of the table."})
    output_file: str | None = field(default=None, metadata={"help": "Where to write the JSON."})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    (asked,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args=argv, look_for_args_file=False)
    results = {"runs": [read_run(Path(folder)) for folder in asked.runs], **provenance()}
    if asked.output_file is not None:
        write_json(asked.output_file, results)
    print(table(results))
    return results


def read_run(folder: Path) -> dict[str, Any]:
    """The settings of a run, and the curve of each policy."""
    if not (folder / "metrics.json").is_file():
        raise SystemExit(f"--runs {folder} holds no metrics.json: it is no finished run of train_tokens.py.")
    metrics = read_json(folder / "metrics.json")
    files = sorted(folder.glob("exits_test_*.json")) or sorted(folder.glob("exits_*.json"))
    reports = [ExitReport.from_json(file) for file in files]
    settings = metrics["settings"]
    return {
        "second_stage": settings["model"]["first_stage"] is not None,
        "start": Path(settings["model"]["first_stage"] or settings["model"]["model_name_or_path"]).name,
        "training": {name: settings["training"][name] for name in TOLD},
        "samples": metrics["train"]["samples"],
        "num_layers": reports[0].num_layers,
        "texts": reports[0].num_examples,
        "metric": reports[0].metric,
        "exits": reports[0].exits,
        "policies": [
            {
                "policy": report.policy,
                "curve": [
                    {"threshold": point.threshold, "cost": point.cost, "metric": point.metric}
                    for point in report.curve
                ],
            }
            for report in reports
        ],
    }


def table(results: dict[str, Any]) -> str:
    """The best metric of each policy within each cost, as Markdown."""
    costs = " | ".join(f"cost {cost:g}" for cost in COSTS)
    lines = [f"| stages | leaves | every layer | {costs} |", "|---|---|---|" + "---|" * len(COSTS)]
    for run in results["runs"]:
        for entry in run["policies"]:
            policy = entry["policy"]
            kind = "sentences" if policy.get("unit") != "token" else f"tokens, window {policy['window']}"
            cells = [_best(entry["curve"], cost) for cost in (1.0, *COSTS)]
            lines.append(f"| {1 + run['second_stage']} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _best(curve: list[dict[str, Any]], cost: float) -> str:
    """The best metric of the points that cost no more, in per cent."""
    within = [point["metric"] for point in curve if point["cost"] <= cost + 0.005]
    if cost == 1.0:
        within = [point["metric"] for point in curve if point["threshold"] == 0]
    return f"{100 * max(within):.1f}" if within else ""


if __name__ == "__main__":
    main()
