"""RomeBertTrainer: the Trainer of transformers with the exits' loss terms, and their two gradients, in
`compute_loss`.

Which terms a step minimises is data (objectives.py); the terms are in losses.py and the projection in
gradient_projection.py; reading data and evaluating exits is in exit_trainer.py. The training loop,
accumulation, clipping, schedules, checkpoints and launchers are the library's.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..certificate import forget_certificate
from ..configuration_romebert import ProblemType
from ..data.fingerprint import rows_seen, sample_of, together
from ..losses import ExitLoss, as_rows, labelled_rows
from .arguments import RomeBertTrainingArguments
from .class_weights import ClassWeights
from .compatibility import check_together
from .exit_trainer import ExitTrainer
from .head_rates import DEFAULT_FACTOR, set_head_rate
from .library_hooks import HookWatch
from .number_starts import start_at_mean
from .own_loss import losses_of_own
from .resume import TRAINER_STATE, checkpoint_to_resume
from .search import Trials, evaluation_loss, metrics_of_last_exit
from .stages import restarting
from .training_run import TrainingRun, minimised


class RomeBertTrainer(ExitTrainer):
    """Trains and evaluates a `RomeBertForSequenceClassification` or `RomeBertForTokenClassification`.

    Arguments are those of `Trainer`; `args` is a `RomeBertTrainingArguments`. `compute_metrics` and
    `preprocess_logits_for_metrics` see one exit at a time, (N, C) and (B, C), and evaluation reports the
    figures of the last exit under their own names, of each exit as `{name}_exit_{layer}` and, of what is a
    number, the mean over exits as `{name}_mean` (exit_metrics.py). Without either, the metric is accuracy, or
    what fits the problem type; of a token classifier that of entities and tags (entities.py). Losses are
    those of the objective.

    Logged besides the loss: `loss_last`, `loss_exits`, `loss_exit_{layer}` (each exit's loss against the
    labels), and with regularization `gradient_cosine` (of the two gradients on the shared weights) and
    `projected` (share of steps in which they
    conflicted): means over steps and processes since the last log, without the numbers that are not finite.
    `skipped_steps` counts those that `non_finite="skip"` left out since then.

    The exits' heads learn at `exit_learning_rate_factor` times the rate of the rest (head_rates.py). Those of
    a regression start at the mean of the labels (number_starts.py), unless a `compute_loss_func` gives their
    answers another meaning.

    Settings are read when a training or an evaluation starts: those changed after construction, as by a
    search, count. What one training keeps between its steps is in training_run.py. `compute_loss_func` takes
    the place of each exit's loss against the labels; its outputs hold that exit's `logits` (B, C).

    Raises:
        TypeError, ValueError: a model, arguments or labels that it cannot train with.
        FloatingPointError: a loss or gradient that is not finite, under `non_finite="stop"`.
    """

    # The loss is a mean over the batch, so the stock training step divides it by the accumulation steps.
    loss_is_scaled_for_ga = False
    # exit_learning_rate_factor where the arguments leave it out.
    default_head_rate = DEFAULT_FACTOR

    args: RomeBertTrainingArguments
    model: Any
    lr_scheduler: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, RomeBertTrainingArguments):
            raise TypeError(
                f"args is a {type(self.args).__name__}; RomeBertTrainer takes RomeBertTrainingArguments."
            )
        self._given_optimizer = self.optimizer is not None
        self._head_rate: float | None = None  # of the optimizer, as a multiple, once the trainer has made it
        self._check_settings()
        self._hooks = HookWatch()
        self.add_callback(self._hooks)
        self._run: TrainingRun | None = None  # while there is one
        self._class_weights = ClassWeights()
        self._trials = Trials()  # of a search

    def _check_settings(self) -> None:
        """Refuse a model and arguments that do not go together, as they are now."""
        check_together(
            self.romebert,
            self.args,
            own_optimizer=self._given_optimizer,
            own_loss=self.compute_loss_func is not None,
        )

    # ---- the loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The objective's loss of one batch; in training, its backward hands out the regularized gradient."""
        inputs = dict(inputs)
        labels = inputs.pop("labels", None)
        if labels is None:
            raise ValueError("the batch has no labels; the dataset needs a column `labels` (or `label`).")
        romebert = self.romebert
        romebert.note_labels(labels)
        if self._run is None or self.args.label_smoothing_factor:  # for which the labels' kind matters
            self._check_settings()
        run = self._run if self.model.training and torch.is_grad_enabled() else None
        terms = self.args.training_objective.terms if run is None else run.enter_step(self.state.global_step)
        exit_loss = self._exit_loss() if self._run is None else self._run.exit_loss
        outputs = model(**inputs | {"return_dict": True})  # whatever the config says
        per_exit = self._losses_of_exits(outputs, labels, inputs, num_items_in_batch, run is not None)
        losses = exit_loss(
            outputs.exit_logits,
            labels,
            exit_layers=romebert.config.exit_layers,
            problem_type=romebert.problem_type,
            per_exit=per_exit,
        )
        if run is None:
            loss = minimised(losses, terms)
        else:
            _, of_rows = as_rows(outputs.exit_logits, labels)
            any_labelled = labelled_rows(of_rows, romebert.problem_type).any()
            loss = run.loss(losses, terms, any_labelled, end_of_group=self.accelerator.sync_gradients)
        return (loss, outputs) if return_outputs else loss

    def _exit_loss(self) -> ExitLoss:
        """The loss that the arguments now describe."""
        weights = self._class_weights(
            self.args.class_weights, self.train_dataset, self.romebert.config, self.data_collator
        )
        return self.args.exit_loss(weights)

    def _losses_of_exits(
        self, outputs: Any, labels: Tensor, inputs: dict[str, Any], num_items_in_batch: Any, trains: bool
    ) -> Tensor | None:
        """(E,): another loss of each exit against the labels, `compute_loss_func`'s; `None` without one."""
        if self.compute_loss_func is None:
            return None
        return losses_of_own(
            self.compute_loss_func, outputs, labels, self.romebert.config.exit_layers, num_items_in_batch
        ) * self._items_per_mean(num_items_in_batch, trains)

    def _items_per_mean(self, num_items_in_batch: Any, trains: bool) -> int:
        """A user's loss may divide by the items of a whole group of micro-batches, in all processes, as in
        the stock Trainer; what comes out of `compute_loss` is a mean over a micro-batch.
        """
        factor = self.current_gradient_accumulation_steps if trains else 1
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            factor *= self.accelerator.num_processes
        return factor

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `Trainer.training_step`; notes what only the gradients tell, after the last backward pass of a
        group.
        """
        loss = super().training_step(*args, **kwargs)
        if self._run is not None and self.accelerator.sync_gradients:
            self._run.end_group()
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer._get_grad_norm`, once per step, between the gradients and the optimizer: where a step
        is judged.
        """
        self._hooks.note("_get_grad_norm")
        norm = super()._get_grad_norm(*args, **kwargs)
        if isinstance(norm, Tensor) and self._run is not None:
            self._run.judge(norm, self.state.global_step + 1, self.optimizer)
        return norm

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.get_batch_samples`, which begins a step: what is left of an unfinished one goes."""
        self._hooks.note("get_batch_samples")
        if self._run is not None:
            self._run.begin_group()
        return super().get_batch_samples(*args, **kwargs)

    # ---- a training

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; a two-stage objective runs `num_train_epochs` (or `max_steps`) per stage.

        Args:
            resume_from_checkpoint: `True` continues from the newest complete checkpoint in `output_dir`: one
                that was cut off while it was written is passed over. A path is a complete checkpoint.

        Raises:
            ValueError: settings or a dataset that cannot be trained with, or no complete checkpoint
                (resume.py).
            FloatingPointError: see `RomeBertTrainer`.
        """
        if resume_from_checkpoint:
            resume_from_checkpoint = checkpoint_to_resume(resume_from_checkpoint, str(self.args.output_dir))
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._close_run()

    def set_initial_training_values(self, args: TrainingArguments, *rest: Any, **kwargs: Any) -> Any:
        """As `Trainer.set_initial_training_values`: every stage takes the epochs, or steps, that the
        arguments give.

        A training starts here, also one that starts anew with smaller batches: by now `model_init` has made
        its model, and a search has set the arguments of its trial.
        """
        self._hooks.note("set_initial_training_values")
        self._start_run()
        stages = len(self.args.training_objective.stages)
        whole = copy.copy(args)
        whole.num_train_epochs = args.num_train_epochs * stages
        whole.max_steps = args.max_steps * stages if args.max_steps > 0 else args.max_steps
        return super().set_initial_training_values(whole, *rest, **kwargs)

    def _start_run(self) -> None:
        self._close_run()
        self._check_settings()
        model = self.romebert
        self._run = TrainingRun(model, self.model, self.args, self._exit_loss(), self._sum_over_processes)
        self._settle_unused_weights()
        if model.problem_type == ProblemType.REGRESSION and self.compute_loss_func is None:
            start_at_mean(self.model, model.config, self.train_dataset, self.data_collator)
        if self.hp_search_backend is not None and self.compute_objective is evaluation_loss:
            self._trials.compare(self.args.objective, self._run.exit_loss)
        self._run.exit_loss.write_to(model.config)  # which tells what the weights were trained for
        model.exit_loss = self._run.exit_loss
        seen = together(rows_seen(model), sample_of(self.train_dataset))
        model.evaluation, model.training_settings = None, self.args.for_card()
        forget_certificate(model.config, "the model is trained further")
        if seen is not None:  # in this training or before: which no calibration may use
            model.training_settings["rows_seen"] = seen

    def _settle_unused_weights(self) -> None:
        """Tell DDP of weights that the objective leaves without a gradient, where the objective is another
        than at construction.
        """
        self.args.settle_unused_weights()
        if self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler.find_unused_parameters = self.args.ddp_find_unused_parameters

    def _close_run(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.close()

    # ---- optimizer, checkpoints and schedule

    def create_optimizer(self, model: Any = None) -> Any:
        """As `Trainer.create_optimizer`; the exits' heads get their own learning rate."""
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if made:
            self._head_rate = set_head_rate(
                optimizer,
                self.model if model is None else model,
                self.args.exit_learning_rate_factor,
                self.default_head_rate,
                deepspeed=self.is_deepspeed_enabled,
            )
        if self._head_rate is not None and self._run is not None:
            self.romebert.training_settings["exit_learning_rate_factor"] = self._head_rate
        return optimizer

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As `Trainer._load_optimizer_and_scheduler`; says what other groups of weights come from."""
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            if "parameter group" not in str(error):
                raise
            raise ValueError(
                f"{checkpoint} is of a training with another exit_learning_rate_factor, or with other weights"
                f" frozen: {error} Give what it was trained with (1 is version 0.1's), or train from its"
                " weights anew."
            ) from error

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As `Trainer._save_checkpoint`, in such an order that the folder is complete when its
        trainer_state.json is there.
        """
        self._hooks.note("_save_checkpoint")
        if self._run is not None and self._run.guard is not None:
            self._run.guard.check()
        folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save:
            # Of an earlier run, whose files are now written over.
            (folder / TRAINER_STATE).unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        """As `Trainer._save_rng_state`: the one file of each process, which the last file of the main process
        now waits for.
        """
        self._hooks.note("_save_rng_state")
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As `Trainer.create_scheduler`; each stage starts the schedule, warm-up included, anew."""
        stages = len(self.args.training_objective.stages)
        steps = max(num_training_steps // stages, 1)
        if self._run is not None:
            self._run.stages.steps = steps
        if stages == 1:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            schedule = super().create_scheduler(steps, optimizer)
            self.lr_scheduler = restarting(
                schedule, self.args.lr_scheduler_type, steps, stages, optimizer or self.optimizer
            )
        return self.lr_scheduler

    def hyperparameter_search(
        self,
        hp_space: Any = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] = "minimize",
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As `Trainer.hyperparameter_search`; every setting of `RomeBertTrainingArguments` can be searched.

        Args:
            compute_objective: left out, what is minimised is the evaluation loss, and what is maximised the
                metric at the last exit; with a `compute_metrics` the sum of its figures at the last exit,
                either way. Trials whose loss is another one (`distillation_weight`, `objective`,
                `class_weights`, ...) cannot be compared by it: maximise a metric then.
        """
        self._trials = Trials()
        if compute_objective is None:
            by_loss = self.compute_metrics == self._default_metrics and direction == "minimize"
            compute_objective = evaluation_loss if by_loss else metrics_of_last_exit
        return super().hyperparameter_search(
            hp_space, compute_objective, n_trials, direction, *args, **kwargs
        )

    # ---- logs

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, "sum")

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As `Trainer.log`; the log of a training step gets the means since the last one, read from the
        device here.
        """
        if self._run is not None:
            logs |= self._run.figures(of_step="loss" in logs)
        super().log(logs, *args, **kwargs)
