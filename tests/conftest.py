"""Fixtures. setup.cfg puts `tests/helpers` and `examples` on the path: `import tiny`, `import quickstart`."""

import contextlib
import gc
import io
import json
import os
import shutil
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; has to be set before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from tiny import labelled, tiny_backbone, tiny_tokenizer, write_rows
from transformers import BertModel


@pytest.fixture(autouse=True, scope="module")
def imported_objects_are_frozen():
    """accelerate collects garbage after every training: a million objects of what the tests import need not
    be looked at each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    """A plain BERT checkpoint of random weights, with its tokenizer."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    BertModel(tiny_backbone()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run_glue(encoder, here):
    """One run in this process, of one epoch into the folder `run` -> its metrics.json."""
    common = {
        "model_name_or_path": encoder,
        "output_dir": "run",
        "num_train_epochs": 1,
        "use_cpu": True,
        "disable_tqdm": True,
    }

    import train_glue

    def run(*arguments) -> dict:
        train_glue.main([*(f"--{name}={value}" for name, value in common.items()), *map(str, arguments)])
        return json.loads(Path("run", "metrics.json").read_text())

    return run


def quickstart_on_own_texts(encoder: str, *more: str) -> dict:
    """The quickstart on 60 own sentences and a tiny encoder, in the present folder -> its results.json."""
    path = write_rows("own.csv", labelled(60, lambda number: ("dull", "fine")[number % 2]))

    import quickstart

    quickstart.main(["--model", encoder, "--dataset", path, "--output-dir", "run", "--epochs", "1", *more])
    return json.loads(Path("run/results.json").read_text())


@pytest.fixture
def quick(here, encoder):
    """Runs the quickstart: `own.csv` holds the sentences, the folder `run` what it makes of them."""
    return lambda *more: quickstart_on_own_texts(encoder, *more)


@pytest.fixture(scope="module")
def quickstart_once(encoder, tmp_path_factory) -> tuple[Path, str]:
    """The folder of a finished quickstart, and what it said."""
    folder, said = tmp_path_factory.mktemp("quickstart"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.chdir(folder)
        quickstart_on_own_texts(encoder)
    return folder, said.getvalue()


@pytest.fixture
def quick_done(here, quickstart_once) -> str:
    """The present folder is that of a finished quickstart, to do with as a test likes -> what it said."""
    folder, said = quickstart_once
    shutil.copytree(folder, ".", dirs_exist_ok=True)
    return said


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
