"""Does a saved model work for someone who has only transformers? Makes such an environment, tries, and prints
a table.

    python examples/check_portability.py  # a tiny model of random weights
    python examples/check_portability.py --model_dir DIR  # your own
    python examples/check_portability.py --python PATH  # in an environment that you have

The exit code is 0 when every check passes. The checks are in portability_checks.py; they run offline, each
group in a fresh process whose caches start empty. Values to compare with come from the installed package, or
without it from a first load of the folder.
"""

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from support.portability_checks import (
    code_files,
    expected_from,
    lay_out_as_hub_cache,
    make_other_version,
    run_group,
)

ROOT = Path(__file__).resolve().parents[1]
HAS_PACKAGE = importlib.util.find_spec("modeling_romebert") is not None
WANTED = ("torch", "transformers", "accelerate")


def make_environment(folder: Path) -> str:
    """A virtual environment with torch, transformers and accelerate as pinned in constraints.txt -> its
    interpreter.
    """
    venv.create(folder, with_pip=True)
    python = str(folder / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    constraints = ROOT / "constraints.txt"
    pinned = dict(line.split("==") for line in constraints.read_text().splitlines() if "==" in line)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # torch first and by its pinned version, so that an index with a CPU build of it is not passed over for a
    # larger one
    subprocess.run([*install, f"torch=={pinned['torch']}"], check=True)
    subprocess.run([*install, "--constraint", str(constraints), *WANTED[1:]], check=True)
    return python


def versions(python: str) -> str:
    """The interpreter and what it imports, in one line."""
    told = f"*(name + ' ' + importlib.metadata.version(name) for name in {WANTED})"
    code = f"import importlib.metadata, sys; print(sys.version.split()[0], {told}, sep=', ')"
    return (
        "Python "
        + subprocess.run(
            [python, "-I", "-c", code], check=True, capture_output=True, text=True
        ).stdout.strip()
    )


def save_tiny_model(folder: Path) -> Path:
    """A tiny classifier of random weights, with its tokenizer, as this package saves it -> folder."""
    sys.path.append(str(ROOT / "tests/helpers"))
    from tiny import build, tiny_tokenizer

    build(exit_policy={"name": "entropy", "threshold": 0.7}).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def check(python: str, folder: Path, work: Path) -> dict[str, str]:
    """Every group of checks on a saved model -> {check: "pass" or what went wrong}."""
    results = {}
    if HAS_PACKAGE:
        importlib.import_module("modeling_romebert")  # registers the model and the pipeline
        expected = expected_from(str(folder))
    else:
        results = run_group(python, "reference", work / "reference", folder=folder)
        if set(results.values()) != {"pass"}:
            return results
        expected = json.loads((work / "reference" / "expected.json").read_text())
    given = {"expected": expected, "closure": code_files(folder)}
    results |= run_group(python, "without_package", work / "folder", folder=folder, **given)
    cache = work / "cache"
    revision, _ = lay_out_as_hub_cache([folder, make_other_version(folder, work / "other")], cache / "hf")
    from_cache = run_group(python, "from_hub_cache", cache, revision=revision, **given)
    return results | {name: from_cache[name] for name in sorted(from_cache.keys() - results.keys())}


def classifies_texts(folder: Path) -> bool:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config.get("exit_pooling") != "token"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model_dir", type=Path, help="a folder that save_pretrained wrote, with its tokenizer"
    )
    parser.add_argument(
        "--python", help="interpreter of an environment with torch, transformers and accelerate"
    )
    options = parser.parse_args(arguments)
    if options.model_dir is None and not HAS_PACKAGE:
        parser.error(
            "without --model_dir a model is built, which needs this package: pip install romebert, or give"
            " --model_dir."
        )
    for name in ("modeling_romebert.py", "tokenizer_config.json") if options.model_dir is not None else ():
        if not (options.model_dir / name).is_file():
            parser.error(
                f"--model_dir {options.model_dir}: there is no {name} in it; save model and tokenizer there."
            )
    if options.model_dir is not None and not classifies_texts(options.model_dir):
        parser.error(
            f"--model_dir {options.model_dir} classifies tokens; the checks are of classifiers of texts."
        )
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        python = os.path.abspath(options.python) if options.python else make_environment(work / "environment")
        folder = save_tiny_model(work / "model") if options.model_dir is None else options.model_dir.resolve()
        print(versions(python), f"model: {options.model_dir or 'tiny, random weights'}", sep="\n", flush=True)
        results = check(python, folder, work)
    width = max(map(len, results))
    print(f"\n| {'check':{width}} | result |\n|{'-' * (width + 2)}|--------|")
    for name, result in results.items():
        print(f"| {name:{width}} | {'pass' if result == 'pass' else 'fail':6} |")
    failed = {name: result for name, result in results.items() if result != "pass"}
    for name, result in failed.items():
        print(f"\nfail: {name}\n  {result}")
    print(f"\n{len(results) - len(failed)} of {len(results)} checks pass.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
