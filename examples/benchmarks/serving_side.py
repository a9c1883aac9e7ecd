"""A side of serving.py as a server: examples/serve.py, or whole batches by LitServe's own dynamic batching,
behind the same gate and on the same engine.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # examples/

# isort: split
from dataclasses import dataclass, field
from typing import Any

import litserve as ls
import serve
from support.labelling import chosen_policy, open_classifier
from support.scoring_run import config_of
from support.serving_gate import PATH
from support.serving_metrics import ModelCounters
from support.serving_worker import DepthApi, ModelSettings
from transformers import HfArgumentParser

from modeling_romebert import ContinuousBatcher


@dataclass
class SideArguments(serve.ServeArguments):
    """As those of the server, and how it makes batches."""

    batching: str = field(default="continuous", metadata={"help": "continuous or whole."})
    full_depth: bool = field(default=False, metadata={"help": "Every text runs every layer."})
    batch_rows: int = field(default=32, metadata={"help": "Requests of a whole batch at most."})
    batch_seconds: float = field(default=0.005, metadata={"help": "That a whole batch waits for company."})


class WholeBatchApi(ls.LitAPI):
    """One text per request: a batch is gathered, run until its last text has left, and answered together."""

    def __init__(self, settings: ModelSettings, counters: ModelCounters, arguments: SideArguments):
        super().__init__(
            api_path=PATH, max_batch_size=arguments.batch_rows, batch_timeout=arguments.batch_seconds
        )
        self.settings, self.counters, self.full_depth = settings, counters, arguments.full_depth

    def setup(self, device: str) -> None:
        settings = self.settings
        self.model, self.tokenizer = open_classifier(settings.model, settings.dtype, settings.threads, device)
        policy = False if self.full_depth else chosen_policy(self.model.config, settings.exit_threshold)
        self.batcher = ContinuousBatcher(
            self.model, self.tokenizer, exit_policy=policy, batch_tokens=settings.batch_tokens
        )

    def decode_request(self, request):  # type: ignore[no-untyped-def]
        """An annotation would be read by FastAPI."""
        return request["inputs"]

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, texts: Any) -> Any:
        one_alone = isinstance(texts, (str, dict))
        texts = [texts] if one_alone else texts
        tickets, found = self.batcher.add(texts), dict[int, Any]()
        self.counters.joined(len(tickets))
        while len(self.batcher):
            found.update(self.batcher.step())
        results = [found[ticket] for ticket in tickets]
        for result in results:
            self.counters.exited(result["exit_layer"])
        self.counters.stepped(0)
        return results[0] if one_alone else results

    def unbatch(self, output: Any) -> Any:
        return output


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(SideArguments).parse_args_into_dataclasses(argv)
    _, exit_layers = config_of(arguments.model)
    counters, settings = ModelCounters(exit_layers), arguments.model_settings()
    if arguments.batching == "whole":
        api: Any = WholeBatchApi(settings, counters, arguments)
    else:
        api = DepthApi(settings, counters)
    serve.run_server(api, arguments, counters)


if __name__ == "__main__":
    main()
