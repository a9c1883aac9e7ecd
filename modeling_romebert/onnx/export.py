"""Export: a multi-exit classifier -> a bundle of graphs, one per segment between exits, for ONNX Runtime.

A graph cannot decide which rows go on, so the loop stays outside and every segment is a graph of its own:
embeddings and layers up to the first exit with its head, then on to the next exit, and so on.
"""

import copy
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..batch_layout import PaddedBatch
from ..certificate import certificate_of, forget_if_of_other_weights
from ..data.fingerprint import rows_seen
from ..encoder import TorchEncoder
from ..evaluation.calibration import calibrate
from ..exit_policies import threshold_settings
from ..hub import weights_digest
from ..layer_masks import LayerRows
from ..policy_base import settings_of_exits
from ..pretrained import inner_model
from ..text_batcher import TextBatcher, Window, with_truncation
from ..text_items import each, refuse_one_text
from .bundle import MANIFEST, Manifest, Segment
from .quantise import quantised
from .runtime import OnnxRomeBertForSequenceClassification

logger = logging.get_logger(__name__)

OPSET = 17
PRECISIONS = {"fp32": "float32", "int8": "int8"}  # as a certificate names them
# Texts of the check that a layer of int8 weights is compared with fp32 on, at most.
CHECKED_TEXTS = 2000


class _Layers(nn.Module):
    """Layers first + 1 .. last of a classifier, with the embeddings before the first, and the exit after the
    last.

    Args:
        mask_is_made: the layers are given (b, 1, 1, T), what is added to attention scores, by the name
            `mask`; of families that look at positions too, they make it of the attention mask.
    """

    def __init__(self, model: Any, first: int, last: int, with_exit: bool, mask_is_made: bool):
        super().__init__()
        self.model, self.first, self.last = model, first, last
        self.with_exit, self.mask_is_made = with_exit, mask_is_made

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.names, inputs, strict=True))
        model, mask = self.model, named["attention_mask"]
        if self.first == 0:
            taken = dict.fromkeys(("input_ids", "token_type_ids", "position_ids", "inputs_embeds")) | named
            taken.pop("mask", None)
            hidden = model.adapter.embed(model.backbone, **taken)
        else:
            hidden = named["hidden"]
        attended = named["mask"] if self.mask_is_made else mask
        run_layer = model.adapter.prepare(model.backbone, LayerRows(hidden, attended, padded=True))
        encoder, batch = TorchEncoder(model), PaddedBatch(hidden, mask)
        batch.pooled = named.get("pooled")
        for number in range(self.first, self.last):
            batch.hidden = run_layer(number, model.layers[number], batch.hidden)
            if model.mixes_layers:
                encoder.note_pooled(batch)
        states = (batch.hidden, batch.pooled) if batch.pooled is not None else (batch.hidden,)
        return (*states, encoder.exit_logits(batch, self.last)) if self.with_exit else states

    @property
    def names(self) -> list[str]:
        """Inputs in their order."""
        embeds = [name for name in self.model.adapter.inputs if name in ("input_ids", "token_type_ids")]
        states = ["hidden", *["pooled"] * self.model.mixes_layers]
        return [*(embeds if self.first == 0 else states), "attention_mask", *["mask"] * self.mask_is_made]

    @property
    def outputs(self) -> list[str]:
        """Outputs in their order."""
        return ["hidden_out", *["pooled_out"] * self.model.mixes_layers, *["logits"] * self.with_exit]


class _Exit(nn.Module):
    """An exit alone: for layers whose graph runs again and again."""

    outputs = ("logits",)

    def __init__(self, model: Any, layer: int):
        super().__init__()
        self.model, self.last = model, layer

    def forward(self, states: Tensor, *mask: Tensor) -> tuple[Tensor]:
        if self.model.mixes_layers:
            return (self.model.exits[str(self.last)](states),)
        return (TorchEncoder(self.model).exit_logits(PaddedBatch(states, *mask), self.last),)

    @property
    def names(self) -> tuple[str, ...]:
        """Inputs in their order."""
        return ("pooled",) if self.model.mixes_layers else ("hidden", "attention_mask")


