"""Show what of a saved model goes to the Hub, and with --push send exactly that, into a private repository.

    python examples/push_to_hub.py --model_dir runs/quickstart/model --repo_id user/name  # sends nothing
    python examples/push_to_hub.py --model_dir runs/quickstart/model --repo_id user/name --push

What only training needs, pickles, hidden files and what lies outside of the folder stay here. The model loads
elsewhere with `trust_remote_code=True`, so its code goes along.
"""

import glob
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import HfArgumentParser

# Why a file or folder of such a name stays here; names in lower case, the first that fits counts.
LEFT_OUT = (
    (r"\..*", "hidden"),
    (r"__pycache__|.*\.py[co]", "compiled code"),
    (r"checkpoint-.*|global_step\d.*", "a checkpoint of the training"),
    (
        r"(optimizer|scheduler|scaler|rng_state|trainer_state|training_args)\b.*",
        "needed by the training only",
    ),
    (r"(optimizer|rng_state)_.*", "needed by the training only"),
    (r".*\.(bin|pt|pth|ckpt|pkl|pickle|joblib|distcp)", "a pickle, which can run code when it is loaded"),
)


@dataclass
class PushArguments:
    """Without --push nothing is sent."""

    model_dir: str = field(metadata={"help": "Folder that save_pretrained or save_model wrote."})
    repo_id: str = field(metadata={"help": "Where to: user/name."})
    push: bool = field(default=False, metadata={"help": "Upload; without it, only show what would be."})
    public: bool = field(
        default=False, metadata={"help": "Anybody may read the repository; private without it."}
    )
    revision: str | None = field(
        default=None, metadata={"help": "Branch, made where it does not exist; main when left out."}
    )
    token: str | None = field(
        default=None, metadata={"help": "Of the Hub; left out, that of `hf auth login` or of HF_TOKEN."}
    )


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(PushArguments).parse_args_into_dataclasses(argv)
    try:
        validate_repo_id(arguments.repo_id)
    except HFValidationError as error:
        raise SystemExit(f"--repo_id {arguments.repo_id}: {error}") from error
    folder = Path(arguments.model_dir)
    if not folder.is_dir():
        raise SystemExit(f"--model_dir {folder} is no folder. Give the one that the model was saved in.")
    folder = folder.resolve()
    files, left_out = choose(folder)
    warnings = check(folder, files, left_out)

    visible = "public" if arguments.public else "private"
    print(
        f"{folder} -> {arguments.repo_id}"
        f" ({visible}{f', {arguments.revision}' if arguments.revision else ''})\n"
    )
    for name in files:
        print(f"{readable((folder / name).stat().st_size):>10}  {name}")
    print(f"{readable(sum((folder / name).stat().st_size for name in files)):>10}  in {len(files)} files")
    if left_out:
        print("\nleft out:")
        print("\n".join(f"  {name}: {why}" for name, why in left_out.items()))
    for warning in warnings:
        print(f"\nwarning: {warning}")
    if arguments.push:
        push(folder, files, arguments)
    else:
        print("\nNothing was uploaded. --push uploads these files.")


