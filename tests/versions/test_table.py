"""What setup.cfg allows, what docs/versions.md shows and what errors name is what was run."""

import json

import pytest
from packaging.version import Version
from versions import run

from modeling_romebert.layer_masks import TESTED_TRANSFORMERS

RUNS = json.loads(run.RESULTS.read_text())


def test_the_table_is_that_of_the_results():
    assert run.page(RUNS) == run.PAGE.read_text(encoding="utf-8")
    assert all(entry["passed"] > 0 for entry in RUNS)
    assert any(entry["failed"] for entry in RUNS) == (
        "## What fails on the oldest" in run.PAGE.read_text(encoding="utf-8")
    )
    assert {entry["set"].split("-")[0] for entry in RUNS} == {"oldest", "newest"}


def test_lower_bounds_were_run():
    oldest = next(entry["packages"] for entry in RUNS if entry["set"].startswith("oldest"))
    assert {name: Version(oldest[name]) for name in run.lower_bounds()} == {
        name: Version(bound) for name, bound in run.lower_bounds().items()
    }


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_ceilings_are_the_minor_version_after_the_newest_that_was_run(name):
    (required,) = [found for found in run.requirements() if found.name == name]
    (ceiling,) = [Version(part.version) for part in required.specifier if part.operator == "<"]
    newest = max(Version(entry["packages"][name]) for entry in RUNS)
    assert (ceiling.major, ceiling.minor) == (newest.major, newest.minor + 1)


def test_errors_name_the_versions_that_were_run():
    versions = sorted((entry["packages"]["transformers"] for entry in RUNS), key=Version)
    assert f"{versions[0]} to {versions[-1]}" == TESTED_TRANSFORMERS
