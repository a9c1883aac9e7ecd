"""The grid as data: which runs there are, with which arguments, and where their files lie. Runs nothing."""

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from support.assets import minilm
from support.recipes import find_recipe
from support.reviews import load_splits
from support.run_folder import file_digests

from modeling_romebert.model_card import write_whole

HERE = Path(__file__).parent
GRID = HERE / "grid.yaml"
RESULTS = HERE / "results"
FAILED = "failed"  # beside the results, under their name: runs that did not finish, and why
PILOTS = "pilots"  # the same: runs that a learning rate was chosen by
CELL = "cell.json"  # of a run, in its folder: what one_run.py reads
BUSY = 75  # what one_run.py returns where another process has the run
ASSET = "asset"
REVIEWS = "reviews"  # the quickstart's data


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Args:
        data: the data set whose rows it takes; several tasks may take the same.
        arguments: of train_glue.py, without those that say where files are.
        places: those, by name: the backbone, and the data unless they come from the Hub.
        made_of: SHA-256 of the files there, by name; `backbone` is that of its weights.
    """

    task: str
    data: str
    backbone: str
    recipe: str
    seed: int
    arguments: dict[str, Any] = field(compare=False, hash=False)
    places: dict[str, str] = field(compare=False, hash=False, default_factory=dict)
    made_of: dict[str, str] = field(compare=False, hash=False, default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.task} {self.backbone} {self.recipe} seed {self.seed}"

    def file(self, folder: Path) -> Path:
        """Its JSON in a folder of results."""
        return folder / self.task / self.backbone / self.recipe / f"{self.seed}.json"

    def folder(self, folder: Path) -> Path:
        """Its own among the folders of runs: another one with other arguments or other files."""
        settings = json.dumps([self.arguments, self.made_of], sort_keys=True, default=str)
        own = f"{self.seed}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
        return folder / self.task / self.backbone / self.recipe / own

    def is_of(self, kept: dict[str, Any]) -> bool:
        """Whether what a run left, a result or a failure, is of these arguments and of these files."""
        digests = kept.get("digests") or {}
        others = [name for name, digest in self.made_of.items() if digests.get(name, digest) != digest]
        return kept["arguments"] == self.arguments and not others


def read_grid(path: Path = GRID) -> dict[str, Any]:
    """The grid's file -> its content."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def own_task(grid: dict[str, Any], train_file: str, validation_file: str | None) -> dict[str, Any]:
    """The grid with one task, that of one's own files."""
    if validation_file is None:
        raise SystemExit("--train_file is given without --validation_file; the study needs both.")
    for name, path in (("train_file", train_file), ("validation_file", validation_file)):
        if not Path(path).is_file():
            raise SystemExit(f"--{name} {path}: there is no such file.")
    return {**grid, "tasks": {Path(train_file).stem: grid["own"]}}


def cells_of(
    grid: dict[str, Any],
    tasks: Sequence[str] | None = None,
    backbones: Sequence[str] | None = None,
    recipes: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    more: dict[str, Any] | None = None,
) -> list[Cell]:
    """The runs that are asked for; all of the grid when nothing is. First seeds come first.

    A task of the grid may name its own `recipes`, and as `cut` those that it runs with its first seed and on
    its first backbone alone. A `large` one runs only when `tasks` names it.

    Args:
        recipes: names, also of recipes that the grid does not list, or YAML files.
        seeds: for all recipes, those that were cut too.
        more: arguments that win over all others.

    Raises:
        SystemExit: a task, backbone or recipe that there is not.
    """
    check("tasks", tasks, grid["tasks"])
    check("backbones", backbones, grid["backbones"])
    cells = []
    for task, of_task in grid["tasks"].items():
        if task not in tasks if tasks else of_task.get("large", False):
            continue
        first = (of_task["backbones"][0], of_task["seeds"][0])
        for backbone in backbones or of_task["backbones"]:
            for seed in seeds or of_task["seeds"]:
                for recipe in recipes or of_task.get("recipes", grid["recipes"]):
                    if not seeds and recipe in of_task.get("cut", ()) and (backbone, seed) != first:
                        continue
                    settings = {
                        **grid["common"],
                        **of_task["arguments"],
                        **recipe_content(recipe),
                        **(more or {}),
                    }
                    name = Path(find_recipe(recipe)).stem
                    cells.append(Cell(task, of_task.get("data", task), backbone, name, seed, settings))
    return cells


