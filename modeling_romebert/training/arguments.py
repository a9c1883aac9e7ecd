"""RomeBertTrainingArguments: `TrainingArguments` and how the exits are trained."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import TrainingArguments
from transformers.utils import logging

from ..configuration_romebert import LossSettings, loss_settings, scale_of_reduction
from ..losses import ExitLoss
from .class_weights import parse_class_weights
from .gradient_projection import PROTECTED
from .head_rates import DEFAULT_FACTOR, check_factor
from .non_finite import NON_FINITE
from .objectives import BOTH, OBJECTIVES, Objective

logger = logging.get_logger(__name__)


@dataclass
class RomeBertTrainingArguments(LossSettings, TrainingArguments):
    """`TrainingArguments` and how the exits are trained.

    They may be changed until training starts, as a hyperparameter search does: the trainer reads and checks
    them then.

    Raises:
        ValueError: a choice that does not exist or a number out of range.
    """

    objective: str = field(
        default="romebert",
        metadata={
            "help": "romebert: one stage, all exits, distillation and gradient regularization; joint: all"
            " exits on the labels alone; last: the last exit alone; deebert: two stages of num_train_epochs"
            " each, last exit first, then the others on the frozen backbone; mixed: two stages, last exit"
            " first, then as romebert; alternating: odd steps the last exit, even steps all.",
            "choices": list(OBJECTIVES),
        },
    )
    class_weights: list[float] | str | None = field(
        default=None,
        metadata={
            "nargs": "+",
            "help": "One number per class, or balanced: counted from the training data, so that the classes"
            " count alike. In the loss of every exit against the labels: weight of PyTorch's cross_entropy;"
            " for several labels pos_weight of binary_cross_entropy_with_logits. Not for regression.",
        },
    )
    gradient_regularization: str = field(
        default="off",
        metadata={
            "help": "For objectives romebert and mixed: whose gradient on the shared weights is left whole"
            " when the two conflict (protect_exits in the paper). A step then takes about 1.6 times as long.",
            "choices": [*PROTECTED, "off"],
        },
    )
    exit_learning_rate_factor: float | None = field(
        default=None,
        metadata={
            "help": "The exits' heads, which start from nothing, learn at so many times the learning_rate."
            f" Left out: {DEFAULT_FACTOR:g}; 1 under DeepSpeed and with an optimizer of your own, where the"
            " trainer does not set rates."
        },
    )
    exit_reduction: str | None = field(
        default=None,
        metadata={"help": "Of version 0.1: sum is exit_scale 1, mean is exit_scale 1 / (exits - 1)."},
    )
    non_finite: str = field(
        default="stop",
        metadata={
            "help": "A step whose loss or gradient is not finite: stop the run with an error that says"
            " where, or skip the step"
            " and log how many (skipped_steps).",
            "choices": list(NON_FINITE),
        },
    )

    _unused_by_objective = False  # whether ddp_find_unused_parameters is left to the objective

    def __post_init__(self) -> None:
        left_out = self.greater_is_better is None  # type: ignore[has-type]
        super().__post_init__()
        if left_out and re.search(r"loss(_exit_\d+|_mean)$", self.metric_for_best_model or ""):
            self.greater_is_better = False  # as for a name that ends in loss
        self.check()
        self._unused_by_objective = self.ddp_find_unused_parameters is None
        self.settle_unused_weights()

    def check(self) -> None:
        """Refuse settings that mean nothing, or do not go together; the trainer asks again when it starts.

        Raises:
            ValueError: see `RomeBertTrainingArguments`.
        """
        for name in (
            *("distillation_weight", "distillation_temperature", "exit_scale"),
            "exit_learning_rate_factor",
        ):
            # A search casts to the type that the trial before left: of 0.5 an int would make 0.
            if getattr(self, name) is not None:
                setattr(self, name, float(getattr(self, name)))
        for name, choices in (
            ("objective", OBJECTIVES),
            ("gradient_regularization", (*PROTECTED, "off")),
            ("non_finite", NON_FINITE),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; choose from {', '.join(choices)}."
                )
        check_factor(self.exit_learning_rate_factor, bool(self.deepspeed))
        self.exit_loss()
        parse_class_weights(self.class_weights)
        if not self.training_objective.distills and self.teacher != RomeBertTrainingArguments.teacher:
            teaching = ", ".join(repr(name) for name, objective in OBJECTIVES.items() if objective.distills)
            raise ValueError(
                f"teacher={self.teacher!r} has no meaning for objective={self.objective!r}, which does not"
                f" distil. Leave teacher out, or use objective={teaching}."
            )
        if self.gradient_regularization != "off" and not self.regularizes:
            logger.warning_once(
                f"gradient_regularization={self.gradient_regularization!r} has no effect with"
                f" objective={self.objective!r}, which has no two gradients to project."
            )
        if self.regularizes:
            self._refuse_what_is_not_exact()
        self._tell_of_a_best_that_does_not_change()

    def _tell_of_a_best_that_does_not_change(self) -> None:
        """Say so where checkpoints are compared by an exit that the last stage leaves as it is."""
        of_last_exit = not re.search(r"(loss|_exit_\d+|_mean)$", self.metric_for_best_model or "loss")
        moves = any(terms.last for terms in self.training_objective.stages[-1])
        if self.load_best_model_at_end and of_last_exit and not moves:
            name = self.metric_for_best_model
            logger.warning_once(
                f"metric_for_best_model={name!r} is of the last exit, which does not change in the last stage"
                f" of objective={self.objective!r}: the first checkpoint of that stage will count as the"
                f" best. {name}_mean is over all exits."
            )

    @property
    def training_objective(self) -> Objective:
        """What `objective` names: which terms each step minimises."""
        return OBJECTIVES[self.objective]

    def settle_unused_weights(self) -> None:
        """Unless it was given, `ddp_find_unused_parameters` is whether the objective freezes weights in some
        of its steps.
        """
        if self._unused_by_objective:
            self.ddp_find_unused_parameters = any(
                {*cycle} != {BOTH} for cycle in self.training_objective.stages
            )

    def settle_exit_scale(self, exits: int) -> None:
        """`exit_reduction` of version 0.1 -> the `exit_scale` of a model with so many exits; says so."""
        if self.exit_reduction is not None:
            scale = scale_of_reduction(self.exit_reduction, exits)
            logger.warning(
                f"exit_reduction={self.exit_reduction!r} is called exit_scale now: with {exits} exits write"
                f" exit_scale={scale:.4g}."
            )
            self.exit_scale, self.exit_reduction = scale, None

    @property
    def regularizes(self) -> bool:
        """Whether gradients are projected."""
        return self.training_objective.regularizes and self.gradient_regularization != "off"

    def _refuse_what_is_not_exact(self) -> None:
        """The projection takes gradients of whole weights, twice through one graph; not everything leaves
        that possible.
        """
        # called activation_checkpointing in newer versions of transformers
        checkpointing = [
            getattr(self, f"{name}_checkpointing_kwargs", None) or {} for name in ("gradient", "activation")
        ]
        reentrant = any(settings.get("use_reentrant") for settings in checkpointing)
        for given, what, way_out in (
            (self.fsdp, f"fsdp={self.fsdp!r}", "DDP"),
            (self.deepspeed, f"deepspeed={self.deepspeed!r}", "DDP"),
            (self.torch_compile, "torch_compile=True", "torch_compile=False"),
            (reentrant, "reentrant checkpointing", "use_reentrant=False"),
            (
                self.n_gpu > 1,
                f"DataParallel over {self.n_gpu} devices",
                "torchrun or accelerate launch, or one visible device",
            ),
        ):
            if given:
                raise ValueError(
                    f"{what} does not go with gradient_regularization={self.gradient_regularization!r},"
                    f" which it would make wrong. Use {way_out}, or gradient_regularization='off'."
                )

    def exit_loss(self, class_weights: Sequence[float] | None = None) -> ExitLoss:
        """The loss that the objective minimises, as a function of exit logits and labels.

        Args:
            class_weights: one number per class, as `class_weights` comes out on the training data.
        """
        settings = loss_settings(self) | {"class_weights": class_weights}
        loss = ExitLoss(**settings, label_smoothing=self.label_smoothing_factor)  # checks them as given
        if not self.training_objective.distills:
            loss = replace(loss, distillation_weight=0.0)
        if self.training_objective.trains_exits_alone:
            loss = replace(loss, exit_scale=1.0)
        return loss

    def for_card(self) -> dict[str, Any]:
        """What a reader of the model card wants to know of the training."""
        names = ["objective", "learning_rate", "num_train_epochs", "weight_decay", "warmup_steps", "seed"]
        if self.max_steps > 0:
            names.append("max_steps")
        settings = {name: getattr(self, name) for name in names}
        if self.regularizes:
            settings["gradient_regularization"] = self.gradient_regularization
        settings["batch_size"] = self.train_batch_size * self.gradient_accumulation_steps * self.world_size
        return settings | {
            "processes": self.world_size,
            "optimizer": str(self.optim),
            "hub_model_id": self.hub_model_id,
        }
