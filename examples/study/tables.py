"""The page's tables of results, each as Markdown: learning rates, a task's recipes, means over tasks, exit
rules, the paper's curves, what each recipe is.
"""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from support.recipes import find_recipe, shipped_recipes
from support.results_picture import made_with

from study.bootstrap import Run, exits_of
from study.cells import HERE
from study.findings import (
    CEILING,
    COSTS,
    DEFAULT,
    DIFFERENCES,
    HALF,
    TWO_STAGES,
    Group,
    Groups,
    at_cost,
    at_rates,
    best_one_stage,
    differences,
    mean_of,
    one_layer,
    precision_of,
    rate_by_rule,
    rate_of,
    summary,
    with_seeds,
)
from study.plots import plot_of
from study.wording import interval, markdown, points, short


def learning_rates(pilots: dict[str, Groups], groups: Groups, grid: dict[str, Any]) -> str:
    """What was found at each rate that pilots tried; the grid's own is in bold type."""
    rows, others = [], []
    for (task, backbone), rates in at_rates(pilots, groups, grid).items():
        own, wanted = rate_of(grid, task), rate_by_rule(rates)
        for rate, recipes in rates.items():
            ceiling, two_stages = (summary(recipes[name]) for name in (CEILING, TWO_STAGES))
            name = f"**{short(rate)}**" if rate == own else short(rate)
            found = [(one["last"], one["last_spread"]) for one in (ceiling, two_stages)]
            found.append((two_stages["mean"], two_stages["mean_spread"]))
            seeds = min(ceiling["seeds"], two_stages["seeds"])
            precision = {precision_of(run) for one in (CEILING, TWO_STAGES) for run in recipes[one]}
            about = [task, backbone, name, str(seeds), ", ".join(sorted(precision))]
            rows.append([*about, *(points(*one) for one in found)])
        if own not in (None, wanted):
            others.append(f"{task} would take {short(wanted)} by this rule, which was found after its runs")
    if not rows:
        return "Nothing yet: there are no pilot runs."
    told = (
        "Of each task by pilot runs of one seed, and the same for all recipes: of the rates at which the"
        f" last exit of `{CEILING}` is within half a point of its best, the one with the highest mean over"
        f" exits of `{TWO_STAGES}`. Where no pilot took the grid's own rate, its row is of the study's seeds."
        " Tasks with fewer than two rates here take that of `sst2-4k`, whose backbone is theirs; `reviews-2k`"
        " takes the quickstart's."
    )
    told = " ".join([told, *(f"{other}." for other in others)])
    head = ["task", "backbone", "learning rate", "seeds", "precision", f"last, `{CEILING}`"]
    head += [f"last, `{TWO_STAGES}`", f"mean, `{TWO_STAGES}`"]
    return f"{told}\n\n{markdown(head, sorted(rows, key=lambda row: row[:2]))}"


def section(group: Group, recipes: dict[str, list[Run]]) -> str:
    """The tables of a task and backbone."""
    task, backbone = group
    first = next(iter(recipes.values()))[0]
    rows = first["rows"]
    judged = f"{first['metric']} on {rows['evaluation']:,} rows, trained on {rows['train']:,}"
    picture = f"![The metric at each exit, and over cost]({plot_of(group).as_posix()})"
    bare = [
        f"`{name}`" for name, runs in recipes.items() if any(r["policy"] and not r["curve"] for r in runs)
    ]
    note = f"No curve was kept of {', '.join(bare)}." if bare else ""
    made = f"{judged}; {how_made(recipes)}"
    parts = [f"### {task}, {backbone}", picture, made, table(recipes), note, compared(recipes)]
    return "\n\n".join(part for part in parts if part)


