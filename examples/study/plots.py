"""The study's plots: the metric at each exit, and over cost."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from study.bootstrap import Run, exits_of
from study.findings import CEILING, HALF, Group, at_cost, best_one_stage, mean_of, summary

PLOTS = Path("results")  # beside the page
# And the best.
DRAWN = ("deebert", "deebert-heads", "paper", "mean-6", "mean-12", "kl-0.3", "kl-0.3-heads", "kl-1")


def plot_of(group: Group) -> Path:
    """Its place beside the page."""
    return PLOTS / f"study-{group[0]}-{group[1]}.png"


def plot(group: Group, recipes: dict[str, list[Run]], path: Path) -> None:
    """The metric at each exit, with the standard deviation over seeds, and over cost."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    best = best_one_stage(recipes)
    for name in dict.fromkeys([*DRAWN, best]):
        runs = recipes.get(name or "", [])
        if not runs or len(runs[0]["exits"]) < 2:
            continue
        layers = sorted(map(int, runs[0]["exits"]))
        exits = np.array([exits_of(run) for run in runs])  # (S, E)
        (line,) = left.plot(layers, exits.mean(axis=0), "o-", markersize=3, label=name)
        if len(runs) > 1:
            spread = exits.std(axis=0, ddof=1)
            left.fill_between(
                layers,
                exits.mean(axis=0) - spread,
                exits.mean(axis=0) + spread,
                alpha=0.15,
                color=line.get_color(),
            )
        costs = np.linspace(layers[0] / runs[0]["num_layers"], 1, 60)
        over_cost = [mean_of([at_cost(run, cost) for run in runs]) for cost in costs]
        if None not in over_cost:
            right.plot(costs, over_cost, color=line.get_color(), label=name)
    for name, style in ((CEILING, "--"), (HALF, ":")):
        if runs := recipes.get(name, []):
            value = summary(runs)["last"]
            for axes in (left, right):
                axes.axhline(value, color="0.5", linestyle=style, linewidth=1, label=name)
    left.set(
        xlabel="exit after layer", ylabel=next(iter(recipes.values()))[0]["metric"], title=", ".join(group)
    )
    right.set(xlabel="cost: layers run / layers", title="exiting by entropy")
    left.legend(fontsize="small")
    figure.savefig(path, dpi=110, metadata={"Software": None})
