"""Whether a bundle for ONNX Runtime answers as the torch model does: labels and exits, text by text.

    python examples/benchmarks/onnx_agreement.py  # after `make quickstart`

Exports the model in fp32 and in int8, and classifies the texts of four corpora (corpora.py) with torch in
fp32 and with both bundles, under the policy of the config and at full depth. int8 is checked on the movie
reviews of the validation split.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # examples/
import support.installed  # noqa: F401

# isort: split
import tempfile
from dataclasses import dataclass, field
from typing import Any

from support.reviews import load_reviews
from transformers import AutoTokenizer, HfArgumentParser

from benchmarks.corpora import corpora
from modeling_romebert import (
    OnnxRomeBertForSequenceClassification,
    RomeBertForSequenceClassification,
    export_onnx,
    score,
)
from modeling_romebert.evaluation.provenance import provenance, write_json


@dataclass
class AgreementArguments:
    model: str = field(default="runs/quickstart/model", metadata={"help": "Folder of a fine-tuned model."})
    texts: int | None = field(default=None, metadata={"help": "Of each corpus; all when left out."})
    output_file: str | None = field(default=None, metadata={"help": "JSON to write."})


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(AgreementArguments).parse_args_into_dataclasses(argv)
    model = RomeBertForSequenceClassification.from_pretrained(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    texts = [row["text"] for rows in corpora().values() for row in rows[: arguments.texts]]
    checked_on = list(load_reviews()[0]["validation"]["text"])
    results: dict[str, Any] = {"model": Path(arguments.model).name, "texts": len(texts), "rows": []}
    results |= provenance()
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("fp32", "int8"):
            bundle = export_onnx(
                model, tokenizer, Path(folder, precision), precision=precision, dataset=checked_on
            )
            onnx = OnnxRomeBertForSequenceClassification.from_pretrained(bundle)
            for name, policy in {"full depth": False, "config": model.config.exit_policy}.items():
                pairs = zip(
                    score(model, tokenizer, texts, exit_policy=policy, progress=True),
                    score(onnx, tokenizer, texts, exit_policy=policy),
                    strict=True,
                )
                results["rows"].append({"precision": precision, "policy": name, **agreement(pairs)})
    print(table(results))
    if arguments.output_file:
        write_json(arguments.output_file, results)


def agreement(pairs: Any) -> dict[str, float]:
    """Pairs of results -> shares with the same label and with the same exit, and the largest difference of
    scores where the label is the same.
    """
    labels = exits = count = 0
    farthest = 0.0
    for one, other in pairs:
        count += 1
        exits += one["exit_layer"] == other["exit_layer"]
        if one["label"] == other["label"]:
            labels += 1
            if one["exit_layer"] == other["exit_layer"]:
                farthest = max(farthest, abs(one["score"] - other["score"]))
    return {"same_label": labels / count, "same_exit": exits / count, "largest_difference": farthest}


def table(results: dict[str, Any]) -> str:
    lines = [
        "| precision | exits | same label | same exit | largest difference of scores |",
        "|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        lines.append(
            f"| {row['precision']} | {row['policy']} | {row['same_label']:.2%} | {row['same_exit']:.2%} |"
            f" {row['largest_difference']:.1e} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
