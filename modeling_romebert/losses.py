"""What training minimises: exit logits (B, E, C) and labels -> the loss of the last exit and the loss of the
others.

    L_last = task(y, z_E)
    L_exit = s * sum over k < E of w_k [ (1 - gamma) task(y, z_k)
                                         + gamma T^2 KL( softmax(teacher_k / T) || softmax(z_k / T) ) ]

(RomeBERT, arXiv 2101.09755, section 3, where s = 1). Pure functions and one bundle of settings; how the
gradients of the two terms are combined is in gradient_projection.py, which terms a step uses in
objectives.py. Everything is computed in fp32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .configuration_romebert import LossSettings, ProblemType, loss_settings

IGNORED_LABEL = -100


def infer_problem_type(num_labels: int, labels: Tensor) -> str:
    """The rule of transformers: one label is regression, whole-number labels name a class, others are
    multi-label targets.

    Whole numbers are targets too where each row has one per label (B, C), which transformers cannot train on.
    """
    if num_labels == 1:
        return ProblemType.REGRESSION.value
    per_label = labels.ndim == 2 and labels.shape[1] == num_labels
    several = labels.is_floating_point() or per_label
    return (ProblemType.MULTI_LABEL if several else ProblemType.SINGLE_LABEL).value


def check_labels(labels: Tensor, problem_type: str, num_labels: int) -> None:
    """Refuse labels that do not fit the problem: (B,) class ids, (B, C) targets in 0..1, or (B,) or (B, C)
    finite numbers.

    Raises:
        ValueError: wrong shape or a value outside the allowed range.
    """
    rows = labels.shape[0]
    if problem_type == ProblemType.SINGLE_LABEL:
        if labels.numel() != rows or labels.is_floating_point():
            raise ValueError(
                f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}; a single label needs"
                f" ({rows},) class ids."
            )
        wrong = (labels < 0) & (labels != IGNORED_LABEL) | (labels >= num_labels)
        allowed = (
            f"class ids 0..{num_labels - 1}, or {IGNORED_LABEL} for none;"
            " the number of classes is config.num_labels"
        )
    elif labels.numel() != rows * num_labels:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; problem_type={problem_type!r} needs ({rows},"
            f" {num_labels})."
        )
    elif problem_type == ProblemType.MULTI_LABEL:
        wrong, allowed = ~((labels >= 0) & (labels <= 1)), "targets in 0..1"
    else:
        wrong, allowed = ~torch.isfinite(labels), "finite numbers"
    if wrong.any():
        row, value = wrong.nonzero()[0, 0].item(), labels[wrong][0].item()
        raise ValueError(
            f"labels hold {value}; {problem_type} takes {allowed}. It is of row {row} of the batch."
        )


def labelled_rows(labels: Tensor, problem_type: str) -> Tensor:
    """labels (B,) or (B, C) -> (B,) bool: which rows have a label; of a single label, -100 is none."""
    rows = labels.shape[0]
    if problem_type == ProblemType.SINGLE_LABEL and labels.numel() == rows:
        return labels.reshape(rows) != IGNORED_LABEL
    return torch.ones(rows, dtype=torch.bool, device=labels.device)


def as_rows(exit_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """exit_logits (B, E, T, C), labels (B, T) -> (B * T, E, C), (B * T,): every token is a row of the loss.

    Those of whole texts, (B, E, C), stay as they are.

    Raises:
        ValueError: there is not one label per token.
    """
    if exit_logits.ndim < 4:
        return exit_logits, labels
    rows, _, tokens, _ = exit_logits.shape
    if labels.shape != (rows, tokens):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, and a token classifier needs one per token, ({rows},"
            f" {tokens}), with {IGNORED_LABEL} for tokens without one."
        )
    return exit_logits.transpose(1, 2).flatten(0, 1), labels.flatten()


def task_losses(
    exit_logits: Tensor,
    labels: Tensor,
    problem_type: str,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Tensor:
    """exit_logits (B, E, C), labels (B,) or (B, C) -> (E,): each exit's loss against the labels, averaged
    over the batch.

    Cross-entropy for a single label, binary cross-entropy averaged over labels for several, squared error for
    regression: at every exit what the stock sequence classifier computes at its only one, and 0 where no row
    of the batch has a label.

    Args:
        class_weights: C numbers. For a single label `weight` of `torch.nn.functional.cross_entropy`: the mean
            is weighted too. For several `pos_weight` of `binary_cross_entropy_with_logits`: how much a
            label's positives count.
    """
    logits = exit_logits.float()
    rows, exits, classes = logits.shape
    if labels.shape[:1] != (rows,):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, but the batch has {rows} rows: give one entry per row."
        )
    weights = None
    if class_weights is not None:
        check_class_weights(class_weights, problem_type, classes)
        weights = torch.tensor(class_weights, dtype=logits.dtype).to(logits.device, non_blocking=True)  # (C,)
    if problem_type == ProblemType.SINGLE_LABEL:
        targets = labels.reshape(rows)  # (B,)
        loss = F.cross_entropy(
            logits.transpose(1, 2),
            targets[:, None].expand(rows, exits),
            weight=weights,
            reduction="none",
            ignore_index=IGNORED_LABEL,
            label_smoothing=label_smoothing,
        )  # (B, E)
        counts = (targets != IGNORED_LABEL).to(loss.dtype)  # (B,): how much each row counts
        if weights is not None:
            counts = counts * weights[targets.clamp(min=0)]
        return _mean_over_rows(loss, counts)
    targets = labels.to(logits.dtype).view(rows, 1, classes).expand_as(logits)
    if problem_type == ProblemType.MULTI_LABEL:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=weights).mean(
            dim=(0, 2)
        )
    return F.mse_loss(logits, targets, reduction="none").mean(dim=(0, 2))


def _mean_over_rows(losses: Tensor, counts: Tensor) -> Tensor:
    """losses (B, K), how much each row counts (B,) -> (K,); 0, and so is its gradient, where none does.

    The losses are weighted already: rows that do not count are zeros in them.
    """
    total = counts.sum()
    return losses.sum(dim=0) / torch.where(total > 0, total, 1)


def check_class_weights(class_weights: Sequence[float], problem_type: str | None, num_labels: int) -> None:
    """Refuse weights that do not fit the problem.

    Raises:
        ValueError: it is a regression, or there is not one weight per class.
    """
    if problem_type == ProblemType.REGRESSION:
        raise ValueError(
            f"class_weights={list(class_weights)} are given, but a regression has no classes; leave them out."
        )
    if len(class_weights) != num_labels:
        raise ValueError(
            f"class_weights={list(class_weights)} has {len(class_weights)} entries, and the model has"
            f" {num_labels} classes; give one number per class, in the order of config.id2label."
        )


def distillation_losses(
    student: Tensor,
    teacher: Tensor,
    problem_type: str,
    temperature: float,
    reduction: str,
    counted: Tensor | None = None,
) -> Tensor:
    """student (B, K, C), teacher (B, K, C) -> (K,): T^2 KL(teacher || student) at temperature T, averaged
    over the batch.

    Several labels are several two-class problems, whose divergences are averaged. Regression has no
    temperature: squared distance to the teacher. No gradient flows into the teacher.

    Args:
        reduction: `"batchmean"` divides by the batch only, as in the paper; `"mean"` by the number of classes
            too, as in the reference code (which makes the term 1/C of the formula).
        counted (B,): bool, which rows the mean is over; all of them where it is left out, and 0 where there
            are none.
    """
    student, teacher = student.float(), teacher.detach().float()
    counted = student.new_ones(student.shape[0]) if counted is None else counted.to(student.dtype)
    if problem_type == ProblemType.REGRESSION:
        return _mean_over_rows(
            F.mse_loss(student, teacher, reduction="none").mean(dim=2) * counted[:, None], counted
        )
    student, teacher = student / temperature, teacher / temperature
    if problem_type == ProblemType.MULTI_LABEL:
        classes = 2
        p, log_p = torch.sigmoid(teacher), F.logsigmoid(teacher)
        q, log_q = torch.sigmoid(-teacher), F.logsigmoid(-teacher)
        divergence = p * (log_p - F.logsigmoid(student)) + q * (
            log_q - F.logsigmoid(-student)
        )  # (B, K, C), each in nats
        divergence = divergence.mean(dim=2)
    else:
        classes = student.shape[2]
        log_p, log_q = F.log_softmax(teacher, dim=2), F.log_softmax(student, dim=2)
        divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=2)  # (B, K)
    divergence = temperature**2 * divergence / (classes if reduction == "mean" else 1)
    return _mean_over_rows(divergence * counted[:, None], counted)


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


class LossTerms(NamedTuple):
    """The two scalars that are minimised, and every exit's own loss against the labels (E,) for the log."""

    last: Tensor
    exits: Tensor
    per_exit: Tensor


