"""A side of serving.py as a server: examples/serve.py, or the same with whole batches.

Those that wait when a batch ends make the next one, and are answered together when its last text has left.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # examples/

# isort: split
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import serve
from support.scoring_run import config_of
from support.serving_metrics import ModelCounters
from support.serving_worker import DepthApi, ModelSettings
from transformers import HfArgumentParser


@dataclass
class SideArguments(serve.ServeArguments):
    """As those of the server, and how it makes batches."""

    whole_batches: bool = field(default=False, metadata={"help": "Answer a batch as a whole."})
    full_depth: bool = field(default=False, metadata={"help": "Every text runs every layer."})


class WholeBatchApi(DepthApi):
    """Dynamic batching as it is usual: nobody joins a batch that runs, and nobody leaves before it ends."""

    def __init__(self, settings: ModelSettings, counters: ModelCounters, full_depth: bool):
        super().__init__(settings, counters)
        self.full_depth = full_depth

    def begin_anew(self) -> list[Any]:
        addresses = super().begin_anew()
        if self.full_depth:
            self._own = self._batcher.checked(False)
        return addresses

    def step(self) -> Iterator[tuple[Any, Any]]:
        answers: list[tuple[Any, Any]] = []
        while not self.is_idle:
            answers.extend(super().step())
        yield from answers


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(SideArguments).parse_args_into_dataclasses(argv)
    _, exit_layers = config_of(arguments.model)
    counters, settings = ModelCounters(exit_layers), arguments.model_settings()
    if arguments.whole_batches:
        api: DepthApi = WholeBatchApi(settings, counters, arguments.full_depth)
    else:
        api = DepthApi(settings, counters)
    serve.run_server(api, arguments, counters)


if __name__ == "__main__":
    main()
