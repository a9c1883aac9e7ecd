"""F1 over cost of token classifiers that examples/train_tokens.py trained: what each way to leave loses.

    python examples/benchmarks/token_curves.py --runs runs/tokens-1 runs/tokens-2 --output_file curves.json

Reads metrics.json and the exits_*.json of every run, of the test set where there is one. Runs that differ in
nothing but their seed are a row of the table together: mean and standard deviation over seeds. What a policy
gives at a cost is read from the line between the two points of its curve beside it, in layers times tokens.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # examples/
import support.installed  # noqa: F401

# isort: split
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

import numpy as np
from transformers import HfArgumentParser

from modeling_romebert import ExitReport
from modeling_romebert.evaluation.provenance import provenance, read_json, write_json
from modeling_romebert.training.objectives import OBJECTIVES

COSTS = (0.75, 0.5, 0.33, 0.25)
# Of the settings of a run, what tells it from others.
TOLD = ("num_train_epochs", "learning_rate", "per_device_train_batch_size", "objective", "exit_scale", "seed")


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


def groups(results: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """How models were trained, and for how many epochs -> the runs that were trained so, which differ in
    their seeds.

    Raises:
        SystemExit: they differ in more.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in results["runs"]:
        training = run["training"]
        how = f"`{training['objective']}`"
        if trains_exits_with_layers(training["objective"]):
            how += f", exit_scale {training['exit_scale']:g}"
        if run["second_stage"]:
            how += ", self-sampling"
        epochs = " + ".join([f"{training['num_train_epochs']:g}"] * len(stages(training["objective"])))
        found.setdefault((how, epochs), []).append(run)
    for (how, epochs), runs in found.items():
        first, *others = (apart_from_seed(run) for run in runs)
        for other in others:
            if other != first:
                raise SystemExit(
                    f"--runs: {how}, {epochs} epochs, was trained in ways that differ in more than the seed,"
                    f" {first} and {other}; give one of them."
                )
    return found


def stages(objective: str) -> tuple[Any, ...]:
    """Of an objective, each of which takes all epochs."""
    return OBJECTIVES[objective].stages


def trains_exits_with_layers(objective: str) -> bool:
    """Whether the scale of the exits' loss against the last one's means anything: some step has both."""
    return any(terms.last and terms.exits for cycle in stages(objective) for terms in cycle)


def apart_from_seed(run: dict[str, Any]) -> dict[str, Any]:
    """What runs have in common whose figures are averaged."""
    training = {name: value for name, value in run["training"].items() if name != "seed"}
    policies = [entry["policy"] for entry in run["policies"]]
    return {**training, "samples": run["samples"], "texts": run["texts"], "policies": policies}


def table(results: dict[str, Any]) -> str:
    """The metric of each policy at each cost, as Markdown."""
    costs = " | ".join(f"cost {cost:g}" for cost in COSTS)
    lines = [f"| objective | epochs | seeds | leaves | every layer | {costs} |"]
    lines.append("|---|---|---|---|---|" + "---|" * len(COSTS))
    for (how, epochs), runs in groups(results).items():
        for number, entry in enumerate(runs[0]["policies"]):
            policy = entry["policy"]
            kind = "sentences" if policy.get("unit") != "token" else f"tokens, window {policy['window']}"
            curves = [run["policies"][number]["curve"] for run in runs]
            cells = [over_seeds([at_cost(curve, cost) for curve in curves]) for cost in (1.0, *COSTS)]
            lines.append(f"| {how} | {epochs} | {len(runs)} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def at_cost(curve: list[dict[str, Any]], cost: float) -> float | None:
    """The metric that a policy gives at a cost; `None` where it can cost no so little."""
    points = sorted((point["cost"], point["metric"]) for point in curve)
    costs, metrics = zip(*points, strict=True)
    return float(np.interp(cost, costs, metrics)) if costs[0] <= cost else None


def over_seeds(values: list[float | None]) -> str:
    """Mean and standard deviation, in per cent."""
    known = [100 * value for value in values if value is not None]
    if len(known) < len(values):
        return ""
    return f"{mean(known):.1f}" + (f" ± {stdev(known):.1f}" if len(known) > 1 else "")


if __name__ == "__main__":
    main()
