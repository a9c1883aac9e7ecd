"""Evaluation of every exit with what a stock `Trainer` takes for a model's only one: `compute_metrics` and
`preprocess_logits_for_metrics`.

The evaluation loop stays the library's. It carries the predictions of all exits in a `PerExit`, which it
gathers, pads and concatenates like any other tuple; here each function is called exit by exit, and what the
exits say is put side by side.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from accelerate.utils import find_device, send_to_device
from transformers import EvalPrediction
from transformers.trainer_utils import denumpify_detensorize


class PerExit(tuple):
    """What each exit predicts, the first one first: each entry is what a model with that exit alone would
    give.
    """


def at_exit(predictions: Any, index: int) -> Any:
    """The predictions of one exit, of a `PerExit`, of a list of them (one per batch), or of `None`."""
    if isinstance(predictions, list):
        return [of_batch[index] for of_batch in predictions]
    return None if predictions is None else predictions[index]


def for_each_exit(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one exit's predictions (and more) -> the same, called for each exit where it is given a
    `PerExit`.

    Example:
        >>> for_each_exit(max)(PerExit([(1, 2), (4, 3)]))
        (2, 4)
    """

    def of_each(data: Any, *args: Any) -> Any:
        return (
            PerExit(function(of_exit, *args) for of_exit in data)
            if isinstance(data, PerExit)
            else function(data, *args)
        )

    return of_each


class ExitMetrics:
    """A `compute_metrics` for one exit -> the `compute_metrics` for all exits, during one evaluation.

    With `batch_eval_metrics` the metric keeps a state of its own from batch to batch, which must not mix
    exits. So the last exit's batches are passed on as they come, as for a stock model; those of the other
    exits wait in host memory until the metric has given its result and started anew, and then follow exit by
    exit, from the first batch to the result.

    Args:
        metric: as the stock `Trainer` takes it. It may change what it is given: every exit gets its own copy.
        exit_layers: of the model.

    Example:
        >>> total = lambda prediction: {"sum": prediction.predictions.sum()}
        >>> metrics = ExitMetrics(total, exit_layers=[2, 4])
        >>> metrics(EvalPrediction(PerExit([np.array([1.0]), np.array([3.0])]), np.array([0])))
        {'sum': 3.0, 'sum_exit_2': 1.0, 'sum_exit_4': 3.0, 'sum_mean': 2.0}
    """

    def __init__(self, metric: Callable[..., Any], exit_layers: Sequence[int]) -> None:
        self.metric, self.exit_layers = metric, exit_layers
        self._batches: list[EvalPrediction] = []

    def __call__(self, prediction: EvalPrediction, **batch: bool) -> dict[str, Any]:
        """Predictions of every exit -> figures, see `figures_of_all_exits`.

        `compute_result` comes with batches only.
        """
        if batch:
            return self._add_batch(prediction, **batch)
        per_exit = [self.metric(_of_exit(prediction, exit)) for exit in range(len(self.exit_layers))]
        return figures_of_all_exits(per_exit, self.exit_layers)

    def _add_batch(self, prediction: EvalPrediction, compute_result: bool) -> dict[str, Any]:
        of_last = self.metric(_of_exit(prediction, -1), compute_result=compute_result)
        *early, _ = prediction.predictions
        self._batches.append(_on_device(prediction, PerExit(early), "cpu"))
        if not compute_result:
            return {}
        device, batches = find_device(prediction.predictions), self._batches
        self._batches = []
        per_exit = []
        for exit in range(len(self.exit_layers) - 1):
            for number, batch in enumerate(batches, start=1):
                of_exit = _on_device(batch, batch.predictions[exit], device)
                result = self.metric(of_exit, compute_result=number == len(batches))
            per_exit.append(result)
        # The stock loop takes a result that is None for no figures, from batches.
        return figures_of_all_exits(
            [{} if result is None else result for result in (*per_exit, of_last)], self.exit_layers
        )


def _of_exit(prediction: EvalPrediction, index: int) -> EvalPrediction:
    predictions = at_exit(prediction.predictions, index)
    return EvalPrediction(
        predictions, *copy.deepcopy((prediction.label_ids, prediction.inputs, prediction.losses))
    )


def _on_device(batch: EvalPrediction, predictions: Any, device: Any) -> EvalPrediction:
    """A copy, since a `BatchEncoding` moves in place; on no particular device without tensors."""
    parts = copy.deepcopy((predictions, batch.label_ids, batch.inputs, batch.losses))
    return EvalPrediction(*(parts if device is None else send_to_device(parts, device)))


def figures_of_all_exits(per_exit: Sequence[Any], exit_layers: Sequence[int]) -> dict[str, Any]:
    """What a metric says of each exit -> the last exit's figures by their own names, each exit's as
    `{name}_exit_{layer}`, and as `{name}_mean` the mean over exits of what is a number at all of them.

    Exits may differ in what they report, as a report by class does that knows the predicted classes only. A
    name that the metric gave goes before one made here.

    Raises:
        TypeError: the metric returned something else than a dict.

    Example:
        >>> figures_of_all_exits([{"f1": 0.5}, {"f1": 1.0}], exit_layers=[1, 2])
        {'f1': 1.0, 'f1_exit_1': 0.5, 'f1_exit_2': 1.0, 'f1_mean': 0.75}
    """
    for layer, returned in zip(exit_layers, per_exit, strict=True):
        if not isinstance(returned, Mapping):
            raise TypeError(
                f"compute_metrics returned {returned!r} for the exit after layer {layer}; it returns a dict"
                " of names and values, as in {'accuracy': 0.9} (an empty one for none)."
            )
    *early, last = (denumpify_detensorize(dict(returned)) for returned in per_exit)
    figures = dict(last)
    for name in dict.fromkeys(name for returned in (last, *early) for name in returned):
        values = {
            layer: returned[name]
            for layer, returned in zip(exit_layers, (*early, last), strict=True)
            if name in returned
        }
        for layer, value in values.items():
            figures.setdefault(f"{name}_exit_{layer}", value)
        if len(values) == len(exit_layers) and all(_is_number(value) for value in values.values()):
            figures.setdefault(f"{name}_mean", float(np.mean(list(values.values()))))
    return figures


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
