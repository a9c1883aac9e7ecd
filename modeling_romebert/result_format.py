"""Logits and exit layers -> results for people: label, score and exit layer, in the order of the texts."""

from typing import Any

import torch
from torch import Tensor
from transformers.pipelines.text_classification import ClassificationFunction, sigmoid, softmax

from .configuration_romebert import ProblemType
from .text_batcher import Window


class ResultFormat:
    """Logits and exit layers of many texts -> results, as the stock pipeline has them, with `exit_layer`.

    See `score`.
    """

    def __init__(
        self, config: Any, function_to_apply: str | ClassificationFunction | None, top_k: int | str | None
    ):
        if isinstance(top_k, str) and top_k != "best":
            raise ValueError(f'top_k={top_k!r}: give "best", a number of labels, or None for all.')
        if isinstance(function_to_apply, str):
            if function_to_apply.upper() not in ClassificationFunction.__members__:
                choices = ", ".join(name.lower() for name in ClassificationFunction.__members__)
                raise ValueError(
                    f"function_to_apply={function_to_apply!r} is unknown; choose from {choices}."
                )
            function_to_apply = ClassificationFunction[function_to_apply.upper()]
        if function_to_apply is None:
            if config.problem_type == ProblemType.REGRESSION:
                function_to_apply = ClassificationFunction.NONE
            elif config.problem_type == ProblemType.MULTI_LABEL or config.num_labels == 1:
                function_to_apply = ClassificationFunction.SIGMOID
            else:
                function_to_apply = ClassificationFunction.SOFTMAX
        self.function, self.top_k = function_to_apply, top_k
        self.labels = [config.id2label[index] for index in range(config.num_labels)]

    def __call__(self, logits: Tensor, exit_layer: Tensor) -> list[Any]:
        """logits (N, C), exit_layer (N,) -> N results."""
        scores = logits.float().cpu().numpy()  # (N, C); half precision has no numpy
        if self.function is not ClassificationFunction.NONE:
            scores = sigmoid(scores) if self.function is ClassificationFunction.SIGMOID else softmax(scores)
        layers = exit_layer.tolist()
        if self.top_k == "best":
            best = zip(scores.argmax(axis=-1).tolist(), scores.max(axis=-1).tolist(), layers, strict=True)
            return [
                {"label": self.labels[index], "score": score, "exit_layer": layer}
                for index, score, layer in best
            ]
        ordered = torch.from_numpy(scores).sort(dim=-1, descending=True, stable=True)
        values, indices = ordered.values[:, : self.top_k].tolist(), ordered.indices[:, : self.top_k].tolist()
        return [
            [
                {"label": self.labels[i], "score": score, "exit_layer": layer}
                for i, score in zip(of_row, row, strict=True)
            ]
            for of_row, row, layer in zip(indices, values, layers, strict=True)
        ]

    def of_window(self, window: Window, logits: Tensor, exit_layer: Tensor) -> list[Any]:
        """logits (N, C) and exit_layer (N,) of a window's rows -> N results, with what stands for rows that
        failed.
        """
        results = self(logits, exit_layer)
        for row, error in window.errors.items():
            reason = str(error_at(window.position(row), error))
            failed = {"label": None, "score": None, "exit_layer": None, "error": reason}
            results[row] = failed if self.top_k == "best" else [failed]
        return results


def error_at(position: int, error: Exception) -> Exception:
    """What is wrong with one text, told with its position."""
    return type(error)(f"text {position}: {error}")