@torch.no_grad()
def export_onnx(
    model: Any,
    tokenizer: Any,
    folder: str | os.PathLike[str],
    *,
    precision: str = "int8",
    exits: Sequence[int] | None = None,
    dataset: Iterable[Any] | None = None,
    max_changed: float = 0.02,
) -> Path:
    """Write a bundle that ONNX Runtime runs, with exits, in bulk and for one text at a time.

    Args:
        model: a `RomeBertForSequenceClassification`; it stays as it is.
        tokenizer: of the model; it travels with the bundle.
        folder: that is written, whole or not at all. One that is there is replaced if it is a bundle.
        precision: `"fp32"`, or `"int8"`: weights of the layers in 8 bits, their inputs rounded as they come
            (dynamic quantization); exits stay in fp32.
        exits: layers whose exits the bundle has, a part of the model's; all when left out. The last one
            stays.
        dataset: texts, or rows with `text` (and `text_pair`), of the kind that the bundle will see. int8 is
            compared with fp32 on them, segment by segment. A certificate of the exit policy holds in the
            precision and with the exits that it was made with. For others, with labels (or for a risk that
            needs none), the bundle is certified again on these rows, else the policy travels without one.
        max_changed: share of the texts whose label a segment in int8 may change at its exit; one that changes
            more stays in fp32.

    Returns:
        The folder.

    Raises:
        ValueError: an unknown precision, an exit that the model has not, or a folder that is no bundle.
        ImportError: onnx or onnxruntime is not installed.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown; choose from {', '.join(PRECISIONS)}.")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder={str(folder)!r} is a file; name a folder.")
    if folder.exists() and not (folder / MANIFEST).is_file() and any(folder.iterdir()):
        raise ValueError(f"folder={str(folder)!r} holds other files than a bundle's; name a new one.")
    source = inner_model(model)
    romebert = _for_export(source, exits)
    forget_if_of_other_weights(romebert.config, weights_digest(source.state_dict()))
    certificate = certificate_of(source.config) if romebert.config.calibration else None
    holds = certificate is not None and (
        romebert.exit_layers == source.exit_layers
        and (certificate.get("precision") or "float32") == PRECISIONS[precision]
    )
    romebert.config.calibration = certificate if holds else None
    if dataset is not None:
        refuse_one_text(dataset)
    rows = None if dataset is None else list(each(dataset))
    texts = None if rows is None else _tokenised(romebert, tokenizer, rows)
    target = folder.resolve()  # where a link points to
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as work:
        graphs, bundle = Path(work, "graphs"), Path(work, "bundle")
        graphs.mkdir()
        manifest = _export_segments(romebert, tokenizer, graphs)
        chosen = {name: graphs / name for name in manifest.graphs}
        if precision == "int8":
            chosen |= quantised(graphs, manifest, texts, max_changed)
        _without_policy(romebert.config).save_pretrained(bundle)
        tokenizer.save_pretrained(bundle)
        for code in bundle.glob("*.py"):  # a bundle holds no code
            code.unlink()
        for name, path in chosen.items():
            shutil.copyfile(path, bundle / name)
        manifest.save(bundle)
        if certificate is not None and not holds:
            _certify_again(bundle, tokenizer, rows, certificate)
        if target.exists():
            target.rename(Path(work, "before"))  # which takes no time, as deleting it does
        bundle.rename(target)
    return folder


def _for_export(model: Any, exits: Sequence[int] | None) -> Any:
    """A copy of a model on the host, in fp32, with plain attention, and with the exits that are asked for."""
    if model.config.classifies_tokens:
        raise ValueError(
            "model classifies tokens, and bundles hold classifiers of whole texts: run it in torch."
        )
    asked = list(model.exit_layers) if exits is None else sorted({*exits, model.exit_layers[-1]})
    if absent := [layer for layer in asked if layer not in model.exit_layers]:
        raise ValueError(
            f"exits={list(exits or ())}: there is no exit after {absent}; there are after"
            f" {model.exit_layers}."
        )
    model = copy.deepcopy(model).cpu().float().eval()
    model.config._attn_implementation = model.backbone.config._attn_implementation = "eager"
    model.config.dtype = torch.float32
    if asked != model.exit_layers:
        if model.config.exit_policy is not None:
            model.config.exit_policy = settings_of_exits(model.config.exit_policy, model.exit_layers, asked)
        model.config.exit_layers = model.exit_layers = asked
        for layer in [int(name) for name in model.exits if int(name) not in asked]:
            del model.exits[str(layer)]
    return model


def _without_policy(config: Any) -> Any:
    """A copy of a config without exit policy and certificate: the manifest holds them, which a calibration of
    the bundle renews.
    """
    config = copy.deepcopy(config)
    config.exit_policy = config.calibration = None
    return config


def _certify_again(folder: Path, tokenizer: Any, rows: list[Any] | None, certificate: dict[str, Any]) -> None:
    """A certificate is of the precision and of the exits that it was made with: calibrate the bundle on the
    rows, as asked for then.
    """
    onnx = OnnxRomeBertForSequenceClassification.from_pretrained(folder)
    texts = [dict(row) if isinstance(row, Mapping) else {"text": row} for row in rows or ()]
    labelled = all("label" in row or "labels" in row for row in texts)
    budget = certificate.get("budget")
    if not texts or not (labelled or (certificate["risk"] == "disagreement" and budget is None)):
        logger.warning(
            f"The exit policy was certified in {certificate['precision']} with exits after"
            f" {certificate.get('exit_layers')}. The bundle, in {onnx.precision} with exits after"
            f" {onnx.exit_layers}, has the policy without the certificate; give a dataset with labels, or"
            " calibrate the bundle and save it."
        )
        return
    policy = onnx.config.exit_policy  # the certificate's, of the exits that there are
    dropped = threshold_settings(policy["name"])
    asked: dict[str, Any] = {
        "confidence": certificate["confidence"],
        "tolerance": certificate.get("tolerance"),
    }
    asked["policy"] = {name: value for name, value in policy.items() if name not in dropped}
    if budget is None:
        asked |= {"risk": certificate["risk"], "max_drop": certificate["max_drop"]}
    else:
        asked |= {"cost": budget}
    calibrate(onnx, texts, tokenizer, progress=False, **asked)
    onnx.save_pretrained(folder)


def _export_segments(model: Any, tokenizer: Any, folder: Path) -> Manifest:
    """Write the graphs in fp32 -> the manifest, without digests."""
    layers, mask_is_made = model.layers, model.adapter.packs
    repeated = len(set(map(id, layers))) < len(layers)  # ALBERT: graphs of single layers, which run again
    graphs: dict[Any, str] = {}
    segments, first = [], 0
    for last in model.exit_layers:
        if not repeated:
            name = f"layers_{first + 1}_to_{last}.onnx"
            _export(_Layers(model, first, last, True, mask_is_made), folder / name)
            segments.append(Segment([name]))
        else:
            files = []
            for number in range(first, last):
                key = (number == 0, id(layers[number]))
                if key not in graphs:
                    graphs[key] = f"layer_{number + 1}.onnx"
                    _export(_Layers(model, number, number + 1, False, mask_is_made), folder / graphs[key])
                files.append(graphs[key])
            exit_file = f"exit_{last}.onnx"
            _export(_Exit(model, last), folder / exit_file)
            segments.append(Segment(files, exit_file))
        first = last
    config = model.config
    return Manifest(
        exit_layers=list(model.exit_layers),
        num_layers=config.num_hidden_layers,
        num_labels=model.num_labels,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        max_tokens=with_truncation(tokenizer, model.max_tokens, {})["max_length"],
        truncation_side=tokenizer.truncation_side,
        token_types="token_type_ids" in tokenizer.model_input_names,
        pad_token_id=tokenizer.pad_token_id or 0,
        problem_type=model.problem_type,
        id2label=dict(config.id2label),
        inputs=_Layers(model, 0, 1, False, mask_is_made=False).names,
        segments=segments,
        exit_policy=config.exit_policy,
        calibration=config.calibration,
        rows_seen=rows_seen(model),
        opset=OPSET,
        versions={
            name: version(name) for name in ("romebert", "torch", "transformers", "onnx", "onnxruntime")
        },
    )


def _export(module: Any, path: Path) -> None:
    """Trace a module whose inputs are (b, T, ...) into a graph, for any b and T."""
    module.eval()  # the exporter puts it back as it was, all of it
    model, (rows, tokens) = module.model, (2, 7)
    layers = module.last if isinstance(module, _Exit) else module.first  # that have run before
    made = {
        "hidden": lambda: torch.randn(rows, tokens, model.config.hidden_size),
        "pooled": lambda: torch.randn(rows, layers, model.config.hidden_size),
        "mask": lambda: torch.zeros(rows, 1, 1, tokens),
        "attention_mask": lambda: torch.tensor([[1] * tokens, [1] * (tokens - 2) + [0, 0]]),
    }
    names = list(module.names)
    inputs = tuple(made.get(name, lambda: torch.ones(rows, tokens, dtype=torch.long))() for name in names)
    outputs = list(module.outputs)
    axes = {name: {0: "rows", 1: "tokens"} for name in (*names, "hidden_out")}
    axes |= {"mask": {0: "rows", 3: "tokens"}, "logits": {0: "rows"}}
    axes |= {"pooled": {0: "rows", 1: "layers"}, "pooled_out": {0: "rows", 1: "layers_out"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: constants that are constants
        torch.onnx.export(
            module,
            inputs,
            str(path),
            input_names=names,
            output_names=outputs,
            dynamic_axes={name: axes[name] for name in (*names, *outputs)},
            opset_version=OPSET,
            dynamo=False,
        )


def _tokenised(model: Any, tokenizer: Any, rows: list[Any]) -> Window:
    """Texts, or rows with a text -> tokenised, at most `CHECKED_TEXTS` of them."""
    parts = ("text", "text_pair")
    texts = [
        {name: row[name] for name in parts if row.get(name) is not None} if isinstance(row, Mapping) else row
        for row in rows[:CHECKED_TEXTS]
    ]
    if not texts:
        raise ValueError("dataset has no rows, so there is nothing to compare int8 with fp32 on.")
    window = TextBatcher(tokenizer, model.max_tokens, model.config.vocab_size, {})(0, texts)
    if window.errors:
        row = min(window.errors)
        raise type(window.errors[row])(f"dataset: row {row}: {window.errors[row]}")
    return window
