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
    TWO_STAGES_HEADS,
    Groups,
    best_one_stage,
    difference,
    difference_over,
    last_of,
    load,
    load_failed,
    load_pilots,
    mean_over_exits,
    missing_of,
    with_seeds,
    worth_of_default,
)
from study.plots import PLOTS, plot, plot_of
from study.tables import (
    against_the_paper,
    cut,
    each_task,
    equal_time,
    head_rates,
    learning_rates,
    over_all_tasks,
    projection,
    recipes_table,
    rules,
    section,
)
from study.wording import in_words, interval, markdown

PAGE = HERE.parents[1] / "docs" / "study.md"
ALTERNATIVES = (
    *("kl-0.03-heads", "kl-0.3-heads", "kl-1-heads", "paper", "mean-6", "mean-12", "mean-6-heads"),
    TWO_STAGES_HEADS,
)


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
    told = page(groups, read_grid(Path(arguments.grid)), load_failed(results), load_pilots(results))
    where.write_text(told, encoding="utf-8")
    print(f"{sum(len(runs) for recipes in groups.values() for runs in recipes.values())} runs: {where}")


# ---- the page


def page(groups: Groups, grid: dict[str, Any], failed: dict[str, str], pilots: dict[str, Groups]) -> str:
    """All of it, as Markdown."""
    parts = ["# The study: what each ingredient is worth", INTRODUCTION, in_short(groups)]
    parts += ["## Results", *(section(group, recipes) for group, recipes in groups.items())]
    parts += ["## Over all tasks", over_all_tasks(groups), "## Cut after one seed", cut(groups, grid)]
    parts += ["## At equal time", equal_time(groups)]
    parts += ["## Heads at ten times the learning rate", head_rates(groups)]
    parts += ["## The projection", projection(groups), "## Exit rules", rules(groups)]
    parts += ["## Defaults", defaults(groups)]
    parts += ["## Against the paper's curves", against_the_paper(groups)]
    parts += ["## Learning rates", learning_rates(pilots, grid)]
    parts += ["## Recipes", recipes_table(groups), "## What is missing", missing(grid, groups, failed)]
    return "\n\n".join(part for part in parts if part) + "\n"


INTRODUCTION = """\
Recipes are compared on the same rows with the same seeds. `mean` is the metric averaged over all exits,
`last` that of the last one, in points (of 100). `at 0.5` is the metric where exiting by normalised entropy
costs half the layers. Time is that of training: of the processor on a CPU, on the clock on a GPU.

A difference is that of paired seeds. In brackets stands the interval that holds 95 % of 2,000 paired
bootstrap resamples of seeds and evaluation rows (of seeds alone for points of a curve). A difference whose
interval holds 0 is no finding; one that does not is in bold type. With one seed an interval is that of the
rows, and says nothing of other seeds. What is best of many is chosen on the rows that it is
judged on, so its lead is somewhat too large.

```console
python examples/study/run.py --data DATA --workers 2   # what is missing of examples/study/grid.yaml
python examples/study/report.py                       # this page
```"""


def in_short(groups: Groups) -> str:
    """What the default is worth over tasks, and on each."""
    return "\n\n".join(["## In short", over_tasks(groups), each_task(groups)])


def over_tasks(groups: Groups) -> str:
    """What the default is worth on the mean of several tasks, and what faster heads alone are."""
    worth = worth_of_default(groups)
    if worth is None:
        return f"`{DEFAULT}` was not run on two tasks with more than one seed yet."
    return (
        f"On the mean of {worth.pairs} pairs of task and backbone, of at least {worth.seeds} seeds:"
        f" `{DEFAULT}` against DeeBERT: {in_words(worth.two_stages)}; against DeeBERT with faster heads:"
        f" {in_words(worth.two_stages_heads)}; its last exit against no exits: {in_words(worth.last)};"
        f" faster heads in DeeBERT itself: {in_words(worth.heads)}."
    )


DEFAULTS = f"""\
`RomeBertTrainingArguments` starts from the loss of `{DEFAULT}`, with heads that learn as fast as the encoder
until `exit_learning_rate_factor` says otherwise. The quickstart starts from all of it. The paper's settings
are the recipe `paper`. How much the exits weigh is a trade: more favours the early ones, less the last one.
The default is chosen for the last exit first: exits shall cost little where they are not used."""


def defaults(groups: Groups) -> str:
    """What the package starts from, against what it might start from: on several tasks, and on each."""
    rows = []
    for other in ALTERNATIVES:
        tasks = list(with_seeds(groups, (DEFAULT, other)).values())
        if len(tasks) > 1:
            both = [difference_over(tasks, DEFAULT, other, what) for what in (mean_over_exits, last_of)]
            seeds = str(min(one.seeds for one in both if one is not None))
            rows.append([f"mean of {len(tasks)}", "", f"`{other}`", seeds, *map(interval, both)])
    for (task, backbone), recipes in groups.items():
        for other in dict.fromkeys((*ALTERNATIVES, best_one_stage(recipes))):
            if DEFAULT in recipes and other in recipes and other != DEFAULT:
                both = [difference(recipes, DEFAULT, other, what) for what in (mean_over_exits, last_of)]
                seeds = str(both[0].seeds) if both[0] is not None else ""
                rows.append([task, backbone, f"`{other}`", seeds, *map(interval, both)])
    if not rows:
        return f"{DEFAULTS} Nothing here compares them yet."
    head = ["task", "backbone", f"`{DEFAULT}` against", "seeds", "mean over exits", "last exit"]
    return f"{DEFAULTS}\n\n{markdown(head, rows)}"


def missing(grid: dict[str, Any], groups: Groups, failed: dict[str, str]) -> str:
    """Cells of the grid without a result, and runs that failed."""
    absent = missing_of(grid, groups)
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
    if larger := [name for name, of_task in grid["tasks"].items() if of_task.get("large")]:
        lines.append(f"- for a GPU, run only when `--tasks` names them: {', '.join(larger)}")
    told = f"{runs} runs of the grid have no result yet." if runs else "Every run of the grid has a result."
    return "\n\n".join([told, "\n".join(lines)]).rstrip()


if __name__ == "__main__":
    main()
