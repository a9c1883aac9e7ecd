"""What does a training step cost? Time and peak memory of each objective, as ratios to plain joint training.

    python examples/benchmarks/training_cost.py  # about ten minutes on two cores
    python examples/benchmarks/training_cost.py --batch_size 32 --device cuda
    python examples/benchmarks/training_cost.py --shapes 6x384 --lengths 32 --rounds 20 --output mine.json

Steps are those of `RomeBertTrainer.train`, from the moment their batch is at hand until the weights have
moved: loss, backward, clipping, optimizer. BERTs of random weights, rows without padding, an exit after every
layer. The two-stage baseline takes one step of each stage. The sides take turns within every round; figures
are medians over rounds, ratios those within rounds.

Peak memory is what lives at one time beyond weights and optimizer state: activations, gradients, temporaries.
It is measured in a round of its own, on a CPU from the allocations that the profiler records. All sides of a
shape are held at once, each with its
weights and optimizer state: about 9 GB at 12 x 768.

Results are written after each shape and length; a run that was stopped goes on with those that are missing.
"""

import gc
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces each start and stop, and
os.environ.setdefault(
    "TORCH_CPP_LOG_LEVEL", "ERROR"
)  # memory from before its start; read when torch is imported

sys.path.append(str(Path(__file__).parents[1]))  # examples/
import support.installed  # noqa: F401

# isort: split

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm.auto import tqdm
from transformers import BertConfig, HfArgumentParser, PrinterCallback, TrainerCallback, set_seed

from benchmarks.layers import ratio
from modeling_romebert import (
    RomeBertConfig,
    RomeBertForSequenceClassification,
    RomeBertTrainer,
    RomeBertTrainingArguments,
)
from modeling_romebert.evaluation.provenance import provenance, read_json, write_json
from modeling_romebert.training.objectives import OBJECTIVES
from modeling_romebert.training.training_run import shared_weights

HEADS = 12
SIDES: dict[str, dict[str, str]] = {
    "last": {"objective": "last"},
    "joint": {"objective": "joint"},
    "romebert, off": {"objective": "romebert", "gradient_regularization": "off"},
    "romebert, protect_exits": {"objective": "romebert", "gradient_regularization": "protect_exits"},
    "romebert, protect_last": {"objective": "romebert", "gradient_regularization": "protect_last"},
    "deebert": {"objective": "deebert"},
}
STAGES = ("deebert, stage 1", "deebert, stage 2")
ROMEBERT = tuple(name for name in SIDES if name.startswith("romebert"))
PROJECTED = ROMEBERT[1:]
NAMES = {
    "last": "last exit alone",
    "joint": "joint",
    "romebert, off": "RomeBERT, no projection",
    "romebert, protect_exits": "RomeBERT, exits protected",
    "romebert, protect_last": "RomeBERT, last protected",
    "deebert, stage 1": "DeeBERT, stage 1",
    "deebert, stage 2": "DeeBERT, stage 2",
}


@dataclass
class TrainingBenchmarkArguments:
    """What is measured, and how long."""

    shapes: list[str] = field(
        default_factory=lambda: ["12x384", "12x768"], metadata={"help": "Encoders: LAYERSxHIDDEN."}
    )
    lengths: list[int] = field(default_factory=lambda: [64, 128], metadata={"help": "Tokens in each row."})
    batch_size: int = field(default=8, metadata={"help": "Rows of a step; 8 is the paper's."})
    rounds: int = field(default=5, metadata={"help": "Timed rounds; every side takes a step in each."})
    device: Literal["auto", "cpu", "cuda"] = field(
        default="auto", metadata={"help": "auto: the GPU where there is one."}
    )
    threads: int | None = field(
        default=None, metadata={"help": "CPU threads; torch's own choice when left out."}
    )
    output: str = field(
        default="runs/benchmark-training.json", metadata={"help": "JSON to write, and to go on from."}
    )


