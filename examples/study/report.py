"""The study's page: results -> docs/study.md and its plots.

    python examples/study/report.py                                   # what is in examples/study/results
    python examples/study/report.py --results MINE --page mine.md     # of a study of one's own

Every figure comes from the results; sentences say only what an interval allows. What the grid asks for and
nobody ran yet is listed at the end.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # examples/
import support.installed  # noqa: F401

# isort: split
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml
from support.recipes import find_recipe, shipped_recipes
from support.results_picture import made_with
from transformers import HfArgumentParser

from study.bootstrap import Run, exits_of, over_seeds
from study.cells import GRID, HERE, RESULTS, read_grid
from study.findings import (
    CEILING,
    COSTS,
    HALF,
    TWO_STAGES,
    Group,
    Groups,
    at_cost,
    best_one_stage,
    difference,
    difference_over,
    in_common,
    last_of,
    load,
    load_failed,
    mean_of,
    mean_over_exits,
    missing_of,
    summary,
)
from study.plots import PLOTS, plot, plot_of
from study.wording import in_words, interval, markdown, points

PAGE = HERE.parents[1] / "docs" / "study.md"


@dataclass
class ReportArguments:
    """Where results are, and where the page goes."""

    results: str = field(default=str(RESULTS), metadata={"help": "Folder of results."})
    page: str = field(default=str(PAGE), metadata={"help": "Page to write; plots go to `results` beside it."})
    grid: str = field(default=str(GRID), metadata={"help": "The grid, to say what is missing."})


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(ReportArguments).parse_args_into_dataclasses(
        argv, look_for_args_file=False
    )
    results, where = Path(arguments.results), Path(arguments.page)
    groups = load(results)
    if not groups:
        raise SystemExit(f"{results} holds no results; examples/study/run.py makes them.")
    (where.parent / PLOTS).mkdir(parents=True, exist_ok=True)
    for group, recipes in groups.items():
        plot(group, recipes, where.parent / plot_of(group))
    grid = read_grid(Path(arguments.grid))
    where.write_text(page(groups, grid, load_failed(results)), encoding="utf-8")
    print(f"{sum(len(runs) for recipes in groups.values() for runs in recipes.values())} runs: {where}")


# ---- the page


def page(groups: Groups, grid: dict[str, Any], failed: dict[str, str]) -> str:
    """All of it, as Markdown."""
    parts = ["# The study: what each ingredient is worth", INTRODUCTION, in_short(groups)]
    parts += ["## Results", *(section(group, recipes) for group, recipes in groups.items())]
    parts += ["## Over all tasks", over_all_tasks(groups)]
    parts += ["## The projection", projection(groups), "## Exit rules", rules(groups)]
    parts += ["## Defaults", defaults(groups)]
    parts += ["## Against the paper's curves", against_the_paper(groups)]
    parts += ["## Recipes", recipes_table(groups), "## What is missing", missing(grid, groups, failed)]
    return "\n\n".join(part for part in parts if part) + "\n"


INTRODUCTION = """\
Recipes are compared on the same rows with the same seeds. `mean` is the metric averaged over all exits,
`last` that of the last one, in points (of 100). `at 0.5` is the metric where exiting by normalised entropy
costs half the layers. Time is that of training: of the processor on a CPU, on the clock on a GPU.

A difference is that of paired seeds. In brackets stands the interval that holds 95 % of 2,000 paired
bootstrap resamples of seeds and evaluation rows (of seeds alone for regression and for points of a curve). A
difference whose interval holds 0 is no finding; one that does not is in bold type. With one seed an interval
is that of the rows, and says nothing of other seeds. What is best of many is chosen on the rows that it is
judged on, so its lead is somewhat too large.

