"""Files that only others run: workflow, citation, hooks, changelog. They are read here, and held
against setup.cfg.
"""

import configparser
import re
from pathlib import Path

import pytest
import yaml

import modeling_romebert

ROOT = Path(__file__).parents[2]


def read_yaml(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def metadata() -> configparser.SectionProxy:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup["metadata"]


def test_version_is_in_one_place(metadata):
    assert metadata["version"] == "attr: configuration.configuration_romebert.VERSION"
    source = (ROOT / "configuration/configuration_romebert.py").read_text(encoding="utf-8")
    assert re.findall(r'^VERSION = "(.*?)"', source, flags=re.MULTILINE) == [modeling_romebert.__version__]


def test_citation(metadata):
    citation = read_yaml("CITATION.cff")
    needed = {"cff-version", "message", "title", "authors", "version", "license", "repository-code"}
    assert needed <= citation.keys()
    assert citation["version"] == modeling_romebert.__version__
    assert (citation["license"], citation["repository-code"]) == (metadata["license"], metadata["url"])
    paper, readme = citation["preferred-citation"], (ROOT / "README.md").read_text(encoding="utf-8")
    assert {"type", "title", "authors", "year"} <= paper.keys() and paper["title"] in readme
    assert all(f"{one['family-names']}, {one['given-names']}" in readme for one in paper["authors"])


def test_changelog_has_the_release_and_what_comes_after(metadata):
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## \[(.*?)\](?: - (\d{4}-\d\d-\d\d))?$", text, flags=re.MULTILINE)
    assert titles[0] == ("Unreleased", "")
    released, date = titles[1]
    assert released == modeling_romebert.__version__ and date == str(
        read_yaml("CITATION.cff")["date-released"]
    )
    kinds = set(re.findall(r"^### (.*)$", text, flags=re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    links = dict(re.findall(r"^\[(.*?)\]: (.*)$", text, flags=re.MULTILINE))
    assert links.keys() == {title for title, _ in titles}
    assert all(link.startswith(metadata["url"]) for link in links.values())


def test_workflow():
    workflow = read_yaml(".github/workflows/ci.yml")
    jobs = workflow["jobs"]
    assert True in workflow and jobs.keys() == {
        "lint",
        "test",
        "scale",
        "versions",
        "wheel",
    }  # YAML reads `on` as true
    of_setup = re.findall(r"Python :: (3\.\d+)$", (ROOT / "setup.cfg").read_text(), flags=re.MULTILINE)
    assert jobs["test"]["strategy"]["matrix"]["python"] == of_setup
    sets = (ROOT / "tests/versions/run.py").read_text(encoding="utf-8")
    for one in jobs["versions"]["strategy"]["matrix"]["include"]:
        assert f'"{one["set"]}"' in sets and one["set"].endswith(f"-{one['python']}")
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for job in jobs.values():
        assert job["runs-on"] and all("uses" in step or "run" in step for step in job["steps"])
        for step in job["steps"]:
            for target in re.findall(r"^make ([\w-]+)", step.get("run", "")):
                assert re.search(rf"^{target}:", targets, flags=re.MULTILINE), target


def test_hooks_of_pre_commit():
    hooks = [hook["id"] for repo in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {"ruff-check", "ruff-format", "end-of-file-fixer", "trailing-whitespace"} <= set(hooks)


def test_text_files_end_with_one_newline():
    """What the hooks of pre-commit would change."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.py"), ROOT / "setup.cfg"]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.endswith("\n") and not text.endswith("\n\n"), page
        assert not re.search(r"[ \t]$", text, flags=re.MULTILINE), page
