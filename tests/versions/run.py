"""Runs the whole suite on the oldest and the newest versions that setup.cfg allows, and shows the outcome in
docs/versions.md.

    python tests/versions/run.py                            # every set below whose interpreter is on PATH
    python tests/versions/run.py oldest-3.10 newest-3.13    # some of them
    python tests/versions/run.py --table                    # write the table anew from docs/versions.json

A set gets an environment of its own under runs/versions, with the package index's usual builds of torch (some
GB), which is removed once its tests have run, unless there was one before or --keep is given. `oldest` pins
every lower bound of setup.cfg, `newest` is what pip takes by itself. The exit status is 1 when a set failed
or could not be run.
"""

import argparse
import configparser
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from datetime import date
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
RESULTS, PAGE, ENVIRONMENTS = ROOT / "docs/versions.json", ROOT / "docs/versions.md", ROOT / "runs/versions"
SETS = ("oldest-3.10", "newest-3.10", "newest-3.11", "newest-3.12", "newest-3.13")
SHOWN = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "evaluate",
    "huggingface-hub",
    "safetensors",
    "peft",
)
LIST_VERSIONS = (
    f"import importlib.metadata as m, json; print(json.dumps({{name: m.version(name) for name in {SHOWN}}}))"
)
BEGIN, END = "<!-- table of docs/versions.json -->", "<!-- end of the table -->"


def requirements(*extras: str) -> list[Requirement]:
    """What setup.cfg requires of users, and with some extras."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lists = [
        setup["options"]["install_requires"],
        *(setup["options.extras_require"][extra] for extra in extras),
    ]
    lines = [line.strip() for text in lists for line in text.splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "%"))]


def lower_bounds() -> dict[str, str]:
    """The oldest version of each requirement that has a lower bound."""
    bounds = {
        found.name: [part.version for part in found.specifier if part.operator == ">="]
        for found in requirements("lora")
    }
    return {name: versions[0] for name, versions in bounds.items() if versions}


def interpreter(version: str) -> str | None:
    """The Python of a version on PATH, if there is one that starts."""
    path = shutil.which(f"python{version}")
    starts = path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0
    return path if starts else None


def test_files() -> list[Path]:
    """Those of the suite that a set runs: all but the ones of this folder."""
    return [path for path in ROOT.glob("tests/**/test_*.py") if path.parent != Path(__file__).parent]


def run_set(name: str, folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Install one set into the folder, run the tests there -> what was installed, and how many passed."""
    kind, version = name.split("-")
    python = folder / "bin/python"
    if not python.exists():
        subprocess.run([interpreter(version), "-m", "venv", folder], check=True)
    pins = [f"{package}=={bound}" for package, bound in lower_bounds().items()] if kind == "oldest" else []
    subprocess.run(
        [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-compile",
            "--upgrade",
            *pins,
            "--editable",
            ".[test]",
        ],
        cwd=ROOT,
        check=True,
    )
    installed = json.loads(
        subprocess.run([python, "-c", LIST_VERSIONS], check=True, capture_output=True, text=True).stdout
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    report = folder / "report.xml"
    tests = [
        "-m",
        "pytest",
        "-n",
        "2",
        "--dist",
        "loadfile",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        *arguments,
    ]
    # its own tests hold setup.cfg against what was run, and so can pass only afterwards
    subprocess.run([python, *tests, "--ignore=tests/versions"], cwd=ROOT)
    suite = ElementTree.parse(report).getroot()[0]
    counts, ran = suite.attrib, len({case.get("classname") for case in suite.iter("testcase")})
    failed, skipped = int(counts["failures"]) + int(counts["errors"]), int(counts["skipped"])
    passed = int(counts["tests"]) - failed - skipped
    full = subprocess.run(
        [python, "-c", "import platform; print(platform.python_version())"], capture_output=True, text=True
    ).stdout
    files = f"{ran} of {len(test_files())}"
    outcome = {
        "files": files,
        "passed": passed,
        "failed": failed,
        "skipped": skipped,
        "commit": commit,
        "date": str(date.today()),
    }
    return {"set": name, "python": full.strip(), "packages": installed, **outcome}


def table(results: list[dict[str, Any]]) -> str:
    """The runs as a table in Markdown."""
    rows = [["", "Python", *SHOWN, "test files", "passed", "failed", "skipped", "commit"]]
    rows.append(["---"] * len(rows[0]))
    for run in results:
        versions = [run["packages"][name] for name in SHOWN]
        outcome = [str(run[key]) for key in ("files", "passed", "failed", "skipped", "commit")]
        rows.append([run["set"].split("-")[0], run["python"], *versions, *outcome])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def page(results: list[dict[str, Any]]) -> str:
    """docs/versions.md with the table of these runs."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sets", nargs="*", metavar="set", help=f"of {', '.join(SETS)}; all of them if none is named"
    )
    parser.add_argument("--keep", action="store_true", help="leave the environments for the next time")
    parser.add_argument("--table", action="store_true", help="run nothing, write the table anew")
    parser.add_argument(
        "--pytest", nargs=argparse.REMAINDER, default=[], help="arguments for pytest, such as some files"
    )
    given = parser.parse_args()
    if unknown := set(given.sets) - set(SETS):
        parser.error(f"{', '.join(sorted(unknown))} is unknown; choose from {', '.join(SETS)}")
    not_found, failed = [], []
    for name in [] if given.table else given.sets or SETS:
        folder = ENVIRONMENTS / name
        existed = folder.exists()
        if not existed and interpreter(name.split("-")[1]) is None:
            not_found.append(name)
            continue
        run = run_set(name, folder, given.pytest)
        print(table([run]))
        if run["failed"]:
            failed.append(name)
        results = {run["set"]: run for run in json.loads(RESULTS.read_text())} | {name: run}
        RESULTS.write_text(json.dumps([results[key] for key in SETS if key in results], indent=2) + "\n")
        if not (existed or given.keep):
            shutil.rmtree(folder)
    PAGE.write_text(page(json.loads(RESULTS.read_text())), encoding="utf-8")
    for name in not_found:
        print(f"{name} was not run: there is no python{name.split('-')[1]} on PATH that starts.")
    if failed:
        print(f"Tests failed on {', '.join(failed)}.")
    return 1 if failed or not_found else 0


if __name__ == "__main__":
    sys.exit(main())
