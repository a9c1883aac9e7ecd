"""RomeBertTrainer: the Trainer of transformers with the exits' loss terms, and their two gradients, in `compute_loss`.

Which terms a step minimises is data (objectives.py); the terms are in losses.py and the projection in projection.py. The training
loop, accumulation, clipping, schedules, checkpoints and launchers are the library's.
"""

import copy
from collections.abc import Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, PredictionOutput, SchedulerType
from transformers.utils import logging

from .checkpoints import TRAINER_STATE, checkpoint_to_resume
from .dataset_checks import check_dataset
from .evaluation import default_metric
from .library_hooks import HookWatch
from .losses import check_labels, infer_problem_type
from .model_card import write_model_card
from .modeling_romebert import RomeBertForSequenceClassification
from .objectives import BOTH, EXITS, OBJECTIVES, Terms
from .projection import GradientRegularizer
from .running_means import RunningMeans
from .step_guard import StepGuard
from .training_args import RomeBertTrainingArguments

logger = logging.get_logger(__name__)


class RomeBertTrainer(Trainer):
    """Trains and evaluates a `RomeBertForSequenceClassification`.

    Arguments are those of `Trainer`; `args` is a `RomeBertTrainingArguments`. `compute_metrics` sees the predictions of one
    exit (N, C) at a time, and evaluation reports its figures for the last exit under their own names, for each exit as
    `{name}_exit_{layer}` and averaged over exits as `{name}_mean`. Left out, it is accuracy, or what fits the problem type.

    Logged besides the loss: `loss_last`, `loss_exits`, `loss_exit_{layer}` (each exit's loss against the labels), and with
    regularization `gradient_cosine` (of the two gradients on the shared weights) and `projected` (share of steps in which they
    conflicted): means over steps and processes since the last log, without the numbers that are not finite. `skipped_steps` counts
    those that `non_finite="skip"` left out since then.

    Raises:
        TypeError, ValueError: a model, arguments or labels that it cannot train with.
        FloatingPointError: a loss or gradient that is not finite, under `non_finite="stop"`.
    """

    # The loss is a mean over the batch, so the stock training step divides it by the accumulation steps.
    loss_is_scaled_for_ga = False

    args: RomeBertTrainingArguments
    model: Any
    compute_metrics: Any
    lr_scheduler: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, RomeBertTrainingArguments):
            raise TypeError(f"args is a {type(self.args).__name__}; RomeBertTrainer takes RomeBertTrainingArguments.")
        if not hasattr(self.model, "exits"):
            raise TypeError(f"model is a {type(self.model).__name__}; RomeBertTrainer trains a RomeBertForSequenceClassification.")
        if self.compute_loss_func is not None:
            raise ValueError("compute_loss_func is given, but the loss is set by args.objective; use one of its choices.")
        self.objective = OBJECTIVES[self.args.objective]
        if len(self.model.exits) == 1 and any(set(cycle) == {EXITS} for cycle in self.objective.stages):
            raise ValueError(
                f"objective={self.args.objective!r} has a stage for the exits before the last, and exit_layers="
                f"{self.model.config.exit_layers} has none; use objective='last'."
            )
        self.exit_loss = self.args.exit_loss()
        self._metric_of_one_exit = self.compute_metrics
        self.compute_metrics = self._metrics_of_all_exits
        self._hooks = HookWatch()
        self.add_callback(self._hooks)
        self._means = RunningMeans()
        self._guard: StepGuard | None = None
        self._regularizer: GradientRegularizer | None = None
        self._gradients_met: Tensor | None = None  # (2,): their cosine and whether they conflicted, in the present step
        self._frozen: list[nn.Parameter] = []  # by the terms of the present step
        self._terms: Terms | None = None
        self._stage_steps = 0
        config = self.model.config  # the config tells what the weights were trained for
        for name in ("distillation_temperature", "distillation_reduction", "teacher", "exit_weights", "exit_reduction"):
            setattr(config, name, getattr(self.args, name))
        config.distillation_weight = self.exit_loss.distillation_weight
        self.model.exit_loss = self.exit_loss

    # ---- the loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective's loss of one batch; in training, its backward hands out the regularized gradient."""
        inputs = dict(inputs)
        labels = inputs.pop("labels", None)
        if labels is None:
            raise ValueError("the batch has no labels; the dataset needs a column `labels` (or `label`).")
        if self.model.config.problem_type is None:
            self.model.config.problem_type = infer_problem_type(self.model.config.num_labels, labels)
        if labels.device.type == "cpu":
            check_labels(labels, self.model.problem_type, self.model.config.num_labels)
        training = self.model.training and torch.is_grad_enabled()
        if training and self._guard is None:  # before a stage freezes anything
            self._guard = StepGuard(self.model, self.args.non_finite, self._sum_over_processes)
        terms = self._enter_step() if training else self.objective.terms
        outputs = model(**inputs)
        losses = self.exit_loss(
            outputs.exit_logits, labels, exit_layers=self.model.config.exit_layers, problem_type=self.model.problem_type
        )
        if training and terms == BOTH and self.args.regularizes and len(self.model.exits) > 1:
            loss = self._regularized(losses.last, losses.exits)
        else:
            # Only what is minimised: a term times zero would still give its weights a gradient, and so decay and momentum.
            wanted = [loss for loss, minimised in zip((losses.last, losses.exits), terms, strict=True) if minimised]
            loss = torch.stack(wanted).sum()
        if training and self._guard is not None:
            per_exit = [f"loss_exit_{layer}" for layer in self.model.config.exit_layers]
            values = torch.cat([torch.stack([losses.last, losses.exits]), losses.per_exit]).detach()  # (2 + E,)
            self._means.add(("loss_last", "loss_exits", *per_exit), values)
            loss = self._guard.loss(loss, values, terms)
        return (loss, outputs) if return_outputs else loss

    def _regularized(self, last: Tensor, exits: Tensor) -> Tensor:
        if self._regularizer is None:
            trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            self._regularizer = GradientRegularizer(trained, shared_weights(self.model), self.args.gradient_regularization)
        return self._regularizer.loss(last, exits, end_of_group=self.accelerator.sync_gradients)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `Trainer.training_step`; notes what only the gradients tell, after the last backward pass of a group."""
        loss = super().training_step(*args, **kwargs)
        if self._guard is not None and self.accelerator.sync_gradients:
            self._guard.watch_gradients()
        if self._regularizer is not None and self.accelerator.sync_gradients:
            cosine, projected = self._regularizer.cosine, self._regularizer.projected
            if cosine is not None and projected is not None:
                self._gradients_met = torch.stack([cosine, projected])
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer._get_grad_norm`, once per step, between the gradients and the optimizer: where a step is judged."""
        self._hooks.note("_get_grad_norm")
        norm = super()._get_grad_norm(*args, **kwargs)
        if isinstance(norm, Tensor) and self._guard is not None:
            if self._gradients_met is not None:
                met = self._gradients_met.where(norm.isfinite(), torch.nan)  # a step that is not taken has no say
                self._means.add(("gradient_cosine", "projected"), met)
                self._gradients_met = None
            self._guard.judge(norm, self.state.global_step + 1, self.optimizer)
        return norm

    # ---- stages

    def _enter_step(self) -> Terms:
        """Terms of the step about to be taken; freezes the weights that it does not train, until the next step."""
        stages, step = self.objective.stages, self.state.global_step
        stage = min(step // self._stage_steps, len(stages) - 1) if self._stage_steps else 0
        cycle = stages[stage]
        terms = cycle[step % len(cycle)]
        if terms != self._terms:
            self._unfreeze()
            early = {id(p) for layer in self.model.config.exit_layers[:-1] for p in self.model.exits[str(layer)].parameters()}
            for parameter in self.model.parameters():
                trained = terms.exits if id(parameter) in early else terms.last
                if parameter.requires_grad and not trained:
                    parameter.requires_grad_(False)
                    self._frozen.append(parameter)
            self._terms = terms
        return terms

    def _unfreeze(self) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen, self._terms = [], None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; a two-stage objective runs `num_train_epochs` (or `max_steps`) per stage.

        Args:
            resume_from_checkpoint: `True` continues from the newest complete checkpoint in `output_dir`: one that was cut off
                while it was written is passed over. A path is a complete checkpoint.

        Raises:
            ValueError: a dataset that cannot be trained on (dataset_checks.py), or no complete checkpoint (checkpoints.py).
            FloatingPointError: see `RomeBertTrainer`.
        """
        self._check_datasets()
        if resume_from_checkpoint:
            resume_from_checkpoint = checkpoint_to_resume(resume_from_checkpoint, str(self.args.output_dir))
        self.model.evaluation, self.model.training_settings = None, self._settings_for_card()
        self._means, self._gradients_met = RunningMeans(), None
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._unfreeze()
            if self._guard is not None:
                self._guard.close()
            self._guard = self._regularizer = None

    def _check_datasets(self) -> None:
        named = {"train_dataset": self.train_dataset}
        if self.args.eval_strategy != "no":
            several = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
            named |= {f"eval_dataset[{key!r}]" if key else "eval_dataset": dataset for key, dataset in several.items()}
        config = self.model.config
        for name, dataset in named.items():
            if dataset is not None:
                trains = name == "train_dataset"
                check_dataset(dataset, name, config.num_labels, config.problem_type, self.data_collator, trains)
        batch = self.args.train_batch_size * self.args.world_size
        if self.args.dataloader_drop_last and isinstance(self.train_dataset, Sized) and len(self.train_dataset) < batch:
            raise ValueError(
                f"train_dataset has {len(self.train_dataset)} rows, less than one batch of {batch}, which"
                " dataloader_drop_last=True drops. Set it to False, or use a smaller per_device_train_batch_size."
            )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As `Trainer._save_checkpoint`, in such an order that the folder is complete when its trainer_state.json is there."""
        self._hooks.note("_save_checkpoint")
        if self._guard is not None:
            self._guard.check()
        folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save:
            (folder / TRAINER_STATE).unlink(missing_ok=True)  # of an earlier run, whose files are now written over
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        """As `Trainer._save_rng_state`: the one file of each process, which the last file of the main process now waits for."""
        self._hooks.note("_save_rng_state")
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def set_initial_training_values(self, args: TrainingArguments, *rest: Any, **kwargs: Any) -> Any:
        """Length of the whole training: every stage takes the epochs, or steps, that the arguments give."""
        self._hooks.note("set_initial_training_values")
        stages = len(self.objective.stages)
        whole = copy.copy(args)
        whole.num_train_epochs = args.num_train_epochs * stages
        whole.max_steps = args.max_steps * stages if args.max_steps > 0 else args.max_steps
        return super().set_initial_training_values(whole, *rest, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As `Trainer.create_scheduler`; each stage starts the schedule, warm-up included, anew.

        One optimizer serves all stages: weights that a stage does not train have no gradient, so it leaves them alone.
        """
        stages = len(self.objective.stages)
        self._stage_steps = max(num_training_steps // stages, 1)
        if stages == 1:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            schedule = super().create_scheduler(self._stage_steps, optimizer)
            if not isinstance(schedule, LambdaLR):
                raise ValueError(
                    f"lr_scheduler_type={SchedulerType(self.args.lr_scheduler_type).value} cannot start anew at a stage;"
                    " use linear or cosine."
                )
            of_stage, steps = schedule.lr_lambdas[0], self._stage_steps
            self.lr_scheduler = LambdaLR(
                optimizer or self.optimizer, lambda step: of_stage(step % steps if step < steps * stages else steps)
            )
        return self.lr_scheduler

    # ---- metrics and logs

    def _metrics_of_all_exits(self, prediction: EvalPrediction) -> dict[str, float]:
        """predictions (N, E, C) -> the metric at the last exit, at each exit and averaged."""
        metric = self._metric_of_one_exit or default_metric(self.model.problem_type)
        layers = self.model.config.exit_layers
        per_exit = [metric(EvalPrediction(prediction.predictions[:, index], prediction.label_ids)) for index in range(len(layers))]
        figures = dict(per_exit[-1])
        for name in per_exit[-1]:
            figures |= {f"{name}_exit_{layer}": of_exit[name] for layer, of_exit in zip(layers, per_exit, strict=True)}
            figures[f"{name}_mean"] = float(np.mean([of_exit[name] for of_exit in per_exit]))
        return figures

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """As `Trainer.prediction_step`; the predictions are the logits of every exit (B, E, C)."""
        others = [key for key in self.model.config.keys_to_ignore_at_inference if key != "exit_logits"]
        return super().prediction_step(model, inputs, prediction_loss_only, [*(ignore_keys or []), "logits", *others])

    def predict(self, *args: Any, **kwargs: Any) -> PredictionOutput:
        """As `Trainer.predict`: predictions (N, C) are those of the last exit, metrics those of every exit."""
        output = super().predict(*args, **kwargs)
        return output._replace(predictions=output.predictions[:, -1])

    def _settings_for_card(self) -> dict[str, Any]:
        """What a reader of the model card wants to know of the training."""
        args = self.args
        names = ("objective", "learning_rate", "num_train_epochs", "max_steps", "weight_decay", "warmup_steps", "seed")
        settings = {name: getattr(args, name) for name in names if name != "max_steps" or args.max_steps > 0}
        if args.regularizes:
            settings["gradient_regularization"] = args.gradient_regularization
        settings["batch_size"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return settings | {"processes": args.world_size, "optimizer": str(args.optim), "hub_model_id": args.hub_model_id}

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: Any = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: Any = None,
        dataset_tags: Any = None,
        dataset: Any = None,
        dataset_args: Any = None,
    ) -> None:
        """As `Trainer.create_model_card`, with the card of this package (model_card.py); a README.md of the user's own stays."""
        if not self.is_world_process_zero():
            return
        settings = self.model.training_settings or self._settings_for_card()
        given = {"language": language, "license": license, "base_model": finetuned_from, "datasets": dataset_tags or dataset}
        settings |= {name: value for name, value in given.items() if value is not None}
        write_model_card(self.args.output_dir, self.model.config, self.model.evaluation, settings)

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, "sum")

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As `Trainer.log`; the log of a training step gets the means since the last one, read from the device here."""
        if self._guard is not None:
            self._guard.check()
        if "loss" in logs and self._guard is not None:
            logs |= self._means.read(self._sum_over_processes)
            skipped, fault = self._guard.read_skipped(), self._guard.read_fault()
            if skipped or self.args.non_finite == "skip":
                logs["skipped_steps"] = skipped
            if fault is not None:
                logger.warning(f"{fault}. Steps left out since the last log: {skipped}.")
        super().log(logs, *args, **kwargs)


def shared_weights(model: RomeBertForSequenceClassification) -> list[nn.Parameter]:
    """Weight matrices of the layers that both the last exit and another one reach: S in the paper.

    Layers 1 .. the deepest exit before the last; no norms, biases, embeddings or exits, and no frozen weights. A matrix that layers
    share counts once.
    """
    reached = model.config.exit_layers[-2] if len(model.config.exit_layers) > 1 else 0
    layers = nn.ModuleList(model.layers[:reached])
    return [parameter for parameter in layers.parameters() if parameter.ndim == 2 and parameter.requires_grad]