class GradientBytes(NamedTuple):
    """Size of one gradient of all weights, and of one of the shared weights."""

    all: int
    shared: int


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(TrainingBenchmarkArguments).parse_args_into_dataclasses(argv)
    wanted = [(*parse_shape(shape), length) for shape in arguments.shapes for length in arguments.lengths]
    device = choose_device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = {
        "batch_size": arguments.batch_size,
        "rounds": arguments.rounds,
        "device": device,
        **provenance(),
    }
    if device == "cpu":
        settings["machine"]["accelerator"] = None  # there may be one, but these figures are not of it
    results = earlier_results(arguments.output, settings)
    for layers, hidden_size, length in wanted:
        title = f"{layers} x {hidden_size}, {length} tokens"
        if any(
            (run["layers"], run["hidden_size"], run["length"]) == (layers, hidden_size, length)
            for run in results["runs"]
        ):
            print(f"{title}: measured earlier, see {arguments.output}")
            continue
        seconds, peaks, gradients = measure(
            layers, hidden_size, length, arguments.batch_size, arguments.rounds, device, title
        )
        run = {
            "layers": layers,
            "hidden_size": hidden_size,
            "length": length,
            **summary(seconds, peaks, gradients),
        }
        results["runs"] = sorted(
            [*results["runs"], run], key=lambda run: (run["layers"], run["hidden_size"], run["length"])
        )
        write_json(arguments.output, results)
    print(f"\n{table(results)}\n\nResults are in {arguments.output}.")


def parse_shape(shape: str) -> tuple[int, int]:
    """ "12x384" -> (12, 384)

    Raises:
        SystemExit: it does not read like that, or does not divide among the heads.
    """
    layers, _, hidden_size = shape.partition("x")
    if not (layers.isdecimal() and hidden_size.isdecimal() and int(layers) > 1 and int(hidden_size) > 0):
        raise SystemExit(f"--shapes {shape}: give LAYERSxHIDDEN with two layers or more, such as 12x384.")
    if int(hidden_size) % HEADS:
        raise SystemExit(
            f"--shapes {shape}: the hidden size is divided among {HEADS} heads; give a multiple of {HEADS}."
        )
    return int(layers), int(hidden_size)


def choose_device(asked: str) -> str:
    """`auto`, `cpu` or `cuda` -> `cpu` or `cuda`."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no GPU here; use --device cpu.")
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def earlier_results(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What the file holds, to go on from; without a file, the settings and no runs.

    Raises:
        SystemExit: the file was made with other settings, versions or another machine.
    """
    if not Path(path).is_file():
        return {**settings, "runs": []}
    earlier = read_json(path)
    differ = [name for name in settings if name != "date" and earlier.get(name) != settings[name]]
    if differ:
        changes = ", ".join(f"{name}: was {earlier.get(name)!r}, is {settings[name]!r}" for name in differ)
        raise SystemExit(
            f"{path} holds figures that do not go with these ({changes}). Choose another --output, or"
            " delete it."
        )
    return earlier


# ---- measuring


class Meter(TrainerCallback):
    """Seconds, or peak bytes, of each step of a training."""

    def __init__(self, device: str):
        self.device = device
        self.of_memory = False
        self.readings: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        if self.of_memory and self.device == "cpu":
            self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.profiler.start()
        elif self.of_memory:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.before = self._now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if self.of_memory and self.device == "cpu":
            self.profiler.stop()
            self.readings.append(peak_bytes(trace_events(self.profiler)))
        elif self.of_memory:
            self.readings.append(torch.cuda.max_memory_allocated() - self.before)
        else:
            self.readings.append(self._now() - self.before)

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def trace_events(profiler: profile) -> list[dict[str, Any]]:
    """What a profiler recorded, as in the trace file that it writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_text(encoding="utf-8"))["traceEvents"]


def peak_bytes(events: list[dict[str, Any]]) -> int:
    """Events of a profiler's trace -> the most bytes that were allocated in it and alive at one time."""
    alive = [
        event["args"]
        for event in sorted(events, key=lambda event: event.get("ts", 0))
        if event.get("name") == "[memory]"
    ]
    if not alive:
        return 0
    before = alive[0]["Total Allocated"] - alive[0]["Bytes"]
    return max(event["Total Allocated"] for event in alive) - before


def make_trainer(
    side: dict[str, str],
    layers: int,
    hidden_size: int,
    length: int,
    batch_size: int,
    device: str,
    folder: str,
) -> tuple[RomeBertTrainer, Meter]:
    """A trainer whose `train` takes one step (one in each stage) on one batch, and what measures it."""
    set_seed(0)  # the same weights and tokens for all sides
    encoder = BertConfig(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=max(512, length),
    )
    model = RomeBertForSequenceClassification(RomeBertConfig(encoder, num_labels=2))
    ids = torch.randint(encoder.vocab_size, (batch_size, length))  # (B, T)
    rows = [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": index % 2}
        for index, row in enumerate(ids)
    ]
    arguments = RomeBertTrainingArguments(
        folder,
        **side,
        max_steps=1,
        per_device_train_batch_size=batch_size,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=device == "cpu",
    )
    meter = Meter(device)
    trainer = RomeBertTrainer(model, arguments, train_dataset=rows, callbacks=[meter])
    trainer.remove_callback(PrinterCallback)
    return trainer, meter