def recipe_content(recipe: str) -> dict[str, Any]:
    """Name or file of a recipe -> its arguments."""
    return yaml.safe_load(find_recipe(recipe).read_text(encoding="utf-8"))


def check(name: str, asked: Iterable[str] | None, known: Iterable[str]) -> None:
    if unknown := sorted(set(asked or ()) - set(known)):
        raise SystemExit(f"--{name} {' '.join(unknown)}: the grid has {', '.join(known)}.")


def with_places(
    cells: Sequence[Cell],
    backbones: dict[str, str],
    data: str | None,
    own_files: dict[str, str],
    scratch: Path,
) -> list[Cell]:
    """Say where the backbone and the data of each run lie, and what is in these files; get those that come
    with the project.

    Args:
        backbones: name -> folder or id on the Hub.
        data: a folder with TASK/train.jsonl and TASK/validation.jsonl; `None`: GLUE comes from the Hub.
        own_files: train_file and validation_file, if the task is one's own.
        scratch: where the reviews are written as files.
    """
    places: dict[str, dict[str, str]] = {}
    models = {
        name: str(minilm()) if backbones[name] == ASSET else backbones[name]
        for name in dict.fromkeys(cell.backbone for cell in cells)
    }
    for name in dict.fromkeys(cell.data for cell in cells):
        if own_files:
            places[name] = own_files
        elif name == REVIEWS:
            places[name] = reviews_as_files(scratch / "data" / "reviews")
        elif data is not None:
            places[name] = files_of(Path(data) / name)
        else:
            places[name] = {}
    weights = {name: Path(place, "model.safetensors") for name, place in models.items()}
    of_backbones = {
        name: file_digests({"backbone": path}) for name, path in weights.items() if path.is_file()
    }
    of_data = {name: file_digests(files) for name, files in places.items()}
    return [
        replace(
            cell,
            places={"model_name_or_path": models[cell.backbone], **places[cell.data]},
            made_of={**of_data[cell.data], **of_backbones.get(cell.backbone, {})},
        )
        for cell in cells
    ]


def failed_folder(results: Path) -> Path:
    """Where the failures of a folder of results are."""
    return results.parent / FAILED / results.name


def files_of(folder: Path) -> dict[str, str]:
    """A folder with a task's data -> its files, by argument."""
    files = {f"{split}_file": folder / f"{split}.jsonl" for split in ("train", "validation")}
    if missing := [str(path) for path in files.values() if not path.is_file()]:
        raise SystemExit(f"--data: there is no {', '.join(missing)}.")
    return {name: str(path) for name, path in files.items()}


def reviews_as_files(folder: Path) -> dict[str, str]:
    """The quickstart's reviews as files, judged on its test split, on which nothing is chosen."""
    files = {"train_file": folder / "train.jsonl", "validation_file": folder / "test.jsonl"}
    if not all(path.is_file() for path in files.values()):
        splits, names = load_splits(None)
        folder.mkdir(parents=True, exist_ok=True)
        for path, split in zip(files.values(), (splits["train"], splits["test"]), strict=True):
            rows = ({"text": row["text"], "label": names[row["label"]]} for row in split)
            write_whole(path, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
    return {name: str(path) for name, path in files.items()}


def python() -> list[str]:
    """The command that runs one cell, but for its folder."""
    return [sys.executable, str(HERE / "one_run.py")]
