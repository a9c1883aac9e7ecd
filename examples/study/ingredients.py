"""What one change to a recipe is worth: tables of two recipes that differ in one thing, as Markdown.

Each line gives two differences, that of the mean over exits and that of the last exit.
"""

from typing import Any, NamedTuple

import numpy as np

from study.bootstrap import LEVEL, Interval, Run
from study.findings import (
    CEILING,
    DEFAULT,
    TWO_STAGES,
    TWO_STAGES_HEADS,
    Groups,
    best_one_stage,
    in_common,
    mean_and_last,
    summary,
    with_seeds,
)
from study.wording import interval, markdown

HEAD = ["task", "backbone"]
POOLING = "exit_pooling"
ALTERNATIVES = (
    *("kl-0.03-heads", "kl-0.3-heads", "kl-1-heads", "paper", "mean-6", "mean-12", "mean-6-heads"),
    TWO_STAGES_HEADS,
)


def defaults(groups: Groups) -> str:
    """What the package starts from, against what it might start from: on several tasks, and on each."""
    rows = []
    for other in ALTERNATIVES:
        tasks = list(with_seeds(groups, (DEFAULT, other)).values())
        if len(tasks) > 1:
            rows.append([f"mean of {len(tasks)}", "", *_default_against(tasks, other)])
    for (task, backbone), recipes in groups.items():
        for other in dict.fromkeys((*ALTERNATIVES, best_one_stage(recipes))):
            if DEFAULT in recipes and other in recipes and other != DEFAULT:
                rows.append([task, backbone, *_default_against([recipes], other)])
    if not rows:
        return f"{DEFAULTS} Nothing here compares them yet."
    head = [*HEAD, f"`{DEFAULT}` against", "seeds", "mean over exits", "last exit"]
    return f"{DEFAULTS}\n\n{markdown(head, rows)}"


DEFAULTS = f"""\
`RomeBertTrainingArguments` and the quickstart start from `{DEFAULT}`; the paper's settings are the recipe
`paper`. How much the exits weigh is a trade: more favours the early ones, less the last one.
The default is chosen for the last exit first: exits shall cost little where they are not used."""


def _default_against(tasks: list[dict[str, list[Run]]], other: str) -> list[str]:
    both = mean_and_last(tasks, DEFAULT, other)
    seeds = "" if both[0] is None else str(both[0].seeds)
    return [f"`{other}`", seeds, *map(interval, both)]


def cut(groups: Groups, grid: dict[str, Any]) -> str:
    """What ran with one seed alone, and how far behind the best recipe it was with that seed."""
    rows = []
    for (task, backbone), recipes in groups.items():
        best = best_one_stage(recipes)
        for name in grid["tasks"].get(task, {}).get("cut", ()):
            if name in recipes and best is not None and len(recipes[name][0]["exits"]) > 1:
                both = mean_and_last([recipes], name, best)
                rows.append([task, backbone, f"`{name}`", f"`{best}`", *map(interval, both)])
    if not rows:
        return "Nothing: each recipe has the seeds of its task."
    told = "These ran with the first seed alone. The intervals are of rows."
    return f"{told}\n\n{markdown([*HEAD, 'recipe', 'against', 'mean over exits', 'last exit'], rows)}"


def equal_time(groups: Groups) -> str:
    """The default against two stages that take about as long, on the clock of the processor or the GPU."""
    rows = []
    for (task, backbone), recipes in groups.items():
        for other in (f"{TWO_STAGES}-equal-time", f"{TWO_STAGES_HEADS}-equal-time"):
            if DEFAULT in recipes and other in recipes:
                minutes = (f"{summary(recipes[name])['seconds'] / 60:.1f}" for name in (DEFAULT, other))
                seeds = str(len(in_common(recipes[DEFAULT], recipes[other])[0]))
                both = mean_and_last([recipes], DEFAULT, other)
                rows.append([task, backbone, f"`{other}`", seeds, *minutes, *map(interval, both)])
    if not rows:
        return "Nothing yet: two stages of equal time were not run."
    head = [*HEAD, f"`{DEFAULT}` against", "seeds", "minutes", "its minutes", "mean over exits", "last exit"]
    return markdown(head, rows)


