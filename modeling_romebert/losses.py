"""What training minimises: exit logits (B, E, C) and labels -> the loss of the last exit and the loss of the others.

    L_last = task(y, z_E)
    L_exit = sum over k < E of w_k [ (1 - gamma) task(y, z_k) + gamma T^2 KL( softmax(teacher_k / T) || softmax(z_k / T) ) ]

(RomeBERT, arXiv 2101.09755, section 3). Pure functions and one bundle of settings; how the gradients of the two terms are
combined is in projection.py, which terms a step uses in objectives.py. Everything is computed in fp32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
IGNORED_LABEL = -100


def infer_problem_type(num_labels: int, labels: Tensor) -> str:
    """The rule of transformers: one label is regression, whole-number labels name a class, others are multi-label targets.

    Whole numbers are targets too where each row has one per label (B, C), which transformers cannot train on.
    """
    if num_labels == 1:
        return "regression"
    per_label = labels.ndim == 2 and labels.shape[1] == num_labels
    return "multi_label_classification" if labels.is_floating_point() or per_label else "single_label_classification"


def check_labels(labels: Tensor, problem_type: str, num_labels: int) -> None:
    """Refuse labels that do not fit the problem: (B,) class ids, (B, C) targets in 0..1, or (B,) or (B, C) finite numbers.

    Raises:
        ValueError: wrong shape or a value outside the allowed range.
    """
    rows = labels.shape[0]
    if problem_type == "single_label_classification":
        if labels.numel() != rows or labels.is_floating_point():
            raise ValueError(
                f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}; a single label needs ({rows},) class ids."
            )
        wrong = (labels < 0) & (labels != IGNORED_LABEL) | (labels >= num_labels)
        allowed = f"class ids 0..{num_labels - 1}, or {IGNORED_LABEL} for none; the number of classes is config.num_labels"
    elif labels.numel() != rows * num_labels:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; problem_type={problem_type!r} needs ({rows}, {num_labels}).")
    elif problem_type == "multi_label_classification":
        wrong, allowed = ~((labels >= 0) & (labels <= 1)), "targets in 0..1"
    else:
        wrong, allowed = ~torch.isfinite(labels), "finite numbers"
    if wrong.any():
        row, value = wrong.nonzero()[0, 0].item(), labels[wrong][0].item()
        raise ValueError(f"labels hold {value}; {problem_type} takes {allowed}. It is of row {row} of the batch.")


def task_losses(exit_logits: Tensor, labels: Tensor, problem_type: str, label_smoothing: float = 0.0) -> Tensor:
    """exit_logits (B, E, C), labels (B,) or (B, C) -> (E,): each exit's loss against the labels, averaged over the batch.

    Cross-entropy for a single label, binary cross-entropy averaged over labels for several, squared error for regression: at
    every exit what the stock sequence classifier computes at its only one.
    """
    logits = exit_logits.float()
    rows, exits, classes = logits.shape
    if labels.shape[:1] != (rows,):
        raise ValueError(f"labels have shape {tuple(labels.shape)}, but the batch has {rows} rows: give one entry per row.")
    if problem_type == "single_label_classification":
        targets = labels.view(rows, 1).expand(rows, exits)  # (B, E)
        loss = F.cross_entropy(
            logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED_LABEL, label_smoothing=label_smoothing
        )  # (B, E)
        return loss.sum(dim=0) / (labels != IGNORED_LABEL).sum()
    targets = labels.to(logits.dtype).view(rows, 1, classes).expand_as(logits)
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=(0, 2))
    return F.mse_loss(logits, targets, reduction="none").mean(dim=(0, 2))


def distillation_losses(student: Tensor, teacher: Tensor, problem_type: str, temperature: float, reduction: str) -> Tensor:
    """student (B, K, C), teacher (B, K, C) -> (K,): T^2 KL(teacher || student) at temperature T, averaged over the batch.

    Several labels are several two-class problems, whose divergences are averaged. Regression has no temperature: squared
    distance to the teacher. No gradient flows into the teacher.

    Args:
        reduction: `"batchmean"` divides by the batch only, as in the paper; `"mean"` by the number of classes too, as in the
            reference code (which makes the term 1/C of the formula).
    """
    student, teacher = student.float(), teacher.detach().float()
    if problem_type == "regression":
        return F.mse_loss(student, teacher, reduction="none").mean(dim=(0, 2))
    student, teacher = student / temperature, teacher / temperature
    if problem_type == "multi_label_classification":
        classes = 2
        p, log_p = torch.sigmoid(teacher), F.logsigmoid(teacher)
        q, log_q = torch.sigmoid(-teacher), F.logsigmoid(-teacher)
        divergence = p * (log_p - F.logsigmoid(student)) + q * (log_q - F.logsigmoid(-student))  # (B, K, C), each in nats
        divergence = divergence.mean(dim=2)
    else:
        classes = student.shape[2]
        log_p, log_q = F.log_softmax(teacher, dim=2), F.log_softmax(student, dim=2)
        divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=2)  # (B, K)
    return temperature**2 * divergence.mean(dim=0) / (classes if reduction == "mean" else 1)


def _last_exit(exit_logits: Tensor) -> Tensor:
    """(B, E, C) -> (B, E-1, C): the last exit teaches every other one."""
    return exit_logits[:, -1:].expand(-1, exit_logits.shape[1] - 1, -1)


def _next_exit(exit_logits: Tensor) -> Tensor:
    """(B, E, C) -> (B, E-1, C): each exit is taught by the one after it."""
    return exit_logits[:, 1:]


def _uniform(layers: Tensor) -> Tensor:
    """(K,) layers -> (K,) weights, all 1."""
    return torch.ones_like(layers)


def _by_depth(layers: Tensor) -> Tensor:
    """(K,) layers -> (K,) weights proportional to depth with mean 1 (PABEE, arXiv 2006.04152, equation 6)."""
    return layers / layers.mean()


TEACHERS: dict[str, Callable[[Tensor], Tensor]] = {"last": _last_exit, "next": _next_exit}
EXIT_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {"uniform": _uniform, "depth": _by_depth}
EXIT_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"sum": torch.sum, "mean": torch.mean}
DISTILLATION_REDUCTIONS = ("batchmean", "mean")


class LossTerms(NamedTuple):
    """The two scalars that are minimised, and every exit's own loss against the labels (E,) for the log."""

    last: Tensor
    exits: Tensor
    per_exit: Tensor


