"""The texts of the quickstart and the benchmark: movie reviews or a file of one's own, split by a hash of the
text.
"""

import hashlib
from collections import Counter
from typing import Any

from datasets import Dataset

from modeling_romebert.losses import IGNORED_LABEL
from support.assets import movie_reviews
from support.table_files import read_table

NEUTRAL = 0.5  # sentences rated closer to 0 than this are left out


def load_splits(path: str | None) -> tuple[dict[str, Dataset], list[str]]:
    """A file with `text` and `label`, or `None` for movie reviews -> train, validation, test, and the label
    names by id.
    """
    return load_reviews() if path is None else load_file(path)


def load_reviews() -> tuple[dict[str, Dataset], list[str]]:
    """Movie-review sentences as positive or negative, without the near-neutral ones."""
    reviews = movie_reviews()
    clear = [review for review in reviews if abs(review.rating) > NEUTRAL]
    print(
        f"{len(reviews)} sentences; {len(reviews) - len(clear)} with a mean rating within {NEUTRAL} of"
        " neutral are left out: people do not agree on them."
    )
    return split_by_hash([{"text": review.text, "label": int(review.rating > 0)} for review in clear]), [
        "negative",
        "positive",
    ]


def load_file(path: str) -> tuple[dict[str, Dataset], list[str]]:
    """A CSV, TSV, JSON or JSONL file with `text` and `label` -> splits and label names, in sorted order.

    Raises:
        SystemExit: the file cannot be read (table_files.py), or does not hold classes.
    """
    table = read_table("--dataset", path)
    if missing := [column for column in ("text", "label") if column not in table.columns]:
        raise SystemExit(f"{table.origin} has no column {', '.join(missing)}; {table.what_it_has()}")
    rows = list(zip(table.texts("text"), map(str, table.labels()), strict=True))
    labels = [label for _, label in rows if label != str(IGNORED_LABEL)]
    rows_of = Counter(labels)
    names = sorted(rows_of)
    if len(names) < 2:
        raise SystemExit(
            f"{table.origin}: the column label holds {names}; classification needs at least two labels."
        )
    if fraction := _first_fraction(labels):
        raise SystemExit(
            f"{table.origin}: the column label holds numbers such as {fraction}, and this trains a"
            " classifier. For a regression use examples/train_glue.py."
        )
    print(f"{len(labels)} rows: {', '.join(f'{rows_of[name]} {name!r}' for name in names)}")
    if ignored := len(rows) - len(labels):
        print(f"{ignored} rows labelled {IGNORED_LABEL} are left out.")
    kept = [{"text": text, "label": names.index(label)} for text, label in rows if label in rows_of]
    return split_by_hash(kept), names


def _first_fraction(labels: list[str]) -> str | None:
    """The first label that is no whole number, where all are numbers."""
    try:
        return next(
            (label for label, number in [(label, float(label)) for label in labels] if number % 1 != 0), None
        )
    except ValueError:
        return None


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
