"""Which rows these were, without keeping them: a digest of a dataset, and a sample of its hashes that tells
another dataset's overlap with it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np

SAMPLE = 256  # hashes that are kept: 4 KB, and about as many hits per 256 rows of the same data
TOO_MUCH = 0.1  # share of rows that were trained on, above which a calibration is refused
LEAST_HITS = 5  # short texts occur twice by chance


def row_hashes(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Rows with `input_ids` -> a hash of the attended ones of each, in 16 hexadecimal digits.

    Example:
        >>> padded = {"input_ids": torch.tensor([2, 7, 3, 0]), "attention_mask": torch.tensor([1, 1, 1, 0])}
        >>> row_hashes([padded]) == row_hashes([{"input_ids": [2, 7, 3]}])
        True
    """
    hashes = []
    for row in rows:
        ids = np.asarray(row["input_ids"]).ravel()  # a list, an array or a tensor
        if row.get("attention_mask") is not None:
            mask = np.asarray(row["attention_mask"]).ravel()
            ids = ids[mask.astype(bool)] if len(mask) == len(ids) else ids
        text = ",".join(map(str, ids.tolist()))
        hashes.append(hashlib.blake2b(text.encode(), digest_size=8).hexdigest())
    return hashes


def digest(hashes: Iterable[str]) -> str:
    """Hashes of rows -> one of all of them, whatever their order."""
    return hashlib.blake2b("".join(sorted(hashes)).encode(), digest_size=16).hexdigest()


def sample(hashes: Iterable[str]) -> dict[str, Any]:
    """Hashes of rows -> how many different ones there are, and the smallest `SAMPLE` of them (bottom-k)."""
    different = sorted(set(hashes))
    return {"rows": len(different), "lowest": different[:SAMPLE]}


def overlap(seen: Mapping[str, Any] | None, hashes: Sequence[str]) -> float:
    """The estimated share of rows, given by their hashes, that were among those of a sample; 0 where only a
    few are, which happens by chance.

    Example:
        >>> hashes = row_hashes({"input_ids": [2, word, 3]} for word in range(1000))
        >>> round(overlap(sample(hashes), hashes[:500]), 1), overlap(sample(hashes[:500]), hashes[500:])
        (1.0, 0.0)
    """
    if not seen or not hashes:
        return 0.0
    lowest = set(seen["lowest"])
    hits = sum(one in lowest for one in hashes)
    if hits < LEAST_HITS:
        return 0.0
    return min(1.0, hits * seen["rows"] / len(lowest) / len(hashes))


def together(one: dict[str, Any] | None, other: dict[str, Any] | None) -> dict[str, Any] | None:
    """Two samples -> that of the rows of both; `None` stands for no rows.

    Example:
        >>> hashes = row_hashes({"input_ids": [2, word, 3]} for word in range(1000))
        >>> both = together(sample(hashes[:700]), sample(hashes[500:]))
        >>> both["lowest"] == sample(hashes)["lowest"], 800 < both["rows"] < 1200
        (True, True)
    """
    if one is None or other is None:
        return one or other
    cut = [seen["lowest"][-1] for seen in (one, other) if seen["rows"] > len(seen["lowest"])]
    different = sorted({*one["lowest"], *other["lowest"]})
    if not cut:
        return sample(different)
    lowest = [found for found in different if found <= min(cut)][:SAMPLE]  # below which neither lacks one
    share = int(lowest[-1], 16) / 16 ** len(lowest[-1])  # of all hashes that there may be
    return {"rows": max(one["rows"], other["rows"], round(len(lowest) / share)), "lowest": lowest}


def rows_seen(model: Any) -> dict[str, Any] | None:
    """The sample of all rows that a model was trained on, where its record has one."""
    return (model.training_settings or model._record.get("training") or {}).get("rows_seen")


def sample_of(dataset: Any) -> dict[str, Any] | None:
    """`sample` of a dataset's rows; `None` where they cannot be looked at."""
    rows = tokenised_rows(dataset)
    return None if rows is None else sample(row_hashes(rows))


def tokenised_rows(dataset: Any) -> Iterator[Mapping[str, Any]] | None:
    """The rows of a dataset that has `input_ids`, where looking at them changes nothing: a `datasets.Dataset`
    or a list of dicts; else `None`.
    """
    if isinstance(dataset, datasets.Dataset):
        names = [name for name in ("input_ids", "attention_mask") if name in dataset.column_names]
        return _of_table(dataset.with_format(None).select_columns(names)) if "input_ids" in names else None
    if isinstance(dataset, list) and dataset and all(isinstance(row, Mapping) for row in dataset):
        return iter(dataset) if all("input_ids" in row for row in dataset) else None
    return None


def _of_table(dataset: Any) -> Iterator[dict[str, Any]]:
    for batch in dataset.iter(batch_size=1000):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))
