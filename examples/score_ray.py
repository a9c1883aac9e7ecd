"""As score_file.py, by the actors of Ray Data: on this machine, or on a cluster that runs already.

    pip install ".[distributed]"
    python examples/score_ray.py --model runs/quickstart/model --input reviews.csv --output labels.parquet \\
        --workers 2
    python examples/score_ray.py ... --input "s3://bucket/*.parquet" --workers 32 --ray ray://head:10001

1. Ray reads CSV, TSV, JSONL or Parquet, and hands batches of `--batch_rows` to actors. Each has loaded the
   model once; sorting by length and rebatching work inside a batch. Actors share the machine's threads.
2. Results come back in order: the columns of `--keep`, and label, score, exit_layer, error, in one file.
3. When a worker dies, Ray starts another and gives it what the dead one had: no row is lost, and none is
   there twice. A run whose program dies begins anew; score_daft.py goes on.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
from support import installed  # noqa: F401
from support.labelling import Labeller
from support.row_source import csv_settings, files_of, kind_of, open_rows
from support.scoring_run import WorkerArguments, run, with_labels
from transformers import HfArgumentParser

# Ray says it for every actor otherwise.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
try:
    import ray
    import ray.data
except ModuleNotFoundError as error:
    raise SystemExit(f"Ray is not installed: pip install 'romebert[distributed]' ({error}).") from None

EXAMPLES = str(Path(__file__).parent)  # which workers need on their path


class LabelRows:
    """The labeller as Ray Data holds it: tables in, tables out."""

    def __init__(self, arguments: WorkerArguments, threads: int):
        self.arguments = arguments
        self.label = Labeller(
            arguments.model, arguments.exit_threshold, arguments.batch_tokens, arguments.dtype, threads
        )

    def __call__(self, rows: pa.Table) -> pa.Table:
        pair = [self.arguments.pair_column] if self.arguments.pair_column else []
        columns = (rows[name].to_pylist() for name in (self.arguments.text_column, *pair))
        return with_labels(rows, self.label(*columns), self.arguments.keep)


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(WorkerArguments).parse_args_into_dataclasses(argv)
    arguments.check()
    files = files_of(arguments.input)
    source = open_rows(arguments.input, arguments.columns)
    settings = arguments.settings(source.identity, arguments.engine(ray=ray.__version__))

    def labelled(done: int) -> Iterator[pa.Table]:
        rows = read(files, arguments).map_batches(
            LabelRows,
            fn_constructor_args=(arguments, arguments.threads_each),
            batch_size=arguments.batch_rows,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=arguments.workers),
            num_cpus=1,
        )
        yield from rows.iter_batches(batch_size=None, batch_format="pyarrow")

    def score() -> None:
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False  # there is one
        run(arguments, settings, labelled, source.total, resumes=False)

    if ray.is_initialized():  # as by a program that calls this
        score()
        return
    path = os.pathsep.join([EXAMPLES, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    where: dict[str, Any] = {"address": arguments.ray, "runtime_env": {"working_dir": EXAMPLES}}
    if not arguments.ray:
        where = {"num_cpus": arguments.workers + 1, "include_dashboard": False}
        where["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
    with ray.init(**where, log_to_driver=False):
        score()


def read(files: list[str], arguments: WorkerArguments) -> Any:
    """The input as a dataset of Ray, lazily: the columns that are used."""
    kind = kind_of(files[0])
    if kind == "parquet":
        return ray.data.read_parquet(files, columns=arguments.columns)
    if kind == "json":
        return ray.data.read_json(files).select_columns(arguments.columns)
    settings = csv_settings(f"--input {arguments.input}", files[0])
    names = list(settings["features"])
    as_text = pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    parse = pa_csv.ParseOptions(delimiter=settings["sep"], newlines_in_values=True)
    found = ray.data.read_csv(files, convert_options=as_text, parse_options=parse)
    return found.select_columns(arguments.columns)


if __name__ == "__main__":
    main()
