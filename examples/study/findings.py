"""Results on disk -> runs by task, backbone and recipe, and the figures that the report tells of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modeling_romebert.evaluation.provenance import read_json
from study.bootstrap import Interval, OfExits, Run, exits_of, over_seeds, paired
from study.cells import FAILED, PILOTS, cells_of, failed_folder

Group = tuple[str, str]  # task and backbone
Groups = dict[Group, dict[str, list[Run]]]  # recipe -> its runs, by seed
Rates = dict[float, dict[str, list[Run]]]  # learning rate -> recipe -> its runs
COSTS = (0.5, 0.33)
# What others are measured by: two stages, as published and with faster heads; no exits, at the last exit;
# half the layers, at half the cost.
TWO_STAGES, TWO_STAGES_HEADS, CEILING, HALF = "deebert", "deebert-heads", "no-exits", "half-depth"
DEFAULT = "kl-0.1-heads"  # what RomeBertTrainingArguments starts from


def load(folder: Path) -> Groups:
    """A folder of results -> (task, backbone) -> recipe -> its runs, by seed."""
    groups: Groups = {}
    for path in sorted(folder.glob("*/*/*/*.json")):
        run = read_json(path)
        groups.setdefault((run["task"], run["backbone"]), {}).setdefault(run["recipe"], []).append(run)
    for recipes in groups.values():
        for runs in recipes.values():
            runs.sort(key=lambda run: run["seed"])
    return groups


def load_pilots(results: Path) -> dict[str, Groups]:
    """A folder of results -> learning rate -> what the pilot runs beside it found with it."""
    folders = [path for path in (results.parent / PILOTS).glob("*") if path.name != FAILED]
    return {path.name: load(path) for path in sorted(folders, key=lambda path: float(path.name))}


def at_rates(pilots: dict[str, Groups], groups: Groups, grid: dict[str, Any]) -> dict[Group, Rates]:
    """What was found at each learning rate that pilots tried on a task, lowest first. Where no pilot took the
    grid's own rate, it is the study's.
    """
    both = {CEILING, TWO_STAGES}
    found: dict[Group, Rates] = {}
    for rate, of_pilots in pilots.items():
        for group, recipes in of_pilots.items():
            if both <= set(recipes):
                found.setdefault(group, {})[float(rate)] = recipes
    for (task, backbone), rates in found.items():
        own, recipes = rate_of(grid, task), groups.get((task, backbone), {})
        if own is not None and both <= set(recipes):
            rates.setdefault(own, recipes)
    return {group: dict(sorted(rates.items())) for group, rates in found.items()}


def rate_of(grid: dict[str, Any], task: str) -> float | None:
    """The learning rate that a task's runs take."""
    return grid["tasks"].get(task, {}).get("arguments", {}).get("learning_rate")


def rate_by_rule(rates: Rates) -> float:
    """Of the rates at which the last exit without exits is within half a point of its best, the one with the
    highest mean over exits in two stages.
    """
    found = {
        rate: [summary(recipes[name]) for name in (CEILING, TWO_STAGES)] for rate, recipes in rates.items()
    }
    best = max(ceiling["last"] for ceiling, _ in found.values())
    near = {rate: two["mean"] for rate, (ceiling, two) in found.items() if ceiling["last"] >= best - 0.005}
    return max(near, key=near.__getitem__)


def load_failed(results: Path) -> dict[str, str]:
    """A folder of results -> the name of each run that failed and has none, and why it failed."""
    folder = failed_folder(results)
    return {
        " ".join(path.relative_to(folder).with_suffix("").parts): read_json(path)["reason"]
        for path in sorted(folder.glob("*/*/*/*.json"))
        if not (results / path.relative_to(folder)).is_file()
    }


