"""The sides of the benchmark: ways to classify a list of texts, from what a user would write first to what is
hard to beat.

Every side takes texts and gives a prediction for each, tokenisation included. The stock sides run a stock
`BertForSequenceClassification` (or whatever the family's class is) that was fine-tuned on the same sentences
for as many epochs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from benchmarks.layers import policies
from modeling_romebert import OnnxRomeBertForSequenceClassification, export_onnx

BATCH = 32


class Predictions(NamedTuple):
    """Of each text its label id, and layers run as a share of all layers of the model; all of them when left
    out.
    """

    labels: list[int]
    shares: list[float] | None = None

    def cost(self, weights: list[int] | None = None) -> float:
        """Layers run / layers, averaged over texts, or over their tokens with these as `weights`."""
        return 1.0 if self.shares is None else float(np.average(self.shares, weights=weights))


@dataclass
class Side:
    """One way to classify.

    Args:
        name: as in the table.
        group: the model that it runs: what its predictions are compared with at full depth in fp32.
        run: texts -> predictions.
        one: a text -> nothing of interest; for latency. `None` where it is not what one would use for one
            text.
    """

    name: str
    group: str
    run: Callable[[list[str]], Predictions]
    one: Callable[[str], Any] | None = None


def stock_sides(folder: Path, dtypes: Sequence[torch.dtype], group: str = "stock") -> Iterator[Side]:
    """The stock model: as a pipeline and on length-sorted batches, in each precision, and compiled."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for dtype in dtypes:
        classify = pipeline("text-classification", model=str(folder), dtype=dtype)
        model = classify.model
        name = short(dtype)
        yield Side(
            f"stock pipeline, batch {BATCH}, {name}", group, pipeline_of(classify, batch_size=BATCH), classify
        )
        yield Side(
            f"stock model, sorted by length, {name}", group, sorted_batches(tokenizer, logits_of(model))
        )
    compiled = torch.compile(AutoModelForSequenceClassification.from_pretrained(folder).eval(), dynamic=True)
    yield Side(
        "stock model, sorted by length, torch.compile", group, sorted_batches(tokenizer, logits_of(compiled))
    )


def short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def half_depth_side(folder: Path, layers: int) -> Side:
    """The first half of the layers, fine-tuned as a stock model: the saving that needs no exits."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    run = sorted_batches(
        AutoTokenizer.from_pretrained(folder), logits_of(model), cost=model.config.num_hidden_layers / layers
    )
    return Side(
        f"stock model of {model.config.num_hidden_layers} layers, sorted by length, fp32", "stock", run
    )


def onnx_sides(folder: Path, threads: int) -> Iterator[Side]:
    """The stock model in ONNX Runtime: fp32 and dynamically quantised int8. Exported beside the model, once.

    Raises:
        SystemExit: the extra `benchmark` is not installed.
    """
    try:
        import onnxruntime
        from onnxruntime.quantization import quantize_dynamic
    except ImportError:
        raise SystemExit(
            "ONNX Runtime is not installed: pip install 'romebert[benchmark]', or leave it out with --onnx"
            " False."
        ) from None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    files = {"fp32": folder / "model.onnx", "int8": folder / "model-int8.onnx"}
    if not files["fp32"].is_file():
        export(folder, tokenizer.model_input_names, files["fp32"])
    if not files["int8"].is_file():
        quantize_dynamic(files["fp32"], files["int8"])
    for name, file in files.items():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin while they wait take the time of the other sides, and of their own.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

        def logits(inputs: dict[str, Tensor], session: Any = session) -> Tensor:
            return torch.from_numpy(
                session.run(None, {key: value.numpy() for key, value in inputs.items()})[0]
            )

        yield Side(
            f"ONNX Runtime, sorted by length, {name}",
            "stock",
            sorted_batches(tokenizer, logits),
            one_text(tokenizer, logits),
        )


class _Exported(nn.Module):
    """The stock model with its mask made in a way that the exporter can follow."""

    def __init__(self, model: Any, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        named = dict(zip(self.names, inputs, strict=True))
        masked = 1.0 - named.pop("attention_mask")[:, None, None, :].float()  # (B, 1, 1, T)
        return self.model(**named, attention_mask=masked * torch.finfo(torch.float32).min).logits


def export(folder: Path, names: list[str], file: Path) -> None:
    """A stock model in a folder -> an ONNX file whose batch and length are free."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    example = tuple(torch.ones(2, 8, dtype=torch.long) for _ in names)
    axes = {name: {0: "batch", 1: "tokens"} for name in names}
    unfinished = file.with_suffix(".unfinished")
    torch.onnx.export(
        _Exported(model, names).eval(),
        example,
        str(unfinished),
        input_names=names,
        output_names=["logits"],
        dynamic_axes=axes,
        dynamo=False,
    )
    unfinished.rename(file)


