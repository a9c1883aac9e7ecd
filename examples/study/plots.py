"""The study's plots: what the default is worth on each task; a task's metric at each exit, and over cost."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from study.bootstrap import Run, exits_of
from study.findings import (
    CEILING,
    DEFAULT,
    DIFFERENCES,
    HALF,
    TWO_STAGES,
    TWO_STAGES_HEADS,
    Group,
    Groups,
    at_cost,
    best_one_stage,
    differences,
    mean_of,
    summary,
    with_seeds,
)

PLOTS = Path("results")  # beside the page
IN_SHORT = PLOTS / "study.png"
DRAWN = (TWO_STAGES, TWO_STAGES_HEADS, "paper", "mean-6", "mean-12", "kl-1-heads", DEFAULT)  # and the best


def plot_of(group: Group) -> Path:
    """Its place beside the page."""
    return PLOTS / f"study-{group[0]}-{group[1]}.png"


def plot_in_short(groups: Groups, path: Path) -> None:
    """What the default is worth on each task with more than one seed, and on their mean: a panel for each of
    `DIFFERENCES`, a line for each task. A full point is a finding, as its interval leaves 0 out.
    """
    tasks = with_seeds(groups)
    lines = {", ".join(group): differences([recipes], DEFAULT) for group, recipes in tasks.items()}
    if len(tasks) > 1:
        lines[f"mean of {len(tasks)}"] = differences(list(tasks.values()), DEFAULT)
    figure = Figure(figsize=(11, 1.2 + 0.35 * len(lines)), layout="constrained")
    panels = figure.subplots(1, len(DIFFERENCES), sharey=True)
    for panel, (axes, what) in enumerate(zip(panels, DIFFERENCES, strict=True)):
        axes.axvline(0, color="0.6", linewidth=1)
        for height, found in enumerate(of_line[panel] for of_line in lines.values()):
            if found is None:
                continue
            color = "C0" if height < len(tasks) else "black"
            axes.plot([100 * found.low, 100 * found.high], [height, height], color=color)
            face = color if found.excludes_zero else "white"
            axes.plot(100 * found.difference, height, "o", color=color, markerfacecolor=face)
        axes.set(xlabel="points", ylim=(len(lines) - 0.5, -0.5))
        axes.set_title(what.replace("`", ""), fontsize="medium")
    panels[0].set_yticks(range(len(lines)), list(lines))
    figure.suptitle(f"{DEFAULT}: differences with their intervals; full points leave 0 out")
    figure.savefig(path, dpi=110, metadata={"Software": None})


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
