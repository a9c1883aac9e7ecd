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

from transformers import HfArgumentParser

from study.cells import GRID, HERE, RESULTS, read_grid
from study.findings import (
    DEFAULT,
    Groups,
    load,
    load_failed,
    load_pilots,
    missing_of,
    with_seeds,
    worth_of_default,
)
from study.ingredients import POOLING, cut, defaults, equal_time, head_rates, poolings, projection
from study.plots import IN_SHORT, PLOTS, plot, plot_in_short, plot_of
from study.tables import (
    against_the_paper,
    each_task,
    learning_rates,
    over_all_tasks,
    recipes_table,
    rules,
    section,
)
from study.wording import in_words

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
    if with_seeds(groups):
        plot_in_short(groups, where.parent / IN_SHORT)
    told = page(groups, read_grid(Path(arguments.grid)), load_failed(results), load_pilots(results))
    where.write_text(told, encoding="utf-8")
    print(f"{sum(len(runs) for recipes in groups.values() for runs in recipes.values())} runs: {where}")


# ---- the page


def page(groups: Groups, grid: dict[str, Any], failed: dict[str, str], pilots: dict[str, Groups]) -> str:
    """All of it, as Markdown."""
    of_grid = any(task in grid["tasks"] for task, _ in groups)
    parts = ["# The study: what each ingredient is worth", INTRODUCTION, COMMANDS if of_grid else ""]
    parts += [in_short(groups)]
    parts += ["## Results", *(section(group, recipes) for group, recipes in groups.items())]
    parts += ["## Over all tasks", over_all_tasks(groups), "## Cut after one seed", cut(groups, grid)]
    parts += ["## At equal time", equal_time(groups)]
    parts += ["## Heads at ten times the learning rate", head_rates(groups)]
    parts += ["## The first token against the mean of all", poolings(groups)]
    parts += ["## The projection", projection(groups), "## Exit rules", rules(groups)]
    parts += ["## Defaults", defaults(groups)]
    if curves := against_the_paper(groups):
        parts += ["## Against the paper's curves", curves]
    parts += ["## Learning rates", learning_rates(pilots, groups, grid)]
    parts += ["## Recipes", recipes_table(groups)]
    parts += ["## What is missing", missing(grid, groups, failed, of_grid)]
    return "\n\n".join(part for part in parts if part) + "\n"


INTRODUCTION = """\
Recipes are compared on the same rows with the same seeds. `mean` is the metric averaged over all exits,
`last` that of the last one, in points (of 100). `at 0.5` is the metric where exiting by normalised entropy
costs half the layers. Time is that of training: of the processor on a CPU, on the clock on a GPU.

A difference is that of paired seeds. In brackets stands the interval that holds 95 % of 2,000 paired
bootstrap resamples of seeds and evaluation rows; for points of a curve it is Student's, over seeds alone,
which with three of them is wide. A difference whose interval holds 0 is no finding; one that does not is in
bold type. With one seed an interval is that of the rows, and says nothing of other seeds. What is best of
many is chosen on the rows that it is judged on, so its lead is somewhat too large. Runs that another machine
or precision made than their task's others are named above its figures."""

COMMANDS = """\
```console
python examples/study/run.py --data DATA --workers 2   # what is missing of examples/study/grid.yaml
python examples/study/report.py                       # this page
```"""


def in_short(groups: Groups) -> str:
    """What the default is worth over tasks, and on each."""
    picture = f"![What {DEFAULT} is worth on each task]({IN_SHORT.as_posix()})" if with_seeds(groups) else ""
    return "\n\n".join(
        part for part in ("## In short", over_tasks(groups), picture, each_task(groups)) if part
    )


def over_tasks(groups: Groups) -> str:
    """What the default is worth on the mean of several tasks, and what faster heads alone are."""
    worth = worth_of_default(groups)
    if worth is None:
        return f"`{DEFAULT}` was not run on two tasks with more than one seed yet."
    told = (
        f"On the mean of {worth.pairs} pairs of task and backbone, of at least {worth.seeds} seeds:"
        f" `{DEFAULT}` against DeeBERT: {in_words(worth.two_stages)}; against DeeBERT with faster heads:"
        f" {in_words(worth.two_stages_heads)}; its last exit against no exits: {in_words(worth.last)};"
        f" at half the cost against half the layers: {in_words(worth.half)};"
        f" faster heads in DeeBERT itself: {in_words(worth.heads)}."
    )
    of_means = {
        group: recipes
        for group, recipes in groups.items()
        if not any(run["arguments"].get(POOLING) == "cls" for runs in recipes.values() for run in runs)
    }
    reading_means = worth_of_default(of_means) if len(of_means) < len(groups) else None
    if reading_means is None or reading_means.pairs == worth.pairs:
        return told
    return (
        f"{told} On the {reading_means.pairs} whose exits read the mean of all tokens, and not the first one,"
        f" at half the cost against half the layers: {in_words(reading_means.half)}."
    )


def missing(grid: dict[str, Any], groups: Groups, failed: dict[str, str], of_grid: bool) -> str:
    """Cells of the grid without a result, and runs that failed. Tasks of one's own are in no grid."""
    absent = missing_of(grid, groups) if of_grid else {}
    runs = sum(len(seeds) for recipes in absent.values() for seeds in recipes.values())
    lines = []
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
    larger = [name for name, of_task in grid["tasks"].items() if of_task.get("large")]
    if of_grid and larger:
        lines.append(f"- for a GPU, run only when `--tasks` names them: {', '.join(larger)}")
    told = "Every run of the grid has a result." if of_grid else "The tasks are one's own, and in no grid."
    if runs:
        told = f"{runs} runs of the grid have no result yet."
    return "\n\n".join([told, "\n".join(lines)]).rstrip()


if __name__ == "__main__":
    main()
