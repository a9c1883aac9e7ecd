"""Accuracy at every exit as a module of the `evaluate` library, which loads it from this file's path.

    import evaluate
    from modeling_romebert.evaluation import exit_accuracy

    metric = evaluate.load(exit_accuracy.__file__)
    metric.compute(predictions=exit_logits.argmax(-1), references=labels)
    # {"accuracy": 0.87, "exit_1": 0.80, ..., "mean": 0.85}

The library copies this file alone, so it imports nothing of this package.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

DESCRIPTION = "Accuracy of a multi-exit classifier: at every exit, of the last one, and their mean."
CITATION = """\
@article{geng2021romebert,
  title   = {RomeBERT: Robust Training of Multi-Exit BERT},
  author  = {Geng, Shijie and Gao, Peng and Fu, Zuohui and Zhang, Yongfeng},
  journal = {arXiv preprint arXiv:2101.09755},
  year    = {2021}
}
"""
INPUTS = """
Args:
    predictions: for each row the class that every exit answers, (N, E).
    references: the class of each row, (N,).

Returns: `accuracy`, that of the last exit; `exit_1` ... `exit_E`; and `mean` over exits.
"""


class ExitAccuracy(evaluate.Metric):  # type: ignore[misc, unused-ignore]
    """See the module's docstring."""

    def _info(self) -> Any:
        features = {
            "predictions": datasets.Sequence(datasets.Value("int32")),
            "references": datasets.Value("int32"),
        }
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(features),
            reference_urls=["https://arxiv.org/abs/2101.09755"],
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        right = np.asarray(predictions) == np.asarray(references)[:, None]  # (N, E)
        exits = [float(one) for one in right.mean(axis=0)]
        named = {f"exit_{number}": value for number, value in enumerate(exits, start=1)}
        return {"accuracy": exits[-1], **named, "mean": float(np.mean(exits))}
