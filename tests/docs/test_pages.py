"""Every page does what it says: its code runs and prints what the page shows, its figures are those of the
results files, and the files that it names are there.
"""

import re
from pathlib import Path

import pytest
from pages import blocks, check_output, run
from stand_ins import make_all
from support import render_docs
from tagger import make_tagger

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_CODE = [page for page in PAGES if blocks(page.read_text(encoding="utf-8"))]


def name(page: Path) -> str:
    return page.name


@pytest.fixture
def stand_ins(here, tmp_path, monkeypatch):
    """A folder where the names of the pages are tiny models and own texts."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make_all(tmp_path)
    make_tagger(tmp_path)


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_code_prints_what_the_page_shows(page, stand_ins):
    run(page)


def test_pages_with_code():
    expected = [
        *("README", "calibration", "families", "onnx", "scale", "scoring", "sharing"),
        *("tokens", "training"),
    ]
    assert [page.stem for page in WITH_CODE] == expected
    texts = [page.read_text(encoding="utf-8") for page in WITH_CODE]
    assert sum(len(blocks(text)) for text in texts) == sum(text.count("```python") for text in texts)
    assert sum(text.count("```text") for text in texts) == sum(
        block.output is not None for text in texts for block in blocks(text)
    )


def test_output_that_differs_is_told_with_its_place():
    check_output("{'loss': 1}\na 0.123\n", "a ...\n", "page")
    for said in ("b 1", "a 1\na 2", ""):
        with pytest.raises(AssertionError, match="page shows\na \\.\\.\\.\nand its code prints"):
            check_output(said, "a ...", "page")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_files_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    if page.name in ("renames.md", "CHANGELOG.md"):  # they name what is gone
        return
    folders = ("modeling_romebert", "configuration", "examples", "docs", "tests")
    named = re.findall(rf"`((?:{'|'.join(folders)})/[\w./*-]*)`", text)
    assert [path for path in named if not list(ROOT.glob(path.rstrip("/")))] == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_walk_of_the_architecture_page_goes_one_way():
    """Each file of the walk is named once, and imports none of those before it."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    walk = re.findall(r"^\| \d \| `modeling_romebert/(\w+)\.py`", text, flags=re.MULTILINE)
    assert 2 < len(set(walk)) == len(walk) <= 6
    for number, module in enumerate(walk):
        source = (ROOT / f"modeling_romebert/{module}.py").read_text(encoding="utf-8")
        imported = set(re.findall(r"^from \.(\w+) import", source, flags=re.MULTILINE))
        assert not imported & set(walk[:number]), module


# ---- figures


def test_rendering_changes_nothing():
    pages = {str(page): page.read_text(encoding="utf-8") for page in render_docs.PAGES}
    assert render_docs.render(pages, render_docs.sections()) == pages
    results = render_docs.read_json(render_docs.RESULTS / "quickstart.json")
    assert render_docs.PICTURE.read_text(encoding="utf-8") == render_docs.draw(results)


def test_a_section_has_one_place():
    pages = {"a": "<!-- one -->\nold\n<!-- /one -->\n", "b": "<!-- two -->\n<!-- /two -->"}
    rendered = render_docs.render(pages, {"one": "1", "two": "2\n\n3"})
    assert rendered == {"a": "<!-- one -->\n1\n<!-- /one -->\n", "b": "<!-- two -->\n2\n\n3\n<!-- /two -->"}
    for parts in ({"one": "1"}, {"one": "1", "two": "2", "three": "3"}):
        with pytest.raises(ValueError, match=r"the pages have \d places for '(two|three)'"):
            render_docs.render(pages, parts)
