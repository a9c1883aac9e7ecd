"""How good each exit of a token classifier is, and what a policy saves: `evaluate_exits` for tokens.

cost = layers that tokens ran / (layers * tokens)
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.token_rows import read_token_rows
from ..exit_policies import POLICIES
from ..hub import weights_digest
from ..pretrained import inner_model
from .entities import marks_entities, token_scores
from .report import CurvePoint, ExitReport
from .sweep import policy_to_sweep
from .token_outcomes import Outcome, TokenOutcomes, labelled

Tags = Sequence[Sequence[str]]
TokenMetric = Callable[[Tags, Tags], float]
METRICS = ("f1", "precision", "recall", "accuracy")


def evaluate_token_exits(
    model: Any,
    dataset: Iterable[dict[str, Any]],
    tokenizer: Any,
    *,
    metric: str | TokenMetric | None = None,
    policy: str | dict[str, Any] = "entropy",
    thresholds: Sequence[float] | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> ExitReport:
    """As `evaluate_exits`, which calls this for a token classifier.

    Args:
        dataset: see `read_token_rows`.
        metric: "f1" (also the default where tags mark entities), "precision", "recall" of entities or
            "accuracy" of tags; or a function (predicted tags, tags) of texts -> one number.
        policy: with `"unit": "token"` the model runs anew at each threshold.
    """
    romebert = inner_model(model)
    find_token_metric(metric, romebert.config)  # what has no meaning fails here, before the model runs
    settings = policy_to_sweep(policy, romebert.config.exit_layers, romebert.problem_type)
    rows = read_token_rows(model, dataset, tokenizer)
    outcomes = TokenOutcomes(model, rows, tokenizer, batch_size, progress)
    name, score = find_token_metric(metric, romebert.config)  # the dataset may have named the classes
    judge = Judge(outcomes, score)
    if thresholds is None:
        thresholds = POLICIES[settings["name"]].grid(len(romebert.config.exit_layers))
    report = ExitReport(
        metric=name,
        num_examples=len(rows.inputs),
        num_layers=romebert.config.num_hidden_layers,
        exit_layers=list(romebert.config.exit_layers),
        exits=[judge(of_exit.argmax(dim=-1).numpy()) for of_exit in outcomes.exit_logits.unbind(1)],
        policy=settings,
        curve=[judge.point(outcomes.at(settings, threshold), threshold) for threshold in thresholds],
        model=str(romebert.config._name_or_path),
        ignored=rows.ignored,
        weights=weights_digest(romebert.state_dict()),
    )
    romebert.evaluation = report.to_dict()
    return report


def find_token_metric(metric: str | TokenMetric | None, config: Any) -> tuple[str, TokenMetric]:
    """A name or a function -> its name and itself.

    Raises:
        ValueError: an unknown name, or one of entities where tags mark none.
    """
    if callable(metric):
        return getattr(metric, "__name__", type(metric).__name__), metric
    of_entities = marks_entities(config.id2label.values())
    name = metric or ("f1" if of_entities else "accuracy")
    if name not in METRICS:
        raise ValueError(
            f"metric={metric!r} is unknown; choose from {', '.join(METRICS)}, or give a function of predicted"
            " and right tags."
        )
    if name != "accuracy" and not of_entities:
        raise ValueError(
            f"metric={metric!r} is of entities, and the labels {', '.join(config.id2label.values())} mark"
            ' none (as B-PER and I-PER do); take "accuracy".'
        )

    def score(predicted: Tags, tags: Tags) -> float:
        return token_scores(predicted, tags).get(name, 0.0)

    return name, score


class Judge:
    """Classes of all words of a dataset -> the metric; and the point of a curve that a policy gives."""

    def __init__(self, outcomes: TokenOutcomes, score: TokenMetric):
        self.outcomes, self.score = outcomes, score
        config = outcomes.model.config
        self.names = np.array([config.id2label[index] for index in range(config.num_labels)], dtype=object)
        assert outcomes.labels is not None
        self.labelled = labelled(outcomes)  # (n,)
        per_row = np.bincount(outcomes.row_of[self.labelled], minlength=len(outcomes.words))
        self._bounds = np.cumsum(per_row)[:-1]  # between rows
        self.tags = self._by_row(outcomes.labels)

    def __call__(self, answers: NDArray[np.int64]) -> float:
        """(n,) classes -> the metric."""
        return float(self.score(self._by_row(answers), self.tags))

    def _by_row(self, classes: NDArray[np.int64]) -> list[list[str]]:
        tags = self.names[classes[self.labelled]]
        return [list(of_row) for of_row in np.split(tags, self._bounds)]

    def point(self, outcome: Outcome, threshold: float) -> CurvePoint:
        same = outcome.answers == self.outcomes.full_depth  # (n,)
        changed = np.bincount(self.outcomes.row_of[~same], minlength=len(self.outcomes.words)) > 0
        return CurvePoint(
            threshold=threshold,
            cost=self.outcomes.cost(outcome),
            metric=self(outcome.answers),
            agreement=float(same.mean()),
            exit_shares=self.outcomes.shares(outcome),
            texts_agreement=float(1 - changed.mean()),
        )