@dataclass
class ExitLoss(LossSettings):
    """The joint RomeBERT loss, as a function of exit logits and labels.

    Args:
        distillation_weight, distillation_temperature, distillation_reduction, teacher, exit_weights,
            exit_scale: see `LossSettings` (settings.py), which says what each is.
        class_weights: one number, 0 or more, per class; `None` weighs all alike. See `task_losses`.
        label_smoothing: as in `torch.nn.functional.cross_entropy`; for a single label only.

    Rows whose single label is -100 count in no term; where no row has a label, both terms are 0.

    Raises:
        ValueError: a choice that does not exist or a number out of range.

    Example:
        >>> terms = ExitLoss()(torch.zeros(2, 3, 2), torch.tensor([0, 1]), exit_layers=[1, 2, 3],
        ...                    problem_type="single_label_classification")
        >>> round(terms.last.item(), 4), round(terms.exits.item(), 4)  # ln 2, and 0.1 x 2 exits x 0.5 ln 2
        (0.6931, 0.0693)
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        self.check_choices()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing} is not in 0..1 (1 excluded).")
        if self.class_weights is None:
            return
        self.class_weights = weights = tuple(self.class_weights)
        if not (all(0 <= weight < float("inf") for weight in weights) and any(weights)):
            raise ValueError(
                f"class_weights={list(weights)} are not finite numbers of 0 or more, some of them above 0."
            )

    @classmethod
    def from_config(cls, config: Any) -> "ExitLoss":
        """The loss that a `RomeBertConfig` describes."""
        return cls(**loss_settings(config))

    def write_to(self, config: Any) -> None:
        """Let a `RomeBertConfig` describe this loss. Label smoothing belongs to a training alone."""
        for name, value in loss_settings(self).items():
            setattr(config, name, list(value) if isinstance(value, tuple) else value)

    def task_losses(self, exit_logits: Tensor, labels: Tensor, problem_type: str) -> Tensor:
        """exit_logits (B, E, C), labels (B,) or (B, C) -> (E,): each exit's loss against the labels, see
        `task_losses`; of tokens (B, E, T, C) and (B, T).
        """
        exit_logits, labels = as_rows(exit_logits, labels)
        return task_losses(exit_logits, labels, problem_type, self.label_smoothing, self.class_weights)

    def __call__(
        self,
        exit_logits: Tensor,
        labels: Tensor,
        *,
        exit_layers: list[int],
        problem_type: str,
        per_exit: Tensor | None = None,
    ) -> LossTerms:
        """The two terms of a batch.

        Args:
            exit_logits (B, E, C), labels (B,) or (B, C); of tokens (B, E, T, C) and (B, T).
            exit_layers: of length E.
            per_exit (E,): another loss of each exit against the labels, to take the place of `task_losses`.
        """
        exit_logits, labels = as_rows(exit_logits, labels)
        if per_exit is None:
            per_exit = self.task_losses(exit_logits, labels, problem_type)  # (E,)
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
                labelled_rows(labels, problem_type),
            )
            early = (1 - self.distillation_weight) * early + self.distillation_weight * divergence
        # Or the host waits.
        layers = torch.tensor(exit_layers[:-1], dtype=early.dtype).to(early.device, non_blocking=True)
        early = EXIT_WEIGHTS[self.exit_weights](layers) * early
        return LossTerms(per_exit[-1], self.exit_scale * early.sum(), per_exit.detach())
