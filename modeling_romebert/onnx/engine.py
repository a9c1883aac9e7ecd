"""The graphs of a bundle as the early-exit loop runs them: sessions of ONNX Runtime, and batches in numpy."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array
from .bundle import Manifest

try:
    import onnxruntime
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "running a bundle needs onnxruntime: pip install 'romebert[onnx]'", name=error.name
    ) from error

CPU = "CPUExecutionProvider"


class OnnxBatch:
    """b rows of T tokens, padded on the right: what the loop asks of a batch, in numpy.

    Args:
        inputs: of the first graph, (b, T) each.
        lengths: tokens of each row.
        hidden (b, T, H): states after some layers; `None` before the first.
        pooled (b, layers run, H): what exits that mix layers read of each.
    """

    def __init__(
        self, inputs: Mapping[str, np.ndarray], lengths: Sequence[int], hidden: Any = None, pooled: Any = None
    ):
        self.inputs, self.hidden, self.pooled = inputs, hidden, pooled
        self.lengths = list(lengths)
        self.logits: np.ndarray | None = None  # (b, C) of the exit behind the layers that ran last

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return len(self) * self.attention_mask.shape[1]

    @property
    def attention_mask(self) -> np.ndarray:
        return self.inputs["attention_mask"]

    @cached_property
    def mask(self) -> np.ndarray:
        """(b, 1, 1, T): what is added to attention scores; made once for the same rows."""
        return np.where(self.attention_mask[:, None, None, :] > 0, 0, np.finfo(np.float32).min).astype(
            np.float32
        )

    def select(self, rows: Sequence[int]) -> "OnnxBatch":
        """Some rows, cut to the longest of them."""
        return self._narrowed(np.asarray(rows, dtype=np.int64), [self.lengths[row] for row in rows])

    def view(self, rows: range) -> "OnnxBatch":
        return self._narrowed(slice(rows.start, rows.stop), self.lengths[rows.start : rows.stop])

    def _narrowed(self, rows: Any, lengths: list[int]) -> "OnnxBatch":
        longest = max(lengths, default=1)
        inputs = {name: values[rows, :longest] for name, values in self.inputs.items()}
        hidden = None if self.hidden is None else self.hidden[rows, :longest]
        return OnnxBatch(inputs, lengths, hidden, None if self.pooled is None else self.pooled[rows])

    def concat(self, others: Sequence["OnnxBatch"]) -> "OnnxBatch":
        """All rows, padded on the right to the longest."""
        parts = [self, *others]
        longest = max(part.attention_mask.shape[1] for part in parts)
        inputs = {
            name: np.concatenate([_pad(part.inputs[name], longest) for part in parts]) for name in self.inputs
        }
        hidden = pooled = None
        if self.hidden is not None:
            hidden = np.concatenate([_pad(part.hidden, longest) for part in parts])
        if self.pooled is not None:
            pooled = np.concatenate([part.pooled for part in parts])
        return OnnxBatch(inputs, [length for part in parts for length in part.lengths], hidden, pooled)


def _pad(values: np.ndarray, tokens: int) -> np.ndarray:
    """(b, T, ...) -> (b, tokens, ...), zeros behind."""
    missing = tokens - values.shape[1]
    return np.pad(values, [(0, 0), (0, missing)] + [(0, 0)] * (values.ndim - 2)) if missing else values


def batch_of(manifest: Manifest, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> OnnxBatch:
    """Inputs of a call (B, T) each, padded on the right -> a batch.

    Raises:
        ValueError: inputs that a bundle does not take.
    """
    ids = np.asarray(input_ids, dtype=np.int64)
    if ids.ndim != 2:
        raise ValueError(f"input_ids have shape {ids.shape}; give (B, T).")
    if manifest.max_tokens is not None and ids.shape[1] > manifest.max_tokens:
        raise ValueError(
            f"input_ids have {ids.shape[1]} tokens, and the model has positions for {manifest.max_tokens}."
        )
    if ids.size and not 0 <= ids.min() <= ids.max() < manifest.vocab_size:
        raise ValueError(
            f"input_ids hold {ids.min()}..{ids.max()}, and the vocabulary has ids"
            f" 0..{manifest.vocab_size - 1}."
        )
    mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask, dtype=np.int64)
    lengths = mask.sum(axis=1)  # (B,)
    if (mask != (np.arange(ids.shape[1]) < lengths[:, None])).any():
        raise ValueError("attention_mask is padded on the left, or has gaps; pad on the right for a bundle.")
    types = np.zeros_like(ids) if token_type_ids is None else np.asarray(token_type_ids, dtype=np.int64)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    inputs = {name: given[name] for name in manifest.inputs}
    return OnnxBatch(inputs, np.maximum(lengths, 1).tolist())


class OnnxEncoder:
    """The graphs of a bundle as the loop runs them: the `Encoder` of early_exit.py."""

    packs = False  # graphs take padded rows

    def __init__(self, manifest: Manifest, sessions: Mapping[str, Any], workers: int = 1):
        self.exit_layers, self.num_labels = manifest.exit_layers, manifest.num_labels
        self._manifest, self._sessions, self._workers = manifest, sessions, workers
        self._layers = [0, *manifest.exit_layers]

    def workers(self, tokens: int) -> int:
        """How many batches of a pass to run at once: so many that the sessions were opened for."""
        return self._workers

    def embed_texts(self, texts: Sequence[Mapping[str, Sequence[int]]]) -> OnnxBatch:
        lengths = [len(text["input_ids"]) for text in texts]
        shape = (len(texts), max(lengths))
        fill = {"input_ids": self._manifest.pad_token_id}
        inputs = {}
        for name in self._manifest.inputs:
            values = np.full(shape, fill.get(name, 0), dtype=np.int64)
            for row, text in enumerate(texts):
                values[row, : lengths[row]] = 1 if name == "attention_mask" else text.get(name, 0)
            inputs[name] = values
        return OnnxBatch(inputs, lengths)

    def run(self, batch: Any, first: int, last: int) -> None:
        """Run the segments between two exits, in place."""
        for index in range(self._layers.index(first), self._layers.index(last)):
            segment = self._manifest.segments[index]
            for name in segment.files:
                self._run(name, batch)
            if segment.exit_file is not None:
                self._run(segment.exit_file, batch)

    def exit_logits(self, batch: Any, layer: int) -> Array:
        """(b, C) of the exit after `layer`, which the graph of its segment has computed with it."""
        return batch.logits

    def _run(self, name: str, batch: OnnxBatch) -> None:
        """Run one graph, in place: hidden states, pooled states and logits, as far as it gives them."""
        session, takes, gives = self._sessions[name]
        feed = {one: self._input(one, batch) for one in takes}
        found = dict(zip(gives, session.run(gives, feed), strict=True))
        batch.hidden = found.get("hidden_out", batch.hidden)
        batch.pooled = found.get("pooled_out", batch.pooled)
        batch.logits = found.get("logits", batch.logits)

    def _input(self, name: str, batch: OnnxBatch) -> np.ndarray:
        if name in ("hidden", "pooled"):
            return getattr(batch, name)
        return batch.mask if name == "mask" else batch.inputs[name]


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_options(num_threads: int | None = None) -> Any:
    """Options of a session: threads (all cores when left out) that do not spin when they wait, as those of
    chained sessions would take each other's time.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_sessions(files: Mapping[str, Path], options: Any, providers: Sequence[Any]) -> dict[str, Any]:
    """Names of graphs and their files -> each one's session, and the names of its inputs and outputs."""
    sessions = {}
    for name, path in files.items():
        session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
        takes, gives = session.get_inputs(), session.get_outputs()
        sessions[name] = (session, [one.name for one in takes], [one.name for one in gives])
    return sessions


def checked_providers(wanted: Sequence[Any]) -> list[Any]:
    """Execution providers by name, or as (name, options).

    Raises:
        ValueError: one is not there.
    """
    names = [one if isinstance(one, str) else one[0] for one in wanted]
    if absent := [name for name in names if name not in onnxruntime.get_available_providers()]:
        raise ValueError(
            f"provider {', '.join(absent)} is not in this build of onnxruntime; there are"
            f" {', '.join(onnxruntime.get_available_providers())}."
        )
    return list(wanted)
