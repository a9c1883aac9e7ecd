"""The README's code runs, its figures are those of the results files, and the files that it names exist."""

import re
from pathlib import Path

import pytest
import render_readme
from tiny import labelled, write_rows

ROOT = Path(__file__).parents[2]


def test_readme_figures_are_those_of_the_results_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert render_readme.render(text, render_readme.sections()) == text


def test_readme_files_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## What is where") : text.index("## Limits")]
    folder = ROOT
    for name in re.findall(r"`([\w./*-]+(?:\.py|\.yaml|/))`", table):
        folder = (ROOT / name).parent if "/" in name else folder
        assert list(folder.glob(Path(name).name)) or list(ROOT.glob(f"*/{name}")), name
    assert all((ROOT / path).is_file() for path in re.findall(r"!\[.*?\]\((.*?)\)", text))


@pytest.mark.slow
def test_readme_code_runs(here, encoder, monkeypatch):
    """In a folder where `bert-base-uncased` is a tiny encoder and the two files hold own texts."""
    Path("bert-base-uncased").symlink_to(encoder)
    for name, seed in (("train.csv", 0), ("validation.csv", 1)):
        write_rows(name, labelled(24, lambda number: number % 2, seed))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert len(blocks) == 5
    assert names["results"][0].keys() == {"label", "score", "exit_layer"}
    assert names["full"].exit_logits.shape == (2, 4, 2) and names["early"].exit_layer.shape == (2,)
