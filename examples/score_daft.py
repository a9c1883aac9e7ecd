"""As score_file.py, by several processes: Daft reads, workers label, rows come back in order.

    pip install ".[distributed]"
    python examples/score_daft.py --model runs/quickstart/model --input reviews.csv --output labels.parquet \\
        --workers 2
    python examples/score_daft.py ... --input "s3://bucket/*.parquet" --workers 32 --ray ray://head:10001

1. Daft streams CSV, TSV, JSONL or Parquet from a disk or an object store, and hands batches of `--batch_rows`
   to workers. Each is a process that has loaded the model once; sorting by length and rebatching work inside
   a batch. The threads of the machine are shared out.
2. Results are the columns of `--keep`, and label, score, exit_layer, error, in shards as in score_file.py.
3. When a worker dies, what is missing is labelled anew, up to `--max_retries` times. What came back is kept:
   no row is lost, and none is there twice.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from support import installed  # noqa: F401
from support.labelling import RESULTS, Labeller
from support.row_source import csv_settings, files_of, kind_of, open_rows
from support.scoring_run import WorkerArguments, run
from transformers import HfArgumentParser

try:
    import daft
except ModuleNotFoundError as error:
    raise SystemExit(f"Daft is not installed: pip install 'romebert[distributed]' ({error}).") from None

EXAMPLES = str(Path(__file__).parent)  # which workers need on their path
NO_LIMIT = 2**62  # rows; Daft takes an offset with a limit alone


@dataclass
class ScoreDaftArguments(WorkerArguments):
    """What is scored, by how many workers, and where the results go."""

    max_retries: int = field(default=3, metadata={"help": "How often what a dead worker had is done anew."})


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(ScoreDaftArguments).parse_args_into_dataclasses(argv)
    arguments.check()
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [EXAMPLES, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    )
    if arguments.ray:
        import ray

        ray.init(arguments.ray, runtime_env={"working_dir": EXAMPLES})
        daft.set_runner_ray()
    files = files_of(arguments.input)
    source = open_rows(arguments.input, arguments.columns)
    rows = read(files, arguments)

    def labelled(done: int) -> Iterator[pa.Table]:
        """Rows with labels, from one on; where a worker dies, from the first that did not come back."""
        for attempt in range(arguments.max_retries + 1):
            try:
                left = rows.offset(done).limit(NO_LIMIT) if done else rows
                for batch in with_labels(left, arguments).to_arrow_iter():
                    done += len(batch)
                    yield pa.Table.from_batches([batch])
                return
            except (RuntimeError, daft.exceptions.DaftCoreException) as error:
                if attempt == arguments.max_retries or "process" not in str(error):
                    raise
                print(f"A worker died behind row {done:,}; going on there with new ones. ({error})")

    settings = arguments.settings(source.identity, arguments.engine(daft=daft.__version__))
    run(arguments, settings, labelled, source.total)


def read(files: list[str], arguments: ScoreDaftArguments) -> Any:
    """The input as a frame, lazily: the columns that are used."""
    kind = kind_of(files[0])
    if kind == "parquet":
        frame = daft.read_parquet(files)
    elif kind == "json":
        frame = daft.read_json(files)
    else:
        settings = csv_settings(f"--input {arguments.input}", files[0])
        schema = {name: daft.DataType.string() for name in settings["features"]}
        frame = daft.read_csv(files, infer_schema=False, schema=schema, delimiter=settings["sep"])
    return frame.select(*arguments.columns)


def with_labels(rows: Any, arguments: ScoreDaftArguments) -> Any:
    """A frame -> the columns to keep, with those of the results."""
    label = labeller_of(arguments)
    columns = [daft.col(arguments.text_column)]
    if arguments.pair_column:
        columns.append(daft.col(arguments.pair_column))
    results = rows.with_column("results", label(*columns))
    fields = [daft.col("results")[name].alias(name) for name in RESULTS.names]
    return results.select(*arguments.keep, *fields)


def labeller_of(arguments: ScoreDaftArguments) -> Any:
    """The labeller as a function of Daft on columns, which opens the model where it runs."""
    fields = {field.name: daft.DataType.from_arrow_type(field.type) for field in RESULTS}

    @daft.cls(use_process=True, max_concurrency=arguments.workers)
    class Label:
        def __init__(self, *settings: Any):
            self.label = Labeller(*settings)

        @daft.method.batch(return_dtype=daft.DataType.struct(fields), batch_size=arguments.batch_rows)
        def __call__(self, *columns: daft.Series) -> daft.Series:
            results = self.label(*(column.to_pylist() for column in columns))
            return daft.Series.from_arrow(results.to_struct_array().combine_chunks())

    return Label(
        arguments.model,
        arguments.exit_threshold,
        arguments.batch_tokens,
        arguments.dtype,
        arguments.threads_each,
    )


if __name__ == "__main__":
    main()