def our_onnx_sides(
    model: Any, tokenizer: Any, folder: Path, validation: Dataset, costs: Sequence[float]
) -> Iterator[Side]:
    """RomeBERT on ONNX Runtime, in fp32 and int8: at full depth, and with thresholds of each bundle's own for
    one point less at most and for costs. Bundles are exported beside the stock models, once.
    """
    for precision in ("fp32", "int8"):
        bundle = folder / f"exits-{precision}"
        if not (bundle / "manifest.json").is_file():
            export_onnx(model, tokenizer, bundle, precision=precision, dataset=validation["text"])
        onnx = OnnxRomeBertForSequenceClassification.from_pretrained(
            bundle, num_threads=torch.get_num_threads()
        )
        classify = pipeline("early-exit-classification", model=onnx, tokenizer=tokenizer)
        for policy_name, policy in {
            "full depth": False,
            **policies(onnx, validation, tokenizer, costs),
        }.items():
            yield Side(
                f"RomeBERT on ONNX Runtime, {policy_name}, {precision}",
                f"ONNX exits {precision}",
                pipeline_of(classify, exit_policy=policy),
                # As lean as a session that is called by hand: the pipeline takes a millisecond of its own.
                lambda text, o=onnx, p=policy: o.classify([text], exit_policy=p),
            )


def our_sides(folder: Path, policies: dict[str, Any], dtypes: Sequence[torch.dtype]) -> Iterator[Side]:
    """RomeBERT through its pipeline: at full depth and with each policy, in each precision."""
    for dtype in dtypes:
        classify = pipeline("early-exit-classification", model=str(folder), dtype=dtype)
        for policy_name, policy in {"full depth": False, **policies}.items():
            name = f"RomeBERT, {policy_name}, {short(dtype)}"
            yield Side(
                name,
                "RomeBERT",
                pipeline_of(classify, exit_policy=policy),
                lambda text, c=classify, p=policy: c(text, exit_policy=p),
            )


def pipeline_of(classify: Any, **settings: Any) -> Callable[[list[str]], Predictions]:
    """A pipeline as a side."""
    config = classify.model.config

    def run(texts: list[str]) -> Predictions:
        results = classify(texts, **settings)
        layers = [result.get("exit_layer", config.num_hidden_layers) for result in results]
        labels = [config.label2id[result["label"]] for result in results]
        return Predictions(labels, [depth / config.num_hidden_layers for depth in layers])

    return run


def logits_of(model: Any) -> Callable[[dict[str, Tensor]], Tensor]:
    """A torch model as a function of a batch."""

    @torch.inference_mode()
    def logits(inputs: dict[str, Tensor]) -> Tensor:
        return (
            model(**{name: tensor.to(model.device) for name, tensor in inputs.items()}).logits.float().cpu()
        )

    return logits


def sorted_batches(
    tokenizer: Any, logits: Callable[[dict[str, Tensor]], Tensor], cost: float = 1.0
) -> Callable[[list[str]], Predictions]:
    """All texts tokenised at once, sorted by length, in batches of 32: what someone who minds padding would
    write.
    """

    def run(texts: list[str]) -> Predictions:
        encoded = tokenizer(texts, truncation=True)
        names = tokenizer.model_input_names
        order = sorted(range(len(texts)), key=lambda row: len(encoded["input_ids"][row]))
        labels = [0] * len(texts)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            inputs = tokenizer.pad(
                [{name: encoded[name][row] for name in names} for row in rows], return_tensors="pt"
            )
            for row, label in zip(rows, logits(dict(inputs)).argmax(dim=-1).tolist(), strict=True):
                labels[row] = label
        return Predictions(labels, [cost] * len(texts))

    return run


def one_text(tokenizer: Any, logits: Callable[[dict[str, Tensor]], Tensor]) -> Callable[[str], Any]:
    """One text at a time, with the scores that a pipeline gives."""
    return lambda text: (
        logits(dict(tokenizer(text, truncation=True, return_tensors="pt"))).softmax(dim=-1).tolist()
    )
