"""Recipes: YAML files of arguments -> the arguments of a command line.

Recipes of a task (its data and settings) lie in configuration/recipes, those of a method (the loss, the
objective) in its folder `methods`.
"""

import json
from collections.abc import Iterable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import yaml


def shipped_recipes() -> dict[str, Path]:
    """Names of the recipes that come with romebert, those of tasks first, and their files."""
    folder = Path(import_module("modeling_romebert.configuration").__file__).parent / "recipes"
    files = [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("methods/*.yaml"))]
    return {file.stem: file for file in files}


def recipe_arguments(recipe: str, kinds: Iterable[Any]) -> list[str]:
    """A recipe, by name or file -> its arguments as on a command line.

    Args:
        kinds: dataclasses whose fields are the arguments that there are.

    Raises:
        SystemExit: there is no such recipe, or it holds what is no argument.
    """
    path = find_recipe(recipe)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise SystemExit(f"--recipe {recipe}: {path} is no mapping of argument names to values.")
    return as_arguments(content, kinds, f"--recipe {recipe}: {path}")


def find_recipe(recipe: str) -> Path:
    """The file of a recipe that is given by its name, or as a file.

    Raises:
        SystemExit: there is none.
    """
    shipped = shipped_recipes()
    path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else shipped.get(recipe)
    if path is None or not path.is_file():
        raise SystemExit(
            f"--recipe {recipe} is unknown; choose from {', '.join(shipped)}, or give a .yaml file."
        )
    return path


def as_arguments(content: dict[str, Any], kinds: Iterable[Any], origin: str) -> list[str]:
    """Names of arguments and their values, as YAML reads them -> a command line.

    Args:
        origin: where they stand, for the error.

    Raises:
        SystemExit: one of them is no argument, or is no text where it has to be one.
    """
    known = {field.name: field for kind in kinds for field in fields(kind)}
    if unknown := [str(key) for key in content if key not in known or key == "recipe"]:
        raise SystemExit(f"{origin} holds {', '.join(unknown)}, which is no argument; see --help.")
    arguments: list[str] = []
    for key, value in content.items():
        kind = known[key].type
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise SystemExit(
                f'{origin}: {key} is read as {value}; in YAML, put no, yes, on and off in quotes: "no".'
            )
        if isinstance(value, list):
            arguments += [f"--{key}", *map(str, value)]
        else:
            arguments.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
    return arguments