def head_rates(groups: Groups) -> str:
    """What heads at ten times the learning rate change, against the same recipe without."""
    rows = []
    for (task, backbone), recipes in groups.items():
        for name in recipes:
            without = name.removesuffix("-heads")
            if without != name and without in recipes:
                mean, last = mean_and_last([recipes], name, without)
                told = "" if name.startswith(CEILING) else interval(mean)  # it has one exit
                rows.append([task, backbone, f"`{name}`", told, interval(last)])
    head = [*HEAD, "recipe", "mean, against without", "last, against without"]
    return markdown(head, rows) if rows else "Nothing yet: no recipe was run both with and without it."


def poolings(groups: Groups) -> str:
    """What exits that read the first token's state are worth, against those that read the mean, on tasks that
    differ in nothing else.
    """

    def apart_from_pooling(run: Run) -> dict[str, Any]:
        return {name: value for name, value in run["arguments"].items() if name != POOLING}

    rows = []
    for (task, backbone), recipes in groups.items():
        for (other, same_backbone), others in groups.items():
            for name in recipes:
                if same_backbone != backbone or name not in others:
                    continue
                one, two = recipes[name], others[name]
                read = one[0]["arguments"].get(POOLING), two[0]["arguments"].get(POOLING)
                if read == ("cls", "mean") and apart_from_pooling(one[0]) == apart_from_pooling(two[0]):
                    mean, last = mean_and_last([{task: one, other: two}], task, other)
                    told = "" if len(one[0]["exits"]) == 1 else interval(mean)
                    rows.append([task, other, backbone, f"`{name}`", told, interval(last)])
    if not rows:
        return "Nothing yet: no two tasks differ in exit_pooling alone."
    head = ["task, `cls`", "task, `mean`", "backbone", "recipe", "mean over exits", "last exit"]
    return markdown(head, rows)


# ---- the projection


class Projected(NamedTuple):
    """A recipe with the projection, against the same without.

    Args:
        share: of the steps in which gradients conflicted.
        cosine: of the two gradients, on average; `None` where it was not kept.
        time: that training takes, as a multiple.
        both: differences in the mean over exits and at the last exit.
    """

    task: str
    backbone: str
    recipe: str
    share: float | None
    cosine: float | None
    time: float
    both: tuple[Interval | None, Interval | None]


def projection(groups: Groups) -> str:
    """What protecting one of the gradients changes, against the same recipe without."""
    found = _projected(groups)
    if not found:
        return "Nothing yet: no recipe was run both with and without it."
    rows = [
        [
            one.task,
            one.backbone,
            f"`{one.recipe}`",
            "" if one.share is None else f"{one.share:.0%}",
            "" if one.cosine is None else f"{one.cosine:.2f}",
            *map(interval, one.both),
        ]
        for one in found
    ]
    head = [*HEAD, "recipe", "steps projected", "cosine", "mean, against without", "last, against without"]
    return f"{_what_projection_changes(found)}\n\n{markdown(head, rows)}"


def _projected(groups: Groups) -> list[Projected]:
    found = []
    for (task, backbone), recipes in groups.items():
        for name in recipes:
            plain, _, protected = name.partition("-protect-")
            without = plain if protected else {"paper": "sd-sum"}.get(name)
            if without is not None and without in recipes:
                one, other = summary(recipes[name]), summary(recipes[without])
                time, both = one["seconds"] / other["seconds"], mean_and_last([recipes], name, without)
                found.append(Projected(task, backbone, name, one["projected"], one["cosine"], time, both))
    return found


def _what_projection_changes(found: list[Projected]) -> str:
    """In words, of each kind of loss: how often gradients conflict, what the projection costs, and whether
    more comes of it than of chance.
    """
    told = []
    for about, of_kind in (
        ("half labels and half distillation", [one for one in found if one.recipe != "paper"]),
        ("the paper's loss", [one for one in found if one.recipe == "paper"]),
    ):
        intervals = [one for projected in of_kind for one in projected.both if one is not None]
        if not intervals:
            continue
        share = np.mean([one.share or 0.0 for one in of_kind])
        time = np.median([one.time for one in of_kind])
        shown = [one for one in intervals if one.excludes_zero]
        ahead = sum(one.difference > 0 for one in shown)
        by_chance = (1 - LEVEL) * len(intervals)
        told.append(
            f"With {about} the gradients conflict in {share:.0%} of the steps, and training with the"
            f" projection takes {time:.1f} times as long. Of {len(intervals)} intervals {ahead} lie above 0"
            f" and {len(shown) - ahead} below it, where chance alone gives {by_chance:.1f}; more where they"
            " are of one seed, and so of rows alone."
        )
    return " ".join(told)