```console
python examples/study/run.py --data DATA --workers 2   # what is missing of examples/study/grid.yaml
python examples/study/report.py                       # this page
```"""


def in_short(groups: Groups) -> str:
    """For each task and backbone: one stage against two, and what it costs the last exit."""
    lines = ["## In short"]
    for (task, backbone), recipes in groups.items():
        best = best_one_stage(recipes)
        if best is None or TWO_STAGES not in recipes:
            lines.append(f"- {task}, {backbone}: too few recipes were run to compare.")
            continue
        told = f"of the recipes with as many epochs, `{best}` has the highest mean over exits"
        told += f" ({points(summary(recipes[best])['mean'])}). Against DeeBERT:"
        told += f" {in_words(difference(recipes, best, TWO_STAGES, mean_over_exits))}"
        if CEILING in recipes:
            told += (
                f". Its last exit against no exits: {in_words(difference(recipes, best, CEILING, last_of))}"
            )
        lines.append(f"- {task}, {backbone}: {told}.")
    return "\n".join(lines)


def section(group: Group, recipes: dict[str, list[Run]]) -> str:
    """The tables of a task and backbone."""
    task, backbone = group
    first = next(iter(recipes.values()))[0]
    rows = first["rows"]
    made = (
        f"{first['metric']} on {rows['evaluation']:,} rows, trained on {rows['train']:,}; {made_with(first)}."
    )
    picture = f"![The metric at each exit, and over cost]({plot_of(group).as_posix()})"
    bare = [
        f"`{name}`" for name, runs in recipes.items() if any(r["policy"] and not r["curve"] for r in runs)
    ]
    note = f"No curve was kept of {', '.join(bare)}." if bare else ""
    parts = [f"### {task}, {backbone}", picture, made, table(recipes), note, compared(recipes)]
    return "\n\n".join(part for part in parts if part)


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
        half = None
        ones, others = in_common(recipes[name], recipes.get(HALF, []))
        pairs = [(at_cost(one, 0.5), exits_of(other)[-1]) for one, other in zip(ones, others, strict=True)]
        if pairs and all(one is not None for one, _ in pairs):
            half = over_seeds([one - other for one, other in pairs])
        rows.append(
            [
                f"`{name}`",
                ""
                if name == TWO_STAGES
                else interval(difference(recipes, name, TWO_STAGES, mean_over_exits)),
                interval(difference(recipes, name, CEILING, last_of)),
                interval(half),
            ]
        )
    if not rows:
        return ""
    head = [
        "recipe",
        f"mean, against `{TWO_STAGES}`",
        f"last, against `{CEILING}`",
        f"at 0.5, against `{HALF}`",
    ]
    return markdown(head, rows)


def over_all_tasks(groups: Groups) -> str:
    """A line per recipe that was run on every task: means over tasks, and how much of full depth is kept."""
    tasks = [recipes for recipes in groups.values() if {TWO_STAGES, CEILING} <= set(recipes)]
    shared = set.intersection(*(set(recipes) for recipes in tasks)) if len(tasks) > 1 else set()
    rows = []
    for name in (name for name in tasks[0] if name in shared) if tasks else ():
        found = [summary(recipes[name]) for recipes in tasks]
        if any(one["mean"] is None for one in found):
            continue
        against = None if name == TWO_STAGES else difference_over(tasks, name, TWO_STAGES, mean_over_exits)
        rows.append(
            [
                f"`{name}`",
                interval(against),
                interval(difference_over(tasks, name, CEILING, last_of)),
                *(points(np.mean([one["at_cost"][cost] / one["last"] for one in found])) for cost in COSTS),
            ]
        )
    if not rows:
        return "Nothing yet: no recipe was run on two tasks."
    head = ["recipe", f"mean, against `{TWO_STAGES}`", f"last, against `{CEILING}`"]
    head += [f"at {cost}, % of its last exit" for cost in COSTS]
    told = f"Means over {len(tasks)} tasks of equal weight; intervals draw each task's seeds and rows."
    return f"{told}\n\n{markdown(head, rows)}"


def projection(groups: Groups) -> str:
    """What protecting one of the gradients changes, against the same recipe without."""
    rows = []
    for (task, backbone), recipes in groups.items():
        for name in recipes:
            plain, _, protected = name.partition("-protect-")
            without = plain if protected else {"paper": "sd-sum"}.get(name)
            if without is None or without not in recipes:
                continue
            one = summary(recipes[name])
            rows.append(
                [
                    task,
                    backbone,
                    f"`{name}`",
                    f"{one['projected']:.0%}" if one["projected"] is not None else "",
                ]
                + ["" if one["cosine"] is None else f"{one['cosine']:.2f}"]
                + [interval(difference(recipes, name, without, what)) for what in (mean_over_exits, last_of)]
            )
    if not rows:
        return "Nothing yet: no recipe was run both with and without it."
    head = [
        "task",
        "backbone",
        "recipe",
        "steps projected",
        "cosine",
        "mean, against without",
        "last, against without",
    ]
    return markdown(head, rows)


def rules(groups: Groups) -> str:
    """Exit rules on the same models: the metric at two costs, averaged over all runs that have exits."""
    rows = []
    for (task, backbone), recipes in groups.items():
        runs = [run for runs in recipes.values() for run in runs if run["policies"]]
        for rule in [runs[0]["policy"], *runs[0]["policies"]] if runs else ():
            at = [mean_of([at_cost(run, cost, rule) for run in runs]) for cost in COSTS]
            rows.append([task, backbone, str(len(runs)), f"`{rule}`", *map(points, at)])
    head = ["task", "backbone", "models", "rule", *(f"at {cost}" for cost in COSTS)]
    return markdown(head, rows) if rows else "Nothing yet: no run has a curve."


def defaults(groups: Groups) -> str:
    """What speaks for another start than the paper's settings."""
    lines = [
        "`RomeBertTrainingArguments` starts from the settings of the paper (the recipe `paper`), the"
        " quickstart from those of `mean-6`. That changes when a recipe is ahead of both in the mean over"
        " exits, and not behind in the last exit, on more than one task and with more than one seed."
    ]
    for (task, backbone), recipes in groups.items():
        best = best_one_stage(recipes)
        for present in ("paper", "mean-6"):
            if best in (None, present) or present not in recipes:
                continue
            mean, last = (difference(recipes, best, present, what) for what in (mean_over_exits, last_of))
            told = f"`{best}` against `{present}`, mean: {in_words(mean)}; last exit: {in_words(last)}"
            lines.append(f"- {task}, {backbone}: {told}.")
    if len(lines) == 1:
        return f"{lines[0]} Nothing here compares them yet."
    return "\n".join([lines[0], "", *lines[1:]])


