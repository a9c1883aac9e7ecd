"""Export a saved model for ONNX Runtime, with its exits: int8 on plain CPUs.

    python examples/export_onnx.py --model_dir runs/mine/model --output_dir runs/mine/onnx --dataset texts.csv
    python examples/export_onnx.py --model_dir runs/mine/model --output_dir runs/mine/onnx --precision fp32

The file of --dataset (CSV, TSV, JSON or JSONL with a column `text`, and `text_pair` for pairs) holds texts of
the kind that the bundle will see: int8 is compared with fp32 on them, and layers that change too many labels
stay in fp32. With a column `label` the certificate of the exit policy, which is of the precision and the
exits that it was made with, is made anew for the bundle.

Needs the extra `onnx`: pip install 'romebert[onnx]'.
"""

from dataclasses import dataclass, field
from pathlib import Path

from support import installed  # noqa: F401
from support.table_files import read_table
from support.table_rows import rows_of
from transformers import AutoTokenizer, HfArgumentParser

from modeling_romebert import RomeBertForSequenceClassification, export_onnx
from modeling_romebert.onnx.bundle import Manifest


@dataclass
class ExportArguments:
    model_dir: str = field(metadata={"help": "Folder of a saved model, or its name on the Hub."})
    output_dir: str = field(metadata={"help": "Folder of the bundle; one that is a bundle is replaced."})
    precision: str = field(default="int8", metadata={"help": "Of the layers.", "choices": ["int8", "fp32"]})
    exits: list[int] | None = field(
        default=None, metadata={"help": "Layers whose exits the bundle has; all when left out."}
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "File of texts to compare int8 with fp32 on; with `label`, also to certify on."},
    )
    max_changed: float = field(
        default=0.02, metadata={"help": "Share of texts whose label a segment in int8 may change."}
    )


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(ExportArguments).parse_args_into_dataclasses(argv)
    table = None if arguments.dataset is None else read_table("--dataset", arguments.dataset)
    model = RomeBertForSequenceClassification.from_pretrained(arguments.model_dir)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model_dir)
    folder = export_onnx(
        model,
        tokenizer,
        arguments.output_dir,
        precision=arguments.precision,
        exits=arguments.exits,
        dataset=None if table is None else rows_of(table, model),
        max_changed=arguments.max_changed,
    )
    print(table_of(folder))


def table_of(folder: Path) -> str:
    """What a bundle holds, as a table: a row for each segment."""
    manifest = Manifest.load(folder)
    changed = (manifest.checked or {}).get("labels_changed", [None] * len(manifest.segments))
    lines = ["| layers | precision | MB | labels changed |", "| --- | --- | --- | --- |"]
    first = 1
    for last, segment, share in zip(manifest.exit_layers, manifest.segments, changed, strict=True):
        size = sum((folder / name).stat().st_size for name in {*segment.files, segment.exit_file} - {None})
        told = "not compared" if share is None else f"{share:.2%}"
        lines.append(f"| {first} to {last} | {segment.precision} | {size / 1e6:.1f} | {told} |")
        first = last + 1
    return "\n".join([f"{folder}:", "", *lines])


if __name__ == "__main__":
    main()
