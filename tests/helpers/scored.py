"""Texts, a saved model whose texts exit everywhere, and what `score` says of them."""

from pathlib import Path

import pytest
from tiny import build, spread_exits, tiny_texts, tiny_tokenizer

from modeling_romebert import RomeBertForSequenceClassification, score

TEXTS = tiny_texts(230)


def save_classifier(folder: Path) -> str:
    """A saved model in a folder -> its name."""
    model = build(exit_policy={"name": "entropy", "threshold": 0.6})
    spread_exits(model, TEXTS[:40]).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def expected(model: str, texts: list, **settings) -> list[dict]:
    """What `score` says."""
    loaded = RomeBertForSequenceClassification.from_pretrained(model)
    return list(score(loaded, tiny_tokenizer(), texts, on_error="skip", **settings))


def assert_as_score(found: list[dict], wanted: list[dict]) -> None:
    """Labels, layers and errors are the same, scores up to rounding: batches have other company."""
    assert len(found) == len(wanted)
    for row, result in zip(found, wanted, strict=True):
        assert (row["label"], row["exit_layer"]) == (result["label"], result["exit_layer"])
        assert row["score"] == (None if result["score"] is None else pytest.approx(result["score"], abs=1e-5))
        assert bool(row.get("error")) == ("error" in result)