def against_the_paper(groups: Groups) -> str:
    """Published curves beside ours."""
    published = yaml.safe_load((HERE / "published.yaml").read_text(encoding="utf-8"))
    rows = []
    for task, curves in published.items():
        for name in ("DeeBERT", "RomeBERT"):
            values = np.array(curves[name]) / 100
            rows.append(
                [
                    task,
                    "BERT-base (published)",
                    name,
                    points(values[0]),
                    points(values[5]),
                    points(values[-1]),
                    points(values.mean()),
                ]
            )
        for (ours, backbone), recipes in groups.items():
            for recipe in ("deebert-double", "paper", best_one_stage(recipes)):
                if recipe in recipes and recipes[recipe][0]["arguments"].get("task_name") == task:
                    exits = np.mean([exits_of(run) for run in recipes[recipe]], axis=0)
                    middle = exits[len(exits) // 2 - 1]
                    rows.append(
                        [
                            task,
                            f"{backbone} (ours, {ours})",
                            f"`{recipe}`",
                            *map(points, (exits[0], middle, exits[-1], exits.mean())),
                        ]
                    )
    head = ["task", "backbone", "recipe", "first exit", "middle exit", "last exit", "mean"]
    said = (
        "The paper's curves are of BERT-base (12 layers of 768, one seed, `cls` pooling), read off its images"
        " within 0.1 to 0.3. Ours are of smaller encoders with mean pooling, and of part of SST-2, so levels"
        " differ; what can be compared is the distance between recipes. Published DeeBERT trains each stage"
        " for all epochs, as `deebert-double` does."
    )
    return f"{said}\n\n{markdown(head, rows)}"


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


def missing(grid: dict[str, Any], groups: Groups, failed: dict[str, str]) -> str:
    """Cells of the grid without a result, and runs that failed."""
    absent = missing_of(grid, groups)
    runs = sum(len(seeds) for recipes in absent.values() for seeds in recipes.values())
    if not runs and not failed:
        return "Nothing: the grid is full, and no run failed."
    lines = [f"{runs} runs of the grid have no result yet."]
    for (task, backbone), recipes in absent.items():
        if (task, backbone) not in groups:
            lines.append(f"- {task}, {backbone}: all")
            continue
        by_seeds: dict[str, list[str]] = {}
        for name, seeds in recipes.items():
            by_seeds.setdefault(", ".join(map(str, seeds)), []).append(f"`{name}`")
        told = "; ".join(f"seeds {seeds} of {', '.join(names)}" for seeds, names in by_seeds.items())
        lines.append(f"- {task}, {backbone}: {told}")
    lines += [f"- failed: {name}: {reason.splitlines()[-1]}" for name, reason in failed.items()]
    return "\n".join([lines[0], "", *lines[1:]])


if __name__ == "__main__":
    main()
