"""A saved model -> a server that answers each text as soon as it is sure, while others go on.

    pip install ".[serve]"
    python examples/serve.py --model runs/quickstart/model  # http://127.0.0.1:8000
    curl -d '{"inputs": "A delight from start to finish."}' http://127.0.0.1:8000/classify

    POST /classify   {"inputs": TEXT or [TEXT, ...], "parameters": {"exit_threshold": ..., "truncation": ...}}
                     -> {"label", "score", "exit_layer"}, or a list of them; TEXT is a string, or for a pair
                     {"text": ..., "text_pair": ...}
    GET /health      200 when the model is there
    GET /metrics     shares per exit, queue, percentiles of latency, for Prometheus; /metrics.json as JSON

1. LitServe carries requests to the process of the model, where new texts join at the next layer and leave
   when they are sure (modeling_romebert.ContinuousBatcher).
2. What is beyond the limits below is refused with a reason. More than `--max_requests` at once are told to
   come again (503): nothing piles up.
3. SIGTERM and Ctrl-C stop taking requests, answer those that are there, and end.

The server listens to this machine alone unless `--host` says otherwise. The model may be a bundle of ONNX.
"""

import os
import signal
from dataclasses import dataclass, field
from typing import Any

import torch
from support import installed  # noqa: F401
from support.scoring_run import config_of
from support.serving_gate import PATH, Gate, Limits, Traffic
from support.serving_metrics import ModelCounters, as_prometheus, metrics
from transformers import HfArgumentParser

try:
    import litserve as ls
    from fastapi.responses import PlainTextResponse
except ModuleNotFoundError as error:
    raise SystemExit(f"The server needs litserve: pip install 'romebert[serve]' ({error}).") from None

from support.serving_worker import DepthApi, ModelSettings


@dataclass
class ServeArguments:
    """What is served, to whom, and within which limits."""

    model: str = field(
        default="runs/quickstart/model", metadata={"help": "Folder of a saved model, or of a bundle of ONNX."}
    )
    host: str = field(
        default="127.0.0.1", metadata={"help": "127.0.0.1, this machine alone; 0.0.0.0 or :: for all."}
    )
    port: int = field(default=8000, metadata={"help": "Port to listen on, from 1024."})
    exit_threshold: float | None = field(default=None, metadata={"help": "In place of the calibrated one."})
    threshold_limits: list[float] = field(
        default_factory=list,
        metadata={"help": "Lowest and highest threshold that a request may choose; none may when left out."},
    )
    max_requests: int = field(default=256, metadata={"help": "Requests under way at once."})
    max_texts: int = field(default=64, metadata={"help": "Texts of a request."})
    max_characters: int = field(default=20_000, metadata={"help": "Of a text."})
    max_body: int = field(default=2**20, metadata={"help": "Bytes of a request."})
    batch_tokens: int | None = field(default=None, metadata={"help": "Tokens that a layer runs on at once."})
    dtype: str | None = field(default=None, metadata={"help": "float32, bfloat16 or float16."})
    threads: int | None = field(
        default=None, metadata={"help": "CPU threads of the model; all but one when left out."}
    )

    def limits(self) -> Limits:
        """What the gate lets through.

        Raises:
            SystemExit: thresholds that are no limits.
        """
        thresholds = None
        if self.threshold_limits:
            if len(self.threshold_limits) != 2 or self.threshold_limits[0] > self.threshold_limits[1]:
                given = " ".join(f"{one:g}" for one in self.threshold_limits)
                raise SystemExit(f"--threshold_limits {given}: give the lowest and the highest.")
            thresholds = (self.threshold_limits[0], self.threshold_limits[1])
        return Limits(self.max_requests, self.max_body, self.max_texts, self.max_characters, thresholds)

    def model_settings(self) -> ModelSettings:
        # A thread that waits for a core holds up all others of the model, so one core is left to the server.
        threads = self.threads or max(1, torch.get_num_threads() - 1)
        return ModelSettings(self.model, self.exit_threshold, self.batch_tokens, self.dtype, threads)


def run_server(api: Any, arguments: ServeArguments, counters: ModelCounters) -> None:
    """Serve an API of LitServe behind the gate, with its metrics, until told to end."""
    limits, traffic = arguments.limits(), Traffic()
    server = ls.LitServer(
        api,
        timeout=False,  # the gate bounds what may wait,
        max_payload_size=None,  # and bodies; LitServe itself answers large ones with 500
        middlewares=[(Gate, {"limits": limits, "traffic": traffic})],
    )

    def found() -> dict[str, Any]:
        return metrics(traffic, limits, counters)

    server.app.add_api_route("/metrics", lambda: PlainTextResponse(as_prometheus(found())))
    server.app.add_api_route("/metrics.json", found)
    stop_when_told()
    address = f"http://{arguments.host}:{arguments.port}"
    print(f"{address}{PATH} answers as soon as {address}/health gives 200. Ctrl-C ends it.", flush=True)
    server.run(
        host=arguments.host,
        port=arguments.port,
        num_api_servers=1,  # in which the gate counts
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )


def stop_when_told() -> None:
    """Let SIGTERM end this process as Ctrl-C does, and those that it forks not at all: it tells them."""
    main_process = os.getpid()

    def stop(number: int, frame: Any) -> None:
        if os.getpid() == main_process:
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(ServeArguments).parse_args_into_dataclasses(argv)
    arguments.limits()
    try:
        _, exit_layers = config_of(arguments.model)
    except OSError as error:
        raise SystemExit(f"--model {arguments.model}: {error}") from None
    counters = ModelCounters(exit_layers)
    run_server(DepthApi(arguments.model_settings(), counters), arguments, counters)


if __name__ == "__main__":
    main()
