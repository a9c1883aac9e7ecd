"""What a hyperparameter search goes by when it is not told: figures of an evaluation -> one number."""

from transformers.trainer_utils import default_compute_objective
from transformers.utils import logging

from ..losses import ExitLoss

logger = logging.get_logger(__name__)


def evaluation_loss(metrics: dict[str, float]) -> float:
    """The loss; of evaluations on several datasets, the sum of their losses.

    Example:
        >>> evaluation_loss({"eval_loss": 0.5, "eval_accuracy": 0.8, "eval_accuracy_mean": 0.7})
        0.5
    """
    return sum(value for name, value in metrics.items() if name.endswith("_loss"))


def metrics_of_last_exit(metrics: dict[str, float]) -> float:
    """The sum of the metrics at the last exit: not those of the other exits, or of means over exits.

    Example:
        >>> metrics = {"eval_loss": 0.5, "eval_f1": 0.8, "eval_f1_exit_1": 0.6, "eval_f1_mean": 0.7}
        >>> metrics_of_last_exit(metrics)
        0.8
    """
    of_last = {name: value for name, value in metrics.items() if f"{name}_mean" in metrics}
    return default_compute_objective(of_last or metrics)


class Trials:
    """Objective and loss of each trial of a search that goes by the evaluation loss."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, ExitLoss]] = []

    def compare(self, objective: str, loss: ExitLoss) -> None:
        """Note a trial; say it once when trials are compared by losses that differ."""
        before, this = self.seen, (objective, loss)
        self.seen = [*before, this]
        if before and this != before[0] and all(trial == before[0] for trial in before):
            logger.warning(
                "The trials of this search minimise different losses, so their evaluation losses do not"
                " compare. Search with direction='maximize', which goes by the metric, or give"
                " compute_objective."
            )
