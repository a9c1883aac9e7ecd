"""The four corpora of the quickstart's archive, and the logits that a model gives for them.

Hutto and Gilbert, ICWSM 2014: movie reviews, Amazon reviews, editorials of the New York Times and tweets,
rated -4..4 by 20 people each. Positive or negative, without the near-neutral ones; of the movie reviews those
that the quickstart does not train on.
"""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from support.assets import VADER, cache_folder, fetch
from support.reviews import NEUTRAL, load_reviews
from transformers import AutoTokenizer

from modeling_romebert import RomeBertForSequenceClassification
from modeling_romebert.evaluation.exit_logits import collect_exit_logits

OTHERS = {
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
}


def corpora() -> dict[str, list[dict[str, Any]]]:
    """Rows with text and label (0 negative, 1 positive), by name."""
    splits, _ = load_reviews()
    found = {"reviews": [*splits["validation"], *splits["test"]]}
    with tarfile.open(fetch(VADER, cache_folder())) as source:
        inner = source.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        with tarfile.open(fileobj=inner) as data:
            for name, file in OTHERS.items():
                content = data.extractfile(f"hutto_ICWSM_2014/{file}").read().decode("utf-8", "replace")
                rows = (line.split("\t") for line in content.splitlines() if line.strip())
                found[name] = [
                    {"text": text.strip(), "label": int(float(rating) > 0)}
                    for _, rating, text in rows
                    if abs(float(rating)) > NEUTRAL and text.strip()
                ]
    return found


def collect(model_folder: str, folder: Path) -> None:
    """Logits of every exit for each corpus, as NAME.npz, where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in corpora().items():
        if not (path := folder / f"{name}.npz").exists():
            model = RomeBertForSequenceClassification.from_pretrained(model_folder)
            found = collect_exit_logits(model, rows, AutoTokenizer.from_pretrained(model_folder))
            np.savez_compressed(path, logits=found.exit_logits.numpy(), labels=found.labels)
