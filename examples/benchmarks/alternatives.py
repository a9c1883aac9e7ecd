"""What people would pick instead of any fine-tuned encoder, as sides of the benchmark (throughput.py).

Each is trained on the same sentences. They say where exits do not pay: for some tasks a bag of words is as
good, and a hundred times as fast. fastText and the static embeddings need the extra `alternatives`.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from transformers import AutoModel, AutoTokenizer

from benchmarks.sides import Predictions, Side

GROUP = "alternatives"


def alternative_sides(train: Any, encoder: str) -> Iterator[Side]:
    """Sides that were trained on the rows of `train`, which has `text` and `label`.

    Raises:
        SystemExit: the extra `alternatives` is not installed.
    """
    texts, labels = list(train["text"]), np.array(train["label"])
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    bag = make_pipeline(words, LogisticRegression(max_iter=1000, C=4.0)).fit(texts, labels)
    yield _side("TF-IDF, logistic regression", bag.predict)
    yield _side("fastText", _fasttext(texts, labels))
    static = _static_embeddings()
    yield _side("static embeddings (WordLlama), logistic regression", _probe(static, texts, labels))
    yield _side("frozen encoder, logistic regression", _probe(_frozen(encoder), texts, labels))


def _side(name: str, predict: Callable[[Sequence[str]], Any]) -> Side:
    def run(texts: list[str]) -> Predictions:
        return Predictions([int(label) for label in predict(texts)])

    return Side(name, GROUP, run, lambda text: predict([text]))


def _probe(
    embed: Callable[[Sequence[str]], np.ndarray], texts: list[str], labels: np.ndarray
) -> Callable[[Sequence[str]], np.ndarray]:
    """A logistic regression on embeddings (N, H)."""
    probe = LogisticRegression(max_iter=1000).fit(embed(texts), labels)
    return lambda texts: probe.predict(embed(texts))


def _fasttext(texts: list[str], labels: np.ndarray) -> Callable[[Sequence[str]], list[int]]:
    """fastText's own classifier, words and pairs of words."""
    try:
        import fasttext
    except ImportError:
        raise SystemExit(MISSING) from None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "train.txt")
        lines = [f"__label__{label} {_line(text)}" for text, label in zip(texts, labels, strict=True)]
        file.write_text("\n".join(lines), encoding="utf-8")
        settings = {"epoch": 25, "wordNgrams": 2, "dim": 50, "verbose": 0, "thread": 1, "seed": 1}
        model = fasttext.train_supervised(str(file), **settings)
    # Its `predict` asks numpy for an array without a copy, which numpy 2 refuses; what it wraps does not.
    return lambda texts: [
        int(model.f.predict(_line(text) + "\n", 1, 0.0, "strict")[0][1][9:]) for text in texts
    ]


def _line(text: str) -> str:
    return " ".join(text.lower().split())


def _static_embeddings() -> Callable[[Sequence[str]], np.ndarray]:
    """One vector per token, averaged: what its wheel carries."""
    try:
        import wordllama
    except ImportError:
        raise SystemExit(MISSING) from None
    # It finds the tokenizer that lies in its wheel only where its cache would be.
    inside = Path(wordllama.__file__).parent
    model = wordllama.WordLlama.load(cache_dir=inside, disable_download=True)
    return lambda texts: model.embed(list(texts))


def _frozen(encoder: str) -> Callable[[Sequence[str]], np.ndarray]:
    """The encoder that the others are fine-tuned from, as it is: the mean of its last layer."""
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> np.ndarray:
        texts, found = list(texts), {}
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            batch = tokenizer(
                [texts[row] for row in rows], padding=True, truncation=True, return_tensors="pt"
            )
            states = model(**batch).last_hidden_state  # (b, T, H)
            mask = batch["attention_mask"].unsqueeze(-1)  # (b, T, 1)
            found.update(zip(rows, ((states * mask).sum(1) / mask.sum(1)).numpy(), strict=True))
        return np.stack([found[row] for row in range(len(texts))])

    return embed


MISSING = "fastText and static embeddings are not installed: pip install 'romebert[alternatives]'."