def in_common(ones: Sequence[Run], others: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Runs of two recipes -> those with a seed that both have."""
    seeds = {run["seed"] for run in ones} & {run["seed"] for run in others}
    mine, theirs = ([run for run in runs if run["seed"] in seeds] for runs in (ones, others))
    return mine, theirs


def at_cost(run: Run, cost: float, rule: str | None = None) -> float | None:
    """The metric where the run's exit rule costs so much of full depth, between the points of its curve.

    Of a model without exits it is its one point, if that costs no more; else there is none.

    Args:
        rule: another than that of the run's curve.
    """
    kept = run["arguments"].get("keep_layers", 1.0)
    points = run["policies"].get(rule, []) if rule not in (None, run["policy"]) else run["curve"]
    if not points:
        return exits_of(run)[-1] if kept <= cost and run["policy"] is None else None
    layers = [int(layer) for layer in run["exits"]]
    exits = exits_of(run)
    ends = [(min(layers) / run["num_layers"], exits[0]), (1.0, exits[-1])]
    pairs = sorted([*((point["cost"], point["metric"]) for point in points), *ends])
    costs, metrics = zip(*pairs, strict=True)
    return float(np.interp(cost, costs, metrics))


def one_layer(run: Run, cost: float) -> float:
    """The metric where every row leaves at the layer that costs so much, between the exits' own."""
    costs = np.array(sorted(map(int, run["exits"]))) / run["num_layers"]  # (E,)
    return float(np.interp(cost, costs, exits_of(run)))


def mean_of(values: Sequence[float | None]) -> float | None:
    """`None` where any is."""
    return None if not values or any(value is None for value in values) else float(np.mean(values))  # type: ignore[arg-type]


def spread_of(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds; of one there is none."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Runs of one recipe -> means over seeds: of each exit, their mean, the last, the curve, the time."""
    exits = {
        layer: float(np.mean([run["exits"][layer] for run in runs]))
        for layer in sorted(runs[0]["exits"], key=int)
    }
    means, lasts = [run["mean_over_exits"] for run in runs], [exits_of(run)[-1] for run in runs]
    return {
        "seeds": len(runs),
        "exits": exits,
        "mean": float(np.mean(means)) if len(exits) > 1 else None,
        "mean_spread": spread_of(means),
        "last": float(np.mean(lasts)),
        "last_spread": spread_of(lasts),
        "at_cost": {cost: mean_of([at_cost(run, cost) for run in runs]) for cost in COSTS},
        "area": mean_of([run["area"] for run in runs]),
        "seconds": float(
            np.mean(
                [
                    run["training_cpu_seconds" if run["device"] == "cpu" else "training_seconds"]
                    for run in runs
                ]
            )
        ),
        "projected": mean_of([run["projected"] for run in runs]),
        "cosine": mean_of([run["gradient_cosine"] for run in runs]),
    }


def best_one_stage(recipes: dict[str, list[Run]]) -> str | None:
    """The recipe with the highest mean over exits among those with the most seeds that train in one stage, in
    as many epochs as DeeBERT.
    """
    fits = {
        name: runs
        for name, runs in recipes.items()
        if len(runs[0]["exits"]) > 1
        and objective_of(runs[0]) not in ("deebert", "last")
        and epochs_of(runs[0]) <= float(runs[0]["arguments"]["num_train_epochs"]) * 1.001
    }
    most = max((len(runs) for runs in fits.values()), default=0)
    fits = {name: runs for name, runs in fits.items() if len(runs) == most}
    return max(fits, key=lambda name: summary(fits[name])["mean"], default=None)


def epochs_of(run: Run) -> float:
    """That all stages of a run take together."""
    stages = 2 if objective_of(run) in ("deebert", "mixed") else 1
    given = run["arguments"]
    return stages * float(given.get("epochs_factor", 1.0)) * float(given["num_train_epochs"])


def objective_of(run: Run) -> str:
    """That of the recipe, or what there is without one."""
    return run["arguments"].get("objective", "romebert")


def precision_of(run: Run) -> str:
    """In which it was trained."""
    training = run["settings"]["training"]
    return next((name for name in ("bf16", "fp16") if training[name]), "fp32")


def last_of(exits: np.ndarray) -> np.ndarray:
    """(..., E) -> (...)"""
    return exits[..., -1]


def mean_over_exits(exits: np.ndarray) -> np.ndarray:
    """(..., E) -> (...)"""
    return exits.mean(axis=-1)


def difference(recipes: dict[str, list[Run]], one: str, other: str, what: OfExits) -> Interval | None:
    """Of two recipes of a task; `what` is `mean_over_exits` or `last_of`. `None` where no seed has both."""
    return difference_over([recipes], one, other, what)


def difference_over(
    tasks: Sequence[dict[str, list[Run]]], one: str, other: str, what: OfExits
) -> Interval | None:
    """The same on the mean of several tasks. `None` where one of them has no seed of both."""
    pairs = [in_common(recipes.get(one, []), recipes.get(other, [])) for recipes in tasks]
    return paired(pairs, what) if pairs and all(ones for ones, _ in pairs) else None


def mean_and_last(
    tasks: Sequence[dict[str, list[Run]]], one: str, other: str
) -> tuple[Interval | None, Interval | None]:
    """The differences of two recipes in the mean over exits and at the last exit, on the mean of tasks."""
    return difference_over(tasks, one, other, mean_over_exits), difference_over(tasks, one, other, last_of)


def at_half_the_cost(tasks: Sequence[dict[str, list[Run]]], name: str) -> Interval | None:
    """A recipe at half the cost against half the layers, on the mean of tasks, over seeds alone. `None` where
    one of them has no seed of both, or a run has no curve.
    """
    found = []
    for recipes in tasks:
        ones, others = in_common(recipes.get(name, []), recipes.get(HALF, []))
        pairs = [(at_cost(one, 0.5), exits_of(other)[-1]) for one, other in zip(ones, others, strict=True)]
        found.append([float(one - other) for one, other in pairs if one is not None])
        if not pairs or len(found[-1]) < len(pairs):
            return None
    return over_seeds(found) if found else None


DIFFERENCES = (
    f"mean, against `{TWO_STAGES}`",
    f"mean, against `{TWO_STAGES_HEADS}`",
    f"last, against `{CEILING}`",
    f"at 0.5, against `{HALF}`",
)


def differences(tasks: Sequence[dict[str, list[Run]]], name: str) -> list[Interval | None]:
    """What a recipe is measured by, in the order of `DIFFERENCES`, on the mean of tasks; against itself it
    has no difference.
    """
    ahead = [
        None if name == other else difference_over(tasks, name, other, mean_over_exits)
        for other in (TWO_STAGES, TWO_STAGES_HEADS)
    ]
    return [*ahead, difference_over(tasks, name, CEILING, last_of), at_half_the_cost(tasks, name)]


def with_seeds(
    groups: Groups, names: Sequence[str] = (DEFAULT, TWO_STAGES, TWO_STAGES_HEADS, CEILING)
) -> Groups:
    """The tasks on which recipes share more than one seed.

    Args:
        names: of the recipes; left out, the default and those that it is measured by.
    """

    def shared(recipes: dict[str, list[Run]]) -> set[int]:
        return set.intersection(*({run["seed"] for run in recipes.get(name, ())} for name in names))

    return {group: recipes for group, recipes in groups.items() if len(shared(recipes)) > 1}


class Worth(NamedTuple):
    """What the default is worth on the mean of several pairs of task and backbone.

    Args:
        pairs: how many they are.
        seeds: the fewest that one of them has.
        two_stages, two_stages_heads: the mean over exits, against either.
        last: its last exit, against no exits.
        half: where it costs half, against half the layers.
        heads: what faster heads are worth in two stages, in the mean over exits.
    """

    pairs: int
    seeds: int
    two_stages: Interval | None
    two_stages_heads: Interval | None
    last: Interval | None
    half: Interval | None
    heads: Interval | None


def worth_of_default(groups: Groups) -> Worth | None:
    """Of the tasks `with_seeds`; `None` of less than two."""
    tasks = list(with_seeds(groups).values())
    if len(tasks) < 2:
        return None
    heads = difference_over(tasks, TWO_STAGES_HEADS, TWO_STAGES, mean_over_exits)
    found = [*differences(tasks, DEFAULT), heads]
    seeds = min(one.seeds for one in found if one is not None)
    return Worth(len(tasks), seeds, *found)


def missing_of(grid: dict[str, Any], groups: Groups) -> dict[Group, dict[str, list[int]]]:
    """What the grid asks for and nobody ran: (task, backbone) -> recipe -> seeds."""
    absent: dict[Group, dict[str, list[int]]] = {}
    for cell in cells_of(grid):
        group = (cell.task, cell.backbone)
        if all(run["seed"] != cell.seed for run in groups.get(group, {}).get(cell.recipe, [])):
            absent.setdefault(group, {}).setdefault(cell.recipe, []).append(cell.seed)
    return absent
