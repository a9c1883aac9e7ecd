"""How good each exit is, and what a policy saves: one pass for all exits, then policies replayed on it.

    cost = mean over rows of layers run / layers     saving = 1 - cost     speedup = 1 / cost, in layers

Time is for benchmarks to measure.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from ..exit_policies import POLICIES
from ..hub import weights_digest
from ..pretrained import inner_model
from .exit_logits import ExitLogits, collect_exit_logits
from .metrics import DEFAULT_METRIC, Metric, find_metric, predictions_of
from .report import ExitReport
from .sweep import policy_to_sweep, sweep
from .token_evaluation import evaluate_token_exits


def evaluate_exits(
    model: Any,
    dataset: Iterable[dict[str, Any]],
    tokenizer: Any,
    *,
    metric: str | Metric | None = None,
    policy: str | dict[str, Any] = "entropy",
    thresholds: Sequence[float] | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> ExitReport:
    """Measure every exit in one pass, and a policy at every threshold of a sweep.

    The report also becomes `model.evaluation`, from which `save_pretrained` writes the model card.

    Args:
        model, dataset, tokenizer, batch_size: see `collect_exit_logits`; of a token classifier also
            `evaluate_token_exits`.
        metric: a name in `METRICS` (metrics.py) or a function (predictions, references) -> one finite number,
            higher is better. Accuracy, micro F1 or Pearson's r by problem type when left out.
        policy: name of a policy, or its settings without the threshold, e.g. `{"name": "patient_confidence",
            "patience": 2}` or `{"name": "entropy", "ask_every": 2}`.
        thresholds: what to sweep; a range that fits the policy when left out.

    Returns:
        The metric per exit; cost, metric and agreement per threshold; the area under the curve.

    Raises:
        ValueError: an unknown metric or policy, one without meaning for the model, a metric that gives no
            number, or rows that cannot be evaluated. Rows whose label is -100 are left out, and counted in
            `ignored`.
    """
    romebert = inner_model(model)
    if romebert.config.classifies_tokens:
        given: dict[str, Any] = {"metric": metric, "policy": policy, "thresholds": thresholds}
        given |= {"batch_size": batch_size, "progress": progress}
        return evaluate_token_exits(model, dataset, tokenizer, **given)
    judge(romebert, metric, policy)  # what has no meaning fails here, before the model runs
    found = collect_exit_logits(model, dataset, tokenizer, batch_size, progress)
    report = report_of(romebert, found, metric=metric, policy=policy, thresholds=thresholds)
    romebert.evaluation = report.to_dict()
    return report


def report_of(
    model: Any,
    found: ExitLogits,
    *,
    metric: str | Metric | None = None,
    policy: str | dict[str, Any] = "entropy",
    thresholds: Sequence[float] | None = None,
) -> ExitReport:
    """As `evaluate_exits`, of logits that the model gave before: several policies need it to run but once.

    Args:
        model: the RomeBERT model itself.
        found: what `collect_exit_logits` gave.
    """
    config = model.config
    exit_logits, labels, ignored = found
    name, score, settings = judge(model, metric, policy)  # labels may have settled the problem type
    if thresholds is None:
        thresholds = POLICIES[settings["name"]].grid(len(config.exit_layers))
    return ExitReport(
        metric=name,
        num_examples=len(labels),
        num_layers=config.num_hidden_layers,
        exit_layers=list(config.exit_layers),
        exits=[
            score(predictions_of(of_exit.numpy(), model.problem_type), labels)
            for of_exit in exit_logits.unbind(1)
        ],
        policy=settings,
        curve=sweep(exit_logits, labels, config.exit_layers, model.problem_type, score, settings, thresholds),
        model=str(config._name_or_path),
        ignored=ignored,
        weights=weights_digest(model.state_dict()),
    )


def judge(
    model: Any, metric: str | Metric | None, policy: str | dict[str, Any]
) -> tuple[str, Metric, dict[str, Any]]:
    """What is asked for -> the metric's name, the metric, and the settings of the policy to sweep.

    Raises:
        ValueError: see `find_metric` and `policy_to_sweep`.
    """
    config, problem_type = model.config, model.problem_type
    name, score = find_metric(metric or DEFAULT_METRIC[problem_type], problem_type, config.num_labels)
    return name, score, policy_to_sweep(policy, config.exit_layers, problem_type)
