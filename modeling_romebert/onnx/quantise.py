"""Graphs in int8 that can be trusted: each is compared with fp32 on texts, and one that changes labels is
left out.
"""

import itertools
import logging as std_logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ..evaluation.risks import agrees
from ..text_batcher import Window
from .bundle import Manifest, multiplies_int8
from .engine import CPU, OnnxBatch, OnnxEncoder, default_options, open_sessions

logger = logging.get_logger(__name__)


def quantised(graphs: Path, manifest: Manifest, texts: Window | None, max_changed: float) -> dict[str, Path]:
    """Graphs of layers in int8 -> their files by name, but for those that change too many labels.

    Only products with weights are quantised: embeddings, exits and attention stay in fp32.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    vnni = multiplies_int8()
    manifest.precision, manifest.processor = "int8", {"multiplies_int8": vnni}
    in_int8 = {}
    for name in sorted({name for segment in manifest.segments for name in segment.files}):
        in_int8[name] = graphs / f"{name}.int8"
        # Without VNNI sums of two products saturate, unless the weights leave a bit free.
        settings = {"op_types_to_quantize": ["MatMul"], "per_channel": True, "reduce_range": vnni is False}
        with _quiet_root_logger():
            quantize_dynamic(graphs / name, in_int8[name], weight_type=QuantType.QInt8, **settings)
    if texts is None:
        logger.warning(
            "int8 was not compared with fp32, as no dataset was given. export_onnx(..., dataset=texts)"
            " compares, and keeps a segment in fp32 that changes too many labels."
        )
    else:
        _leave_out_what_changes_labels(in_int8, graphs, manifest, texts, max_changed)
    for segment in manifest.segments:
        segment.precision = "int8" if in_int8.keys() >= set(segment.files) else "fp32"
    return in_int8


def _leave_out_what_changes_labels(
    in_int8: dict[str, Path], graphs: Path, manifest: Manifest, texts: Window, max_changed: float
) -> None:
    """From the first segment on, drop int8 where it changes more labels at the segment's exit than is
    allowed.

    A graph that runs in several segments leaves int8 in all of them, so the first ones are looked at again.
    """
    features = list(texts.features.values())
    fp32 = open_sessions({name: graphs / name for name in manifest.graphs}, default_options(), [CPU])
    int8 = open_sessions(in_int8, default_options(), [CPU])
    changed = None
    while changed is None:
        chosen = {name: int8[name] for name in in_int8}
        changed, too_many = _shares_changed(fp32, chosen, manifest, features, max_changed)
        for name in too_many:
            del in_int8[name]
    manifest.checked = {"texts": len(features), "labels_changed": [round(share, 6) for share in changed]}
    spans = itertools.pairwise([0, *manifest.exit_layers])
    kept = [
        f"{first + 1} to {last}"
        for (first, last), segment in zip(spans, manifest.segments, strict=True)
        if not in_int8.keys() >= set(segment.files)
    ]
    if kept:
        logger.warning(
            f"Layers {', '.join(kept)} stay in fp32: in int8 they change the label of more than"
            f" {max_changed:.1%} of {len(features)} texts."
        )


def _shares_changed(
    fp32: Mapping[str, Any], int8: dict[str, Any], manifest: Manifest, features: Sequence[Any], limit: float
) -> tuple[list[float] | None, list[str]]:
    """Sessions of graphs by name -> share of labels that the bundle changes at each exit, and the graphs
    whose int8 changes more than the limit, which run in fp32 here.

    What a segment changes is told apart from what those before it have changed: it runs in both precisions on
    the same states. Shares are `None` when a graph fell out that segments before have used.
    """
    plain = OnnxEncoder(manifest, fp32)
    whole = [plain.embed_texts(features[start : start + 32]) for start in range(0, len(features), 32)]
    chosen = [batch.select(range(len(batch))) for batch in whole]  # what the bundle will compute
    changed: list[float] = []
    too_many: list[str] = []
    used: set[str] = set()
    for first, last in itertools.pairwise([0, *manifest.exit_layers]):
        names = manifest.segments[manifest.exit_layers.index(last)].files
        reference = _run(plain, whole, first, last)  # (N, C)
        before = _states(chosen)
        logits = _run(plain, chosen, first, last)
        after = _states(chosen)
        if here := {name: int8[name] for name in names if name in int8 and name not in too_many}:
            _put_back(chosen, before)
            in_int8 = _run(OnnxEncoder(manifest, {**fp32, **here}), chosen, first, last)
            if _changed(in_int8, logits, manifest) > limit:
                too_many += here
                if used & here.keys():
                    return None, too_many
                _put_back(chosen, after)
            else:
                logits = in_int8
        changed.append(_changed(logits, reference, manifest))
        used |= here.keys()
    return changed, too_many


def _states(batches: list[OnnxBatch]) -> list[tuple[Any, Any]]:
    """What layers have made of each batch."""
    return [(batch.hidden, batch.pooled) for batch in batches]


def _put_back(batches: list[OnnxBatch], states: list[tuple[Any, Any]]) -> None:
    """Let batches be as they were."""
    for batch, (hidden, pooled) in zip(batches, states, strict=True):
        batch.hidden, batch.pooled = hidden, pooled


def _run(encoder: OnnxEncoder, batches: list[OnnxBatch], first: int, last: int) -> np.ndarray:
    """Run a segment on batches, in place -> (N, C): logits of its exit."""
    for batch in batches:
        encoder.run(batch, first, last)
    return np.concatenate([encoder.exit_logits(batch, last) for batch in batches])


def _changed(logits: np.ndarray, reference: np.ndarray, manifest: Manifest) -> float:
    """(N, C) twice -> share of rows with another label.

    Of a regression, with a number that moved by more than a tenth of their standard deviation.
    """
    pairs = torch.from_numpy(np.stack([logits, reference], axis=1))  # (N, 2, C)
    agree = agrees(pairs, manifest.problem_type, reference.std(axis=0) / 10)[:, 0]  # (N, D)
    return float((~agree).any(axis=-1).mean())


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """The quantizer tells the root logger to prepare graphs first, which brings nothing for these."""
    root, silent = std_logging.getLogger(), std_logging.NullHandler()
    level = root.level
    root.addHandler(silent)  # or the first message would give it a handler for good
    root.setLevel(std_logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(silent)