@dataclass(frozen=True)
class ExitLoss:
    """The joint RomeBERT loss, as a function of exit logits and labels.

    Args:
        distillation_weight: gamma in 0..1, the share of distillation in the loss of the exits before the last.
        distillation_temperature: T above 0. No meaning for regression.
        distillation_reduction: `"batchmean"` (the paper) or `"mean"` (the reference code, 1/C of it).
        teacher: `"last"` or `"next"`: which exit teaches each exit before the last.
        exit_weights: `"uniform"` or `"depth"`, the w_k; their mean is 1.
        exit_reduction: `"sum"` over the exits before the last (the paper) or `"mean"`, which keeps the last exit from being
            outweighed in deep models.
        label_smoothing: as in `torch.nn.functional.cross_entropy`; for a single label only.

    Raises:
        ValueError: a choice that does not exist or a number out of range.

    Example:
        >>> terms = ExitLoss()(torch.zeros(2, 3, 2), torch.tensor([0, 1]), exit_layers=[1, 2, 3],
        ...                    problem_type="single_label_classification")
        >>> round(terms.last.item(), 4), round(terms.exits.item(), 4)  # ln 2, and 2 exits x 0.1 ln 2
        (0.6931, 0.1386)
    """

    distillation_weight: float = 0.9
    distillation_temperature: float = 3.0
    distillation_reduction: str = "batchmean"
    teacher: str = "last"
    exit_weights: str = "uniform"
    exit_reduction: str = "sum"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in (
            ("distillation_reduction", DISTILLATION_REDUCTIONS),
            ("teacher", TEACHERS),
            ("exit_weights", EXIT_WEIGHTS),
            ("exit_reduction", EXIT_REDUCTIONS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose from {', '.join(choices)}.")
        if not 0 <= self.distillation_weight <= 1:
            raise ValueError(f"distillation_weight={self.distillation_weight} is not in 0..1 (0 turns distillation off).")
        if not 0 < self.distillation_temperature < float("inf"):
            raise ValueError(
                f"distillation_temperature={self.distillation_temperature} is not above 0 (1 leaves the logits as they are)."
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing} is not in 0..1 (1 excluded).")

    def __call__(self, exit_logits: Tensor, labels: Tensor, *, exit_layers: list[int], problem_type: str) -> LossTerms:
        """exit_logits (B, E, C), labels (B,) or (B, C), exit_layers of length E -> the two terms."""
        per_exit = task_losses(exit_logits, labels, problem_type, self.label_smoothing)  # (E,)
        early = per_exit[:-1]  # (E-1,)
        if early.numel() == 0:
            return LossTerms(per_exit[-1], per_exit.new_zeros(()), per_exit.detach())
        if self.distillation_weight > 0:
            divergence = distillation_losses(
                exit_logits[:, :-1],
                TEACHERS[self.teacher](exit_logits),
                problem_type,
                self.distillation_temperature,
                self.distillation_reduction,
            )
            early = (1 - self.distillation_weight) * early + self.distillation_weight * divergence
        layers = torch.tensor(exit_layers[:-1], dtype=early.dtype).to(early.device, non_blocking=True)  # or the host waits
        early = EXIT_WEIGHTS[self.exit_weights](layers) * early
        return LossTerms(per_exit[-1], EXIT_REDUCTIONS[self.exit_reduction](early), per_exit.detach())