def choose(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The files of a folder that go, sorted, and those that stay with the reason.

    A folder that stays is named once, with a `/`.
    """
    files: list[str] = []
    left_out: dict[str, str] = {}
    for path in _walk(folder, left_out):
        name = path.relative_to(folder).as_posix()
        if why := reason(folder, path):
            left_out[name] = why
        else:
            files.append(name)
    return sorted(files), dict(sorted(left_out.items()))


def _walk(folder: Path, left_out: dict[str, str]) -> Iterator[Path]:
    """Files below a folder; folders that stay here are not entered, but noted."""
    for parent, folders, names in os.walk(folder):
        for name in list(folders):
            path = Path(parent, name)
            if why := "a link to a folder" if path.is_symlink() else by_name(name):
                folders.remove(name)
                left_out[f"{path.relative_to(folder).as_posix()}/"] = why
        yield from (Path(parent, name) for name in names)


def by_name(name: str) -> str | None:
    """Why a file or folder of this name stays here; `None` when it may go."""
    return next(
        (why for pattern, why in LEFT_OUT if re.fullmatch(pattern, name.lower(), flags=re.DOTALL)), None
    )


def reason(folder: Path, path: Path) -> str | None:
    """Why a file stays here: by its own name and, for a link, by all names on the way to its target."""
    if why := by_name(path.name):
        return why
    if not path.is_file():
        return "a link to nothing" if path.is_symlink() else "not a plain file"
    target = path.resolve()
    if not target.is_relative_to(folder):
        return "a link that leads out of the folder"
    for part in target.relative_to(folder).parts:
        if why := by_name(part):
            return f"a link to {target.relative_to(folder).as_posix()}: {why}"
    return None


def check(folder: Path, files: list[str], left_out: dict[str, str]) -> list[str]:
    """Whether these files are a model that loads elsewhere -> what is worth a warning.

    Raises:
        SystemExit: they are not.
    """

    def need(name: str, why: str) -> None:
        if name not in files:
            because = f"is left out ({left_out[name]})" if name in left_out else "is missing"
            raise SystemExit(f"{folder}: {name} {because}; {why}")

    need("config.json", "give the folder that save_pretrained or save_model wrote.")
    config = _read_json(folder / "config.json")
    if config.get("model_type") != "romebert":
        raise SystemExit(
            f"{folder}: config.json says model_type {config.get('model_type')!r}; this sends models of"
            " 'romebert' only."
        )
    if not any(name.endswith(".safetensors") for name in files):
        raise SystemExit(
            f"{folder}: no *.safetensors among the files to send; save the weights with"
            " model.save_pretrained."
        )
    for index in (name for name in files if name.endswith(".safetensors.index.json")):
        for shard in sorted(set(_read_json(folder / index).get("weight_map", {}).values())):
            need(shard, f"{index} names it as a part of the weights. Save the model again.")
    if not config.get("auto_map"):
        raise SystemExit(
            f"{folder}: config.json has no auto_map, so nobody can load the model. Save it with"
            " model.save_pretrained."
        )
    for module in code_files(folder, config):
        need(module, "the model needs it to load elsewhere. Save the model again with model.save_pretrained.")

    warnings = []
    if "README.md" not in files:
        warnings.append(
            "there is no README.md, so nobody is told what the model is for. modeling_romebert.model_card"
            " writes one."
        )
    if not any(name.startswith(("tokenizer", "vocab", "spiece", "sentencepiece")) for name in files):
        warnings.append(
            "there is no tokenizer, so the pipeline will not load. Save it with tokenizer.save_pretrained."
        )
    base = (config.get("backbone_config") or {}).get("_name_or_path") or ""
    if os.path.isabs(base) or base.startswith((".", "~")):
        warnings.append(f"config.json names a folder of this machine, {base}, as the origin of the encoder.")
    return warnings


def code_files(folder: Path, config: dict[str, Any]) -> list[str]:
    """The files that `auto_map` and `custom_pipelines` name, and those that they import from beside them."""
    named = [task["impl"] for task in config.get("custom_pipelines", {}).values()]
    for entry in config["auto_map"].values():  # a tokenizer's names two, slow and fast, or null
        named += [name for name in (entry if isinstance(entry, list) else [entry]) if name]
    here = [name for name in named if "--" not in name]  # others are in another repository
    modules = [f"{name.split('.')[0]}.py" for name in here]
    for module in modules:  # grows while it is read
        if (folder / module).is_file():
            source = (folder / module).read_text(encoding="utf-8")
            beside = [
                f"{name}.py"
                for name in re.findall(r"^\s*from\s+\.(\w+)\s+import", source, flags=re.MULTILINE)
            ]
            modules += [name for name in beside if name not in modules]
    return sorted(set(modules))


def push(folder: Path, files: list[str], arguments: PushArguments) -> None:
    """Make the repository where it does not exist, and upload the files in one commit.

    Raises:
        SystemExit: the Hub refuses, or the repository is there and public and --public was not given.
    """
    api = HfApi(token=arguments.token)
    try:
        url = api.create_repo(arguments.repo_id, private=not arguments.public, exist_ok=True)
        if not arguments.public and not api.model_info(arguments.repo_id).private:
            raise SystemExit(
                f"{arguments.repo_id} exists and is public. Nothing was uploaded; --public uploads to it"
                " all the same."
            )
        if arguments.revision and not arguments.revision.startswith("refs/"):
            api.create_branch(arguments.repo_id, branch=arguments.revision, exist_ok=True)
        api.upload_folder(
            repo_id=arguments.repo_id,
            folder_path=folder,
            allow_patterns=[glob.escape(name) for name in files],  # names, not patterns
            revision=arguments.revision,
            commit_message="Upload RomeBERT model",
        )
    except Exception as error:  # of the network or of the Hub: a script has nothing to add to either
        raise SystemExit(
            f"The upload to {arguments.repo_id} failed: {type(error).__name__}: {error}"
        ) from error
    print(f"\nUploaded to {url}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise SystemExit(f"{path} does not hold a JSON object.")
    return content


def readable(size: float) -> str:
    """Bytes -> `1.2 MB`."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


if __name__ == "__main__":
    main()