def measure(
    layers: int, hidden_size: int, length: int, batch_size: int, rounds: int, device: str, title: str
) -> tuple[dict[str, list[float]], dict[str, int], GradientBytes]:
    """Seconds of every step in each round, their peak bytes, and the size of the gradients.

    The first round, which makes the optimizer's state, is not counted; the second one is of memory.
    """
    gc.collect()  # what earlier trainers hold, they hold in cycles
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            name: make_trainer(side, layers, hidden_size, length, batch_size, device, folder)
            for name, side in SIDES.items()
        }
        for turn in tqdm(range(-2, rounds), desc=title):
            for name, (trainer, meter) in sides.items():
                meter.readings, meter.of_memory = [], turn == -1
                trainer.train()
                stages = STAGES if len(OBJECTIVES[SIDES[name]["objective"]].stages) > 1 else (name,)
                for step, reading in zip(stages, meter.readings, strict=True):
                    if turn == -1:
                        peaks[step] = int(reading)
                    elif turn >= 0:
                        seconds.setdefault(step, []).append(reading)
        model = sides["joint"][0].model
        of_all, of_shared = (
            sum(weight.nbytes for weight in weights)
            for weights in (model.parameters(), shared_weights(model))
        )
    return seconds, peaks, GradientBytes(of_all, of_shared)


# ---- figures


def summary(
    seconds: dict[str, list[float]], peaks: dict[str, int], gradients: GradientBytes
) -> dict[str, Any]:
    """Measurements of one shape and length -> the figures in the results file.

    `over_deebert` is a whole fine-tuning against the two stages with as many epochs each: one step against
    one of each stage. `extra_bytes` is what the projection adds to the peak, `bound_bytes` one gradient of
    all weights and one of the shared ones.
    """
    both_stages = [sum(steps) for steps in zip(*(seconds[stage] for stage in STAGES), strict=True)]
    return {
        "steps": {
            step: {
                "seconds": statistics.median(of_step),
                "seconds_in_each_round": of_step,
                "over_joint": ratio(of_step, seconds["joint"]),
                "peak_bytes": peaks[step],
            }
            for step, of_step in seconds.items()
        },
        "over_deebert": {name: ratio(seconds[name], both_stages) for name in ROMEBERT},
        "projection": {
            "gradient_bytes": gradients.all,
            "shared_gradient_bytes": gradients.shared,
            "extra_bytes": {name: peaks[name] - peaks["romebert, off"] for name in PROJECTED},
            "bound_bytes": gradients.all + gradients.shared,
        },
    }


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown, a column for each shape and length: time, whole fine-tunings, memory."""
    runs = results["runs"]
    header = [f"{run['layers']} x {run['hidden_size']}, {run['length']} tokens" for run in runs]
    steps, projections = [run["steps"] for run in runs], [run["projection"] for run in runs]
    time_rows = [
        ["joint, seconds", *(f"{of['joint']['seconds']:.3g}" for of in steps)],
        *([NAMES[step], *(f"{of[step]['over_joint']['median']:.2f}" for of in steps)] for step in NAMES),
    ]
    whole_rows = [
        [NAMES[name], *(f"{run['over_deebert'][name]['median']:.2f}" for run in runs)] for name in ROMEBERT
    ]
    memory_rows = [
        *([NAMES[step], *(mebibytes(of[step]["peak_bytes"]) for of in steps)] for step in NAMES),
        ["added by the projection", *(mebibytes(max(of["extra_bytes"].values())) for of in projections)],
        ["one gradient of all weights", *(mebibytes(of["gradient_bytes"]) for of in projections)],
        [
            "one gradient of the shared weights",
            *(mebibytes(of["shared_gradient_bytes"]) for of in projections),
        ],
    ]
    return "\n\n".join(
        [
            markdown(["time of a step / time of a joint step", *header], time_rows),
            markdown(["whole fine-tuning / both stages of DeeBERT", *header], whole_rows),
            markdown(["peak memory of a step, MiB", *header], memory_rows),
        ]
    )


def mebibytes(count: int) -> str:
    return f"{count / 2**20:.0f}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


if __name__ == "__main__":
    main()
