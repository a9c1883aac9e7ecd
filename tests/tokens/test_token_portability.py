"""A saved token classifier works where this package is not: by the code in its folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import token_folder
from tiny_tokens import build_tokens, piece_tokenizer, tiny_sentences

from modeling_romebert.hub import CLOSURE

TEXTS = [" ".join(words) for words in tiny_sentences(5, seed=31)]


@pytest.mark.slow
def test_a_folder_works_without_the_package(tmp_path):
    model = build_tokens()
    model.config.exit_policy = {"name": "entropy", "threshold": 0.6, "unit": "token", "window": 3}
    model.save_pretrained(tmp_path / "model")
    piece_tokenizer().save_pretrained(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").glob("*.py")} == set(CLOSURE)
    here = token_folder.answers(str(tmp_path / "model"), TEXTS)
    helpers, examples = Path(token_folder.__file__).parent, Path(__file__).parents[2] / "examples"
    code = (
        f"import sys, runpy; sys.path += {[str(helpers), str(examples)]!r};"
        "runpy.run_module('token_folder', run_name='__main__', alter_sys=True)"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path / "model"), json.dumps(TEXTS)],
        cwd=tmp_path,
        env={**kept, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    there = json.loads(done.stdout.strip().rpartition("\n")[2].removeprefix("RESULT "))
    assert there == json.loads(json.dumps(here))
    assert {entity["exit_layer"] for one in there["entities"] for entity in one} - {4}
