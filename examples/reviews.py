"""The texts of the quickstart and the benchmark: movie reviews or a file of one's own, split by a hash of the text."""

import hashlib
from pathlib import Path
from typing import Any

from assets import movie_reviews
from datasets import Dataset, load_dataset

NEUTRAL = 0.5  # sentences rated closer to 0 than this are left out


def load_splits(path: str | None) -> tuple[dict[str, Dataset], list[str]]:
    """A file with `text` and `label`, or `None` for movie reviews -> train, validation, test, and the label names by id."""
    return load_reviews() if path is None else load_file(path)


def load_reviews() -> tuple[dict[str, Dataset], list[str]]:
    """Movie-review sentences as positive or negative, without the near-neutral ones."""
    reviews = movie_reviews()
    clear = [review for review in reviews if abs(review.rating) > NEUTRAL]
    print(
        f"{len(reviews)} sentences; {len(reviews) - len(clear)} with a mean rating within {NEUTRAL} of neutral are left out:"
        " people do not agree on them."
    )
    return split_by_hash([{"text": review.text, "label": int(review.rating > 0)} for review in clear]), ["negative", "positive"]


def load_file(path: str) -> tuple[dict[str, Dataset], list[str]]:
    """A CSV or JSONL file with `text` and `label` -> splits and label names, in sorted order."""
    kind = {".csv": "csv", ".json": "json", ".jsonl": "json"}.get(Path(path).suffix)
    if kind is None or not Path(path).is_file():
        raise SystemExit(f"--dataset {path}: give an existing .csv, .json or .jsonl file with columns text and label.")
    rows = load_dataset(kind, data_files=path, split="train")
    if missing := {"text", "label"} - set(rows.column_names):
        raise SystemExit(f"--dataset {path} has no column {', '.join(sorted(missing))}; it has {', '.join(rows.column_names)}.")
    names = sorted({str(label) for label in rows["label"]})
    if len(names) < 2:
        raise SystemExit(f"--dataset {path}: the column label holds {names}; classification needs at least two labels.")
    return split_by_hash([{"text": str(row["text"]), "label": names.index(str(row["label"]))} for row in rows]), names


def split_by_hash(rows: list[dict[str, Any]]) -> dict[str, Dataset]:
    """Seven tenths to train, one to validation, two to test; equal sentences stay together."""
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        tenth = int(hashlib.sha256(row["text"].lower().encode()).hexdigest(), 16) % 10
        parts["train" if tenth < 7 else "validation" if tenth == 7 else "test"].append(row)
    if empty := [name for name, part in parts.items() if not part]:
        raise SystemExit(f"{len(rows)} rows are too few: the split leaves nothing for {', '.join(empty)}.")
    print(", ".join(f"{len(part)} for {name}" for name, part in parts.items()))
    return {name: Dataset.from_list(part) for name, part in parts.items()}