def how_made(recipes: dict[str, list[Run]]) -> str:
    """In which precision and on what most runs of a task were made, then which were made otherwise."""
    made: dict[str, list[tuple[int, str]]] = {}
    for name, runs in recipes.items():
        for run in runs:
            made.setdefault(f"{precision_of(run)}, {made_with(run)}", []).append((run["seed"], name))
    most, *others = sorted(made, key=lambda how: -len(made[how]))
    told = [f"{most}."]
    for how in others:
        which = ", ".join(f"`{name}` seed {seed}" for seed, name in sorted(made[how]))
        told.append(f"Made otherwise: {which}; {how}.")
    return " ".join(told)


def table(recipes: dict[str, list[Run]]) -> str:
    """A line per recipe, those with the highest mean first: exits, mean, last, at costs, area, time."""
    found = {name: summary(runs) for name, runs in recipes.items()}
    order = sorted(found, key=lambda name: -(found[name]["mean"] or 0))
    layers = sorted({layer for one in found.values() for layer in one["exits"] if one["mean"]}, key=int)
    head = ["recipe", "seeds", *layers, "mean", "last", *(f"at {cost}" for cost in COSTS), "area", "minutes"]
    rows = []
    for name in order:
        one = found[name]
        exits = [points(one["exits"].get(layer)) if one["mean"] else "" for layer in layers]
        rows.append(
            [
                f"`{name}`",
                str(one["seeds"]),
                *exits,
                points(one["mean"], one["mean_spread"]),
                points(one["last"], one["last_spread"]),
            ]
            + [points(one["at_cost"][cost]) for cost in COSTS]
            + [points(one["area"]), f"{one['seconds'] / 60:.1f}"]
        )
    return markdown(head, rows)


def compared(recipes: dict[str, list[Run]]) -> str:
    """A line per recipe: paired differences to two stages, to no exits and to half the layers."""
    rows = []
    for name in recipes:
        if name in (CEILING, HALF) or len(recipes[name][0]["exits"]) < 2:
            continue
        rows.append([f"`{name}`", *map(interval, differences([recipes], name))])
    return markdown(["recipe", *DIFFERENCES], rows) if rows else ""


def each_task(groups: Groups) -> str:
    """A line per task for the default, and for the recipe that has the highest mean if it is another."""
    rows = []
    for (task, backbone), recipes in groups.items():
        for name in dict.fromkeys((DEFAULT, best_one_stage(recipes))):
            if name is not None and name in recipes:
                runs = recipes[name]
                about = [task, backbone, runs[0]["metric"], f"`{name}`", str(len(runs))]
                rows.append([*about, *map(interval, differences([recipes], name))])
    told = (
        f"For each task a line of `{DEFAULT}`, and one of the recipe with the highest mean over exits in as"
        " many epochs where that is another. What is set in bold type is a finding."
    )
    head = ["task", "backbone", "metric", "recipe", "seeds", *DIFFERENCES]
    return f"{told}\n\n{markdown(head, rows)}" if rows else "No recipe of one stage was run yet."


def over_all_tasks(groups: Groups) -> str:
    """A line per recipe that every task with more than one seed has: means over these tasks, and how much of
    full depth is kept.
    """
    tasks = list(with_seeds(groups).values())
    shared = set.intersection(*(set(recipes) for recipes in tasks)) if len(tasks) > 1 else set()
    rows = []
    for name in (name for name in tasks[0] if name in shared) if tasks else ():
        found = [summary(recipes[name]) for recipes in tasks]
        if any(one["mean"] is None for one in found):
            continue
        seeds = str(min(one["seeds"] for one in found))
        kept = [np.mean([one["at_cost"][cost] / one["last"] for one in found]) for cost in COSTS]
        rows.append([f"`{name}`", seeds, *map(interval, differences(tasks, name)), *map(points, kept)])
    if not rows:
        return "Nothing yet: no recipe was run on two tasks with more than one seed."
    head = ["recipe", "seeds", *DIFFERENCES, *(f"at {cost}, % of its last exit" for cost in COSTS)]
    told = (
        f"Means over {len(tasks)} pairs of task and backbone. Intervals draw each pair's seeds, and each data"
        " set's rows."
    )
    return f"{told}\n\n{markdown(head, rows)}"


