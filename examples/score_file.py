"""A saved model and a file of any size -> the same rows with label, score and exit layer.

    python examples/score_file.py --model runs/quickstart/model --input reviews.csv --output labels.parquet
    python examples/score_file.py --model MODEL --input "logs-*.jsonl.gz" --output labels.csv --keep id
    python examples/score_file.py --model MODEL --input stanfordnlp/imdb --split test --output labels.jsonl

1. Rows are streamed from CSV, TSV, JSON, JSONL or Parquet, one file or several, or from a dataset by its
   name; memory does not grow with their number.
2. Every `--shard_rows` rows are written as a shard, whole or not at all. Killed and started again with the
   same arguments, the run goes on behind the last shard.
3. The shards become `--output`, byte for byte that of a run that was never killed: the columns of `--keep`,
   and label, score, exit_layer, error. A row that cannot be classified has an error, and nothing else.
4. A summary is printed, and lies beside the output as OUTPUT.summary.json.

The model may be a bundle of ONNX (examples/export_onnx.py). Several processes or machines:
examples/score_daft.py, examples/score_ray.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa
import torch
from support import installed  # noqa: F401
from support.json_cells import cells
from support.labelling import Labeller, as_columns
from support.row_source import open_rows
from support.scoring_run import ScoringArguments, run, with_labels
from transformers import HfArgumentParser

SHOWN = 1024  # rows between two looks of the progress bar


@dataclass
class ScoreFileArguments(ScoringArguments):
    """What is scored, and where the results go. A dataset by its name will do as `--input`."""

    split: str = field(default="train", metadata={"help": "Of a dataset."})
    subset: str | None = field(default=None, metadata={"help": "Of a dataset that has several."})
    threads: int | None = field(
        default=None, metadata={"help": "CPU threads; torch's own choice when left out."}
    )


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(ScoreFileArguments).parse_args_into_dataclasses(argv)
    arguments.check()
    rows = open_rows(arguments.input, arguments.columns, arguments.split, arguments.subset)
    try:
        labeller = Labeller(
            arguments.model,
            arguments.exit_threshold,
            arguments.batch_tokens,
            arguments.dtype,
            arguments.threads,
        )
    except ValueError as error:
        raise SystemExit(str(error)) from None

    def labelled(done: int) -> Iterator[pa.Table]:
        for table in rows.tables(arguments.shard_rows, done // arguments.shard_rows):
            texts = cells(table, arguments.text_column)
            pairs = cells(table, arguments.pair_column) if arguments.pair_column else None
            # A shard is scored as a whole, so that its bytes do not depend on where a run began.
            results = labeller.results(texts, pairs)
            for start in range(0, len(table), SHOWN):
                rows_here = table.slice(start, SHOWN)
                yield with_labels(rows_here, as_columns(islice(results, SHOWN), start), arguments.keep)

    engine = {"device": str(labeller.model.device), "threads": torch.get_num_threads()}
    run(arguments, arguments.settings(rows.identity, engine), labelled, rows.total)


if __name__ == "__main__":
    main()
