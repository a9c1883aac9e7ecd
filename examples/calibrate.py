"""A saved model and a file of texts -> a copy beside it whose exits keep a promise, with a plot of the cost.

    python examples/calibrate.py --model runs/quickstart/model --texts mine.csv --max_drop 0.01
    python examples/calibrate.py --model runs/quickstart/model --texts unlabelled.csv   # needs no labels
    python examples/calibrate.py --model runs/quickstart/model --texts mine.csv --speedup 2

1. The texts are read from CSV, TSV, JSON or JSONL: a column `text`, `text_pair` where there are pairs, and
   `label` where there are labels (names or ids of the model's classes; numbers for regression). They should
   be texts like those that the model will meet, and none that it was trained on.
2. One pass through every layer, and the cheapest threshold that is certified: with labels the drop of
   accuracy, without them how often the answer differs from full depth.
3. The copy, MODEL-calibrated or --output_dir, holds the policy and the certificate in its config, its card
   tells them, and calibration.png shows the risk over the cost. --in_place writes over the model instead.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import installed  # noqa: F401
from support.table_files import read_table
from support.table_rows import rows_of
from transformers import AutoTokenizer, HfArgumentParser

from modeling_romebert import Calibration, RomeBertForSequenceClassification, calibrate


@dataclass
class CalibrateArguments:
    """What may be chosen; the defaults promise one point at 95 %."""

    model: str = field(metadata={"help": "Folder of a saved model."})
    texts: str = field(
        metadata={"help": "CSV, TSV, JSON or JSONL with `text`, and `label` where there are labels."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder of the copy; MODEL-calibrated."})
    in_place: bool = field(default=False, metadata={"help": "Write over the model instead."})
    max_drop: float = field(default=0.01, metadata={"help": "What may be lost; 0.01 is one point."})
    confidence: float = field(default=0.95, metadata={"help": "With which that is promised."})
    risk: str | None = field(
        default=None, metadata={"help": "drop, harm or disagreement; drop with labels, disagreement without."}
    )
    policy: str = field(default="entropy", metadata={"help": "Which rule lets texts out."})
    tolerance: float | None = field(default=None, metadata={"help": "Of regression, in units of the label."})
    speedup: float | None = field(
        default=None, metadata={"help": "Ask for layers / layers run instead of a promise."}
    )


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(CalibrateArguments).parse_args_into_dataclasses(argv)
    folder = Path(arguments.model)
    if arguments.in_place and arguments.output_dir:
        raise SystemExit("--in_place and --output_dir: give one of them.")
    target = folder if arguments.in_place else Path(arguments.output_dir or f"{folder}-calibrated")
    if target.is_file():
        raise SystemExit(f"--output_dir {target} is a file; name a folder.")
    if not arguments.in_place and target.exists() and any(target.iterdir()):
        raise SystemExit(f"{target} is not empty: give another --output_dir, or --in_place.")

    # 1. Model and texts.
    model = RomeBertForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    table = read_table("--texts", arguments.texts)
    rows = rows_of(table, model)

    # 2. Calibrate.
    policy: Any = arguments.policy
    if arguments.policy == "patience" and arguments.tolerance is not None:
        policy = {"name": "patience", "tolerance": arguments.tolerance}
    labelled = "label" in table.columns
    try:
        found = calibrate(
            model,
            rows,
            tokenizer,
            max_drop=arguments.max_drop,
            confidence=arguments.confidence,
            risk=arguments.risk or ("drop" if labelled else "disagreement"),
            policy=policy,
            tolerance=arguments.tolerance,
            speedup=arguments.speedup,
        )
    except ValueError as error:
        raise SystemExit(f"{table.origin}: {error}") from None

    # 3. The copy, its certificate and its plot.
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    print(in_words(found, target))
    found.plot(target / "calibration.png")


def in_words(found: Calibration, target: Path) -> str:
    """One paragraph about what was found."""
    words = [str(found)]
    if found.full_depth is not None:
        words.append(
            f"On these examples the {found.metric} is {found.with_exits:.4f} with exits and"
            f" {found.full_depth:.4f} at full depth."
        )
    if found.cost < 1:
        words.append(
            f"A text runs {found.cost:.0%} of the layers on average, {1 / found.cost:.2f} times fewer."
        )
    words.append(
        f"The model is in {target}, with the policy {found.policy.to_dict()} in its config, and the risk over"
        f" the cost in {target / 'calibration.png'}."
    )
    return " ".join(words)


if __name__ == "__main__":
    main()