def rules(groups: Groups) -> str:
    """Exit rules on the same models, and one layer for all: the metric at two costs, averaged over all runs
    that have exits.
    """
    rows = []
    for (task, backbone), recipes in groups.items():
        runs = [run for runs in recipes.values() for run in runs if run["policy"]]
        for rule in [None, runs[0]["policy"], *runs[0]["policies"]] if runs else ():
            at = [
                mean_of([at_cost(run, cost, rule) if rule else one_layer(run, cost) for run in runs])
                for cost in COSTS
            ]
            name = f"`{rule}`" if rule else "one layer for all"
            rows.append([task, backbone, str(len(runs)), name, *map(points, at)])
    if not rows:
        return "Nothing yet: no run has a curve."
    told = (
        "Each rule on all models of a task that have exits. One layer for all is what there is without a"
        " rule: every row leaves after the same layer. A rule that scores less is not worth having there."
    )
    head = ["task", "backbone", "models", "rule", *(f"at {cost}" for cost in COSTS)]
    return f"{told}\n\n{markdown(head, rows)}"


def against_the_paper(groups: Groups) -> str:
    """Published curves beside ours of the same tasks: levels, and how far either is ahead of two stages."""
    published = yaml.safe_load((HERE / "published.yaml").read_text(encoding="utf-8"))
    rows = []
    for task, curves in published.items():
        theirs = {name: np.array(curves[name]) / 100 for name in ("DeeBERT", "RomeBERT")}
        ahead = f"{100 * (theirs['RomeBERT'].mean() - theirs['DeeBERT'].mean()):+.1f}"
        of_paper = [
            [task, "BERT-base (published)", name, *_along(exits), ahead if name == "RomeBERT" else ""]
            for name, exits in theirs.items()
        ]
        of_ours = []
        for (ours, backbone), recipes in groups.items():
            for recipe in (TWO_STAGES, "paper", DEFAULT):
                if recipe in recipes and recipes[recipe][0]["arguments"].get("task_name") == task:
                    exits = np.mean([exits_of(run) for run in recipes[recipe]], axis=0)
                    told = interval(differences([recipes], recipe)[0])
                    of_ours.append([task, f"{backbone} (ours, {ours})", f"`{recipe}`", *_along(exits), told])
        if of_ours:
            rows += of_paper + of_ours
    if not rows:
        return ""
    head = ["task", "backbone", "recipe", "first exit", "middle exit", "last exit", "mean"]
    said = (
        "The paper's curves are of BERT-base (12 layers of 768, one seed, `cls` pooling), read off its images"
        " within 0.1 to 0.3. Ours are of smaller encoders with mean pooling, and of part of SST-2, so levels"
        " differ; what can be compared is the distance between recipes. Published DeeBERT trains each stage"
        f" for all epochs, as `deebert-double` does, where `{TWO_STAGES}` takes half of them for each."
    )
    return f"{said}\n\n{markdown([*head, 'mean, ahead of two stages'], rows)}"


def _along(exits: np.ndarray) -> list[str]:
    """(E,) -> the first, the middle, the last one and their mean."""
    return [points(one) for one in (exits[0], exits[len(exits) // 2 - 1], exits[-1], exits.mean())]


def recipes_table(groups: Groups) -> str:
    """What each recipe that was run is, by the words of its file."""
    names = dict.fromkeys(name for recipes in groups.values() for name in recipes)
    known = shipped_recipes()
    rows = [[f"`{name}`", words_of(find_recipe(name))] for name in names if name in known]
    return "`--recipe NAME` of examples/train_glue.py takes them too.\n\n" + markdown(
        ["recipe", "what it is"], rows
    )


def words_of(file: Path) -> str:
    """The comment at the top of a recipe."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
