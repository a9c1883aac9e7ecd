"""A model folder -> texts with label, score, exit layer and error: what runs at every scale, in one process
or in each of many workers.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from transformers import AutoTokenizer

from modeling_romebert import OnnxRomeBertForSequenceClassification, RomeBertForSequenceClassification, score
from modeling_romebert.exit_policies import ExitPolicy, as_policy
from modeling_romebert.onnx.bundle import MANIFEST, digest

# What is told of a text. Scores are computed in fp32, so they lose nothing here.
RESULTS = pa.schema(
    {"label": pa.string(), "score": pa.float32(), "exit_layer": pa.int32(), "error": pa.string()}
)
# Endings of the files that say what a model answers: weights, settings and vocabulary.
OF_MODEL = (".safetensors", ".onnx", ".json", ".txt", ".model")


def open_classifier(
    folder: str, dtype: str | None = None, threads: int | None = None, device: str | None = None
) -> tuple[Any, Any]:
    """A folder of a saved model, or of a bundle that `export_onnx` wrote -> the model, and its tokenizer.

    Args:
        folder: also a model's name on the Hub.
        dtype: "float32", "bfloat16" or "float16"; as the model was saved when left out. A bundle has its own.
        threads: of the CPU; as many as there are when left out.
        device: "cpu" or "cuda"; a GPU where there is one when left out.

    Raises:
        SystemExit: there is no such model, or a dtype is asked of a bundle.
    """
    if threads:
        torch.set_num_threads(threads)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if Path(folder, MANIFEST).is_file():
            if dtype:
                raise SystemExit(f"--dtype {dtype}: {folder} is a bundle, which has the one of its export.")
            return OnnxRomeBertForSequenceClassification.from_pretrained(
                folder, num_threads=threads
            ), tokenizer
        model = RomeBertForSequenceClassification.from_pretrained(folder, **{"dtype": dtype} if dtype else {})
    except OSError as error:
        raise SystemExit(f"--model {folder}: {error}") from None
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), tokenizer


def chosen_policy(config: Any, exit_threshold: float | None) -> ExitPolicy | None:
    """A model's own policy with another threshold, entropy where it has none; `None` where nothing is
    chosen.
    """
    return None if exit_threshold is None else as_policy(config.exit_policy or "entropy", exit_threshold)


def as_items(texts: Sequence[Any], pairs: Sequence[Any] | None = None) -> list[Any]:
    """Columns of texts and of their seconds -> what `score` takes."""
    if pairs is None:
        return list(texts)
    return [{"text": text, "text_pair": pair} for text, pair in zip(texts, pairs, strict=True)]


def as_columns(results: Iterable[Mapping[str, Any]], start: int = 0) -> pa.Table:
    """Results of `score`, one label each, from a position on -> a table of `RESULTS`. An error does without
    the position, which its row has.
    """
    columns: dict[str, list[Any]] = {name: [] for name in RESULTS.names}
    for row, result in enumerate(results, start):
        for name in ("label", "score", "exit_layer"):
            columns[name].append(result[name])
        error = result.get("error")
        columns["error"].append(error and error.removeprefix(f"text {row}: "))
    return pa.table(columns, schema=RESULTS)


class Labeller:
    """A classifier as workers hold it: columns of texts in, a table of `RESULTS` out. Texts that fail get an
    error.

    Args:
        model: folder; see `open_classifier`.
        exit_threshold: in place of the calibrated one.
        batch_tokens: see `score`.
        dtype, threads: see `open_classifier`.
    """

    def __init__(
        self,
        model: str,
        exit_threshold: float | None = None,
        batch_tokens: int | None = None,
        dtype: str | None = None,
        threads: int | None = None,
    ):
        self.model, self.tokenizer = open_classifier(model, dtype, threads)
        self.policy = chosen_policy(self.model.config, exit_threshold)
        self.batch_tokens = batch_tokens
        self.results([])  # a policy without meaning for the model is refused now

    def results(self, texts: Sequence[Any], pairs: Sequence[Any] | None = None) -> Any:
        """An iterator over the results of `score`, in order."""
        return score(
            self.model,
            self.tokenizer,
            as_items(texts, pairs),
            exit_policy=self.policy,
            batch_tokens=self.batch_tokens,
            on_error="skip",
        )

    def __call__(self, texts: Sequence[Any], pairs: Sequence[Any] | None = None) -> pa.Table:
        return as_columns(self.results(texts, pairs))


def identity_of(folder: str) -> dict[str, str] | str:
    """What a model is told by: the digests of the files that its answers depend on, by name, among them the
    policy of its config; its name where it is no folder here.
    """
    files = [path for path in sorted(Path(folder).glob("*")) if path.suffix in OF_MODEL and path.is_file()]
    return {path.name: digest(path) for path in files} or os.fspath(folder)
