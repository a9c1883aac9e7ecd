"""Graphs in int8 that can be trusted: each is compared with fp32 on texts, and one that changes labels is
left out.
"""

import logging as std_logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from transformers.utils import logging

from ..configuration_romebert import ProblemType
from ..early_exit import all_exits
from ..text_batcher import Window
from .bundle import Manifest, multiplies_int8
from .engine import CPU, OnnxEncoder, default_options, open_sessions

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
    """From the first segment on, drop int8 where it changes more labels at the exit than is allowed."""
    in_fp32 = {name: graphs / name for name in manifest.graphs}
    reference = _exit_logits(manifest, in_fp32, texts)  # (N, E, C)
    while True:
        changed = _changed(_exit_logits(manifest, in_fp32 | in_int8, texts), reference, manifest)  # (E,)
        over = [
            segment
            for segment, share in zip(manifest.segments, changed, strict=True)
            if share > max_changed and not in_int8.keys().isdisjoint(segment.files)
        ]
        if not over:
            break
        for name in over[0].files:
            in_int8.pop(name, None)
    manifest.checked = {"texts": len(texts.features), "labels_changed": changed.round(6).tolist()}
    layers = [0, *manifest.exit_layers]
    if back := [
        f"{layers[index] + 1} to {layers[index + 1]}"
        for index, segment in enumerate(manifest.segments)
        if not in_int8.keys() >= set(segment.files)
    ]:
        logger.warning(
            f"Layers {', '.join(back)} stay in fp32: in int8 they change the label of more than"
            f" {max_changed:.1%} of {len(texts.features)} texts."
        )


def _exit_logits(manifest: Manifest, files: dict[str, Path], texts: Window) -> np.ndarray:
    """Tokenised texts -> (N, E, C): logits of every exit."""
    encoder = OnnxEncoder(manifest, open_sessions(files, default_options(), [CPU]))
    features = list(texts.features.values())
    batches = [encoder.embed_texts(features[start : start + 32]) for start in range(0, len(features), 32)]
    return np.concatenate([all_exits(encoder, batch) for batch in batches])  # type: ignore[arg-type]


def _changed(logits: np.ndarray, reference: np.ndarray, manifest: Manifest) -> np.ndarray:
    """(N, E, C) twice -> (E,): share of rows with another label.

    Of a regression, with a number that moved by more than a tenth of their standard deviation.
    """
    if manifest.problem_type == ProblemType.REGRESSION:
        moved = np.abs(logits - reference) > reference.std(axis=0) / 10
    elif manifest.problem_type == ProblemType.MULTI_LABEL:
        moved = (logits > 0) != (reference > 0)
    else:
        moved = (logits.argmax(axis=-1) != reference.argmax(axis=-1))[..., None]
    return moved.any(axis=-1).mean(axis=0)


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
