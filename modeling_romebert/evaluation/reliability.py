"""How far probabilities can be trusted, and how well they rank: reliability, ECE and AURC per exit.

What exits save depends on ranking, whether surer answers are righter, more than on calibration error
(arXiv 2508.21495): a temperature changes ECE and leaves the ranking at an exit alone. It does make one
threshold mean the same at all exits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..configuration_romebert import ProblemType
from .drawing import new_figure

BINS = 10


@dataclass(frozen=True)
class ExitReliability:
    """One exit: its temperature, and how its confidences compare with its accuracy, before and after."""

    layer: int
    accuracy: float
    temperature: float  # logits over this have the least log loss
    ece: float  # expected calibration error, over `BINS` bins of equal width
    ece_scaled: float
    aurc: float  # area under risk over coverage, 0 is best
    bins: list[tuple[float, float, int]]  # mean confidence, accuracy and rows of each bin that has any


def reliability(exit_logits: Tensor, labels: Any, exit_layers: Sequence[int]) -> list[ExitReliability]:
    """Exit logits of single-label rows -> how reliable each exit is.

    Args:
        exit_logits: (N, E, C).
        labels: (N,) class ids.

    Example:
        >>> logits = torch.tensor([[[4.0, 0.0]], [[3.0, 0.0]], [[0.0, 1.0]], [[2.0, 0.0]]])
        >>> found = reliability(logits, [0, 0, 0, 0], [1])[0]  # the least sure is the only wrong one
        >>> found.accuracy, found.aurc
        (0.75, 0.0625)
    """
    targets = np.asarray(labels)
    found = []
    for layer, logits in zip(exit_layers, exit_logits.float().unbind(1), strict=True):
        temperature = fit_temperature(logits, torch.as_tensor(targets))
        right = logits.argmax(-1).numpy() == targets
        sure = logits.softmax(-1).amax(-1).numpy()
        scaled = (logits / temperature).softmax(-1).amax(-1).numpy()
        found.append(
            ExitReliability(
                layer=layer,
                accuracy=float(right.mean()),
                temperature=temperature,
                ece=_ece(sure, right),
                ece_scaled=_ece(scaled, right),
                aurc=aurc(sure, right),
                bins=_bins(sure, right),
            )
        )
    return found


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature of least log loss (Guo et al. 2017), found by golden section on its logarithm.

    Args:
        logits: (N, C).
        labels: (N,).
    """

    def loss(log_temperature: float) -> float:
        scaled = logits.double() / np.exp(log_temperature)
        return float(torch.nn.functional.cross_entropy(scaled, labels.long()))

    low, high, ratio = np.log(0.05), np.log(20.0), (5**0.5 - 1) / 2
    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))


def fit_scale(exit_logits: Tensor, labels: Any, problem_type: str) -> tuple[Tensor, NDArray[np.int64]]:
    """Fit the temperature of every exit on a fifth of the rows, always the same.

    Args:
        exit_logits: (N, E, C).
        labels: (N,).

    Returns: Temperatures (E,), and the indices of the rows that were not used.

    Raises:
        ValueError: there are no labels, or not one class per row, or fewer than ten rows.
    """
    if labels is None or problem_type != ProblemType.SINGLE_LABEL or len(labels) < 10:
        raise ValueError(
            "temperature=True needs ten rows or more, each with the label of one class, to fit temperatures"
            " on: give such rows, or leave it out."
        )
    order = np.random.default_rng(0).permutation(len(labels))
    fit, rest = order[: len(labels) // 5], np.sort(order[len(labels) // 5 :])
    targets = torch.as_tensor(np.asarray(labels)[fit])
    return torch.tensor([fit_temperature(one[fit], targets) for one in exit_logits.unbind(1)]), rest


@torch.no_grad()
def scale_exits(model: Any, temperatures: Tensor) -> None:
    """Divide the logits of every exit by its temperature, in the weights: no answer changes."""
    for head, temperature in zip(model.exits.values(), temperatures.tolist(), strict=True):
        head.classifier.weight.div_(temperature)
        head.classifier.bias.div_(temperature)


def aurc(sure: NDArray[Any], right: NDArray[Any]) -> float:
    """Area under the risk-coverage curve: the error among the surest rows, averaged over how many."""
    ordered = ~right[np.argsort(-sure, kind="stable")]
    return float(np.mean(np.cumsum(ordered) / np.arange(1, len(ordered) + 1)))


def _bins(sure: NDArray[Any], right: NDArray[Any]) -> list[tuple[float, float, int]]:
    index = np.minimum((sure * BINS).astype(int), BINS - 1)
    within = [index == one for one in np.unique(index)]
    return [(float(sure[rows].mean()), float(right[rows].mean()), int(rows.sum())) for rows in within]


def _ece(sure: NDArray[Any], right: NDArray[Any]) -> float:
    return float(
        sum(abs(mean - rate) * count for mean, rate, count in _bins(sure, right)) / max(len(sure), 1)
    )


def reliability_table(found: Sequence[ExitReliability]) -> str:
    """The exits as Markdown."""
    lines = [
        "| exit after layer | accuracy | AURC | ECE | temperature | ECE with it |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.layer} | {one.accuracy:.4f} | {one.aurc:.4f} | {one.ece:.4f} | {one.temperature:.2f} |"
        f" {one.ece_scaled:.4f} |"
        for one in found
    ]
    return "\n".join(lines)


def plot_reliability(found: Sequence[ExitReliability], path: Any) -> None:
    """Draw accuracy over confidence, one line per exit.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, axes = new_figure(5, 5)
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    for one in found:
        confidence, accuracy, _ = zip(*one.bins, strict=True)
        axes.plot(confidence, accuracy, "o-", label=f"layer {one.layer}")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="upper left", fontsize="small")
    figure.savefig(path, dpi=150)
