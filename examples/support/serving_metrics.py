"""What a server tells of itself: shares per exit, queue and latency, as JSON and in the text format that
Prometheus reads.

The model runs in a process of its own (serving_worker.py). It counts in shared memory, the server reads.
"""

import multiprocessing
from collections.abc import Mapping
from typing import Any

from support.serving_gate import Limits, Traffic

JOINED, INSIDE, STEPS = range(3)  # places of counters that are no exits


class ModelCounters:
    """Numbers that the model's process writes, and others read.

    Args:
        exit_layers: of the model.
        layers: of the model; a text that ran them all has a cost of 1.
    """

    def __init__(self, exit_layers: list[int]):
        self.exit_layers = exit_layers
        # Spawned, not forked: the model's process is.
        self._values = multiprocessing.get_context("spawn").RawArray("Q", 3 + len(exit_layers))

    def exited(self, layer: int) -> None:
        """A text left after so many layers."""
        self._values[3 + self.exit_layers.index(layer)] += 1

    def joined(self, texts: int) -> None:
        """So many texts have come."""
        self._values[JOINED] += texts

    def stepped(self, inside: int) -> None:
        """Note how many texts are not answered yet after a step."""
        self._values[INSIDE], self._values[STEPS] = inside, self._values[STEPS] + 1

    def snapshot(self) -> dict[str, Any]:
        """All of them, as JSON."""
        counts = list(self._values[3:])
        total = sum(counts)
        run = sum(layer * count for layer, count in zip(self.exit_layers, counts, strict=True))
        return {
            "texts": self._values[JOINED],
            "answered": total,
            "inside": self._values[INSIDE],
            "steps": self._values[STEPS],
            "exits": dict(zip(map(str, self.exit_layers), counts, strict=True)),
            "exit_shares": {
                str(layer): count / total if total else 0.0
                for layer, count in zip(self.exit_layers, counts, strict=True)
            },
            "cost": run / (total * self.exit_layers[-1]) if total else None,
        }


def metrics(traffic: Traffic, limits: Limits, counters: ModelCounters) -> dict[str, Any]:
    """What `/metrics` gives as JSON: times in milliseconds, texts that the model has answered by exit."""
    return {
        "requests": {str(status): count for status, count in sorted(traffic.statuses.items())},
        "queue": {
            "under_way": traffic.under_way,
            "most": traffic.most_under_way,
            "limit": limits.requests,
        },
        "latency_ms": traffic.percentiles(),
        **counters.snapshot(),
    }


def as_prometheus(found: Mapping[str, Any]) -> str:
    """The same in the text format of Prometheus (version 0.0.4).

    Example:
        >>> found = {"requests": {"200": 3}, "queue": {"under_way": 1}, "latency_ms": None, "answered": 3}
        >>> print(as_prometheus({**found, "exits": {"1": 2, "2": 1}}).splitlines()[2])
        romebert_requests_total{status="200"} 3
    """
    latency = found["latency_ms"] or {}
    families = [
        ("requests_total", "counter", "Requests by status.", "status", found["requests"]),
        (
            "texts_total",
            "counter",
            "Texts answered, by the layers that they ran.",
            "exit_layer",
            found["exits"],
        ),
        (
            "requests_under_way",
            "gauge",
            "Requests that wait for an answer.",
            "",
            {"": found["queue"]["under_way"]},
        ),
        (
            "latency_seconds",
            "gauge",
            "Percentiles of the last answered requests.",
            "percentile",
            {name.removeprefix("p"): value / 1000 for name, value in latency.items()},
        ),
    ]
    lines = []
    for name, kind, help_text, label, values in families:
        lines += [f"# HELP romebert_{name} {help_text}", f"# TYPE romebert_{name} {kind}"]
        for key, value in values.items():
            lines.append(
                f'romebert_{name}{{{label}="{key}"}} {value}' if label else f"romebert_{name} {value}"
            )
    return "\n".join(lines) + "\n"
