"""Is one stage with self-distillation better than two stages, and does the last exit pay for it? The
quickstart, repeated.

    python examples/benchmarks/compare_objectives.py --seeds 1 2  # 20 minutes, 40 without bfloat16

Stage one of the two-stage objective is ordinary fine-tuning, so its last exit is what a model without exits
comes to. Every run is `examples/quickstart.py` with the same data, epochs (per stage) and learning rate; only
the objective and the seed change. Runs that are finished are not repeated, a run that was stopped goes on.
Written after every run: a JSON with all runs, and a plot of the accuracy at each exit.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # examples/
import support.installed  # noqa: F401

# isort: split
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import quickstart
from matplotlib.figure import Figure
from transformers import HfArgumentParser

from modeling_romebert.evaluation.provenance import read_json, write_json

KEPT = ("settings", "rows", "exits", "mean_over_exits", "area", "policy", "versions", "machine", "date")
NAMES = {"romebert": "RomeBERT, one stage", "deebert": "DeeBERT, two stages"}


@dataclass
class CompareArguments:
    """Which runs, and where they go."""

    objectives: list[str] = field(
        default_factory=lambda: list(NAMES), metadata={"help": "Objectives of RomeBertTrainer."}
    )
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3], metadata={"help": "Seeds of each."})
    epochs: float = field(default=2.0, metadata={"help": "Passes over the training data, per stage."})
    bf16: bool | None = field(
        default=None, metadata={"help": "Train in bfloat16; when left out, where the machine has it."}
    )
    output_dir: str = field(default="runs/compare", metadata={"help": "Folder of the runs, one folder each."})
    results_file: str = field(
        default="docs/results/objectives.json", metadata={"help": "JSON to write; the plot lies beside."}
    )


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(CompareArguments).parse_args_into_dataclasses(argv)
    runs = []
    for seed in arguments.seeds:
        for objective in arguments.objectives:
            folder = Path(arguments.output_dir, f"{objective}-seed{seed}")
            settings = {"objective": objective, "epochs": arguments.epochs, "bf16": arguments.bf16}
            settings |= {"seed": seed, "output_dir": folder}
            quickstart.main([f"--{name}={value}" for name, value in settings.items() if value is not None])
            results = read_json(folder / "results.json")
            results["settings"].pop("output_dir")  # where it ran is of no interest
            runs.append({name: results[name] for name in KEPT})
            write_json(arguments.results_file, {"runs": runs})
            plot(runs, Path(arguments.results_file).with_suffix(".png"))
    print(f"\n{table(runs)}\n\nResults are in {arguments.results_file}.")


def by_objective(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Runs by objective, in order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        found.setdefault(run["settings"]["objective"], []).append(run)
    return found


def table(runs: list[dict[str, Any]]) -> str:
    """Accuracy in percent at each exit and averaged over exits: mean over seeds, and for several the
    deviation where it matters.
    """
    layers = list(runs[0]["exits"])
    lines = [f"| objective | {' | '.join(layers)} | mean over exits |", "|---" * (len(layers) + 2) + "|"]
    for objective, of_objective in by_objective(runs).items():
        exits = 100 * np.array([list(run["exits"].values()) for run in of_objective])  # (seeds, E)
        means = 100 * np.array([run["mean_over_exits"] for run in of_objective])  # (seeds,)
        cells = [f"{value:.1f}" for value in exits.mean(axis=0)[:-1]]
        for values in (exits[:, -1], means):
            spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.1f}{spread}")
        lines.append(f"| {NAMES.get(objective, objective)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Accuracy at each exit, the mean over seeds as a line and every seed as a dot."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for objective, of_objective in by_objective(runs).items():
        layers = [int(layer) for layer in of_objective[0]["exits"]]
        exits = 100 * np.array([list(run["exits"].values()) for run in of_objective])
        (line,) = axes.plot(
            layers, exits.mean(axis=0), "o-", markersize=7, label=NAMES.get(objective, objective)
        )
        for seed in exits:
            axes.plot(layers, seed, ".", color=line.get_color(), markersize=4)
    test = runs[0]["rows"]["test"]
    axes.set(
        xlabel="exit after layer",
        ylabel="accuracy (%)",
        title=f"movie reviews, {test} test sentences, MiniLM-L6",
    )
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
