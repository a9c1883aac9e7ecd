"""The code that a saved model's config.json names, and when it is left to what is installed."""

from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

# Ends the config's file in a saved model's folder, followed by an import of each other file of the model.
# transformers finds a model's class by that of its config, and tells the configs of two folders apart by this
# file and those that it imports: without it, two versions of the other files would mix. All are named, as
# some versions (4.57 and 5.0 among them) copy only what this file imports.
NAMES_THE_MODEL = (
    "\nif False:  # for transformers, which reads the imports of this file to know what belongs to it\n"
)
# Whether this is the package, not a copy of it in a saved model's folder.
INSTALLED = not __name__.startswith("transformers_modules.")
# Files that hold a class which config.json may name.
ENTRY_FILES = ("configuration_romebert", "modeling_romebert", "pipeline_romebert", "token_pipeline")


class CustomPipelines(dict[str, Any]):
    """`custom_pipelines` of a config: task -> its entry. Ours is listed, so that `pipeline(model=FOLDER)`
    finds the task.

    Where this package is installed, ours is listed and yet not `in` here: the library then takes the pipeline
    that is registered for the task, runs no code of the folder, and needs no `trust_remote_code`. A user's
    own is in here as in any dict.
    """

    def __contains__(self, task: Any) -> bool:
        return super().__contains__(task) and not (INSTALLED and is_own(self[task]["impl"]))


def name_siblings(folder: Path) -> None:
    """In a saved model's folder, let the config's file name the other files of the model."""
    here, model = (Path(folder, f"{name}_romebert.py") for name in ("configuration", "modeling"))
    if model.exists():
        source = here.read_text(encoding="utf-8").partition(NAMES_THE_MODEL)[0]
        siblings = {model.stem, *(Path(file).stem for file in get_relative_import_files(model))} - {here.stem}
        imports = "".join(f"    from .{name} import *  # noqa: F403\n" for name in sorted(siblings))
        here.write_text(source + NAMES_THE_MODEL + imports, encoding="utf-8")


def is_own(reference: Any) -> bool:
    """Whether what config.json names, `[REPOSITORY--]module.Class`, is a class of this package."""
    return isinstance(reference, str) and reference.rpartition("--")[2].partition(".")[0] in ENTRY_FILES


def leave_to_what_is_installed(config_dict: dict[str, Any]) -> None:
    """Take out what names classes of this package; what names a user's own stays, and asks for
    `trust_remote_code` as anywhere.
    """
    auto_map, tasks = config_dict.pop("auto_map", None), config_dict.pop("custom_pipelines", None)
    if users := {
        auto_class: reference for auto_class, reference in (auto_map or {}).items() if not is_own(reference)
    }:
        config_dict["auto_map"] = users
    if tasks:
        config_dict["custom_pipelines"] = CustomPipelines(tasks)
