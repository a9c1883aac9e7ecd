"""ExitTrainer: the Trainer of transformers, with labels read by one rule, evaluation for every exit, and
uploads that load anywhere.

What a label means is in labels.py, what is wrong with a dataset in checks.py, and how what a user
gives for one exit is called for each in exit_metrics.py. The loss and the steps are in trainer.py.
"""

from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding, EvalPrediction, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput, HubStrategy
from transformers.utils import CONFIG_NAME

from ..data.checks import LabelCollator, check_dataset, is_stock
from ..evaluation.entities import token_metrics
from ..evaluation.metrics import default_metric
from ..hub import copy_code
from ..pretrained import inner_model
from .exit_metrics import ExitMetrics, PerExit, at_exit, for_each_exit
from .row_order import EpochSeededGroups, TellsEpoch


class ExitTrainer(Trainer):
    """The data, the evaluation and the uploads of a `RomeBertTrainer`; see there."""

    args: Any
    model: Any
    compute_metrics: Any
    data_collator: Any
    preprocess_logits_for_metrics: Any
    gather_function: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(TellsEpoch())
        if self.romebert.config.classifies_tokens and type(self.data_collator) is DataCollatorWithPadding:
            # The library's default, which does not pad labels.
            self.data_collator = DataCollatorForTokenClassification(self.data_collator.tokenizer)
        self._default_metric: Callable[..., dict[str, float]] | None = None
        if self.compute_metrics is None:
            self.compute_metrics = self._default_metrics

    @property
    def romebert(self) -> Any:
        """The model itself, without adapters and other wrappers."""
        return inner_model(self.model)

    # ---- data

    def _check_datasets(self) -> None:
        named = {"train_dataset": self.train_dataset}
        if self.args.eval_strategy != "no":
            several = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
            named |= {
                f"eval_dataset[{key!r}]" if key else "eval_dataset": dataset
                for key, dataset in several.items()
            }
        for name, dataset in named.items():
            if dataset is not None:
                check_dataset(
                    dataset, name, self.romebert.config, self.data_collator, trains=name == "train_dataset"
                )
        batch = self.args.train_batch_size * self.args.world_size
        if (
            self.args.dataloader_drop_last
            and isinstance(self.train_dataset, Sized)
            and len(self.train_dataset) < batch
        ):
            raise ValueError(
                f"train_dataset has {len(self.train_dataset)} rows, less than one batch of {batch}, which"
                " dataloader_drop_last=True drops. Set it to False, or use a smaller"
                " per_device_train_batch_size."
            )

    @contextmanager
    def _labels_read(self, dataset: Any, name: str) -> Iterator[None]:
        """While a data loader is made: its collator reads the labels of each row first, by the rule of
        labels.py.
        """
        collator = self.data_collator
        if dataset is not None and not self.is_in_train:  # else `_check_datasets` did that
            check_dataset(dataset, name, self.romebert.config, collator, trains=False, needs_labels=False)
        if is_stock(collator):
            config, max_tokens = self.romebert.config, self.romebert.max_tokens
            needs_labels = name == "train_dataset"
            self.data_collator = LabelCollator(collator, config, max_tokens, name, needs_labels)
        try:
            yield
        finally:
            self.data_collator = collator

    def get_train_dataloader(self) -> DataLoader:
        """As `Trainer.get_train_dataloader`, after a look at the labels of what is trained and evaluated on;
        names become ids.
        """
        self._check_datasets()
        with self._labels_read(None, "train_dataset"):
            return super().get_train_dataloader()

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer._get_train_sampler`; rows grouped by length come in an order that a run which goes on
        finds again.
        """
        sampler = super()._get_train_sampler(*args, **kwargs)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochSeededGroups(sampler, seed)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As `Trainer.get_eval_dataloader`; class names become ids."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        name = "eval_dataset"
        if isinstance(dataset, str):
            dataset, name = self.eval_dataset[dataset], f"eval_dataset[{dataset!r}]"
        with self._labels_read(dataset, name):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As `Trainer.get_test_dataloader`; class names become ids."""
        with self._labels_read(test_dataset, "test_dataset"):
            return super().get_test_dataloader(test_dataset)

    # ---- evaluation

    def _default_metrics(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """The metric of an evaluation for which none is given; made with its first predictions: labels may
        settle the problem.
        """
        if self._default_metric is None:
            config = self.romebert.config
            names = [config.id2label[index] for index in range(config.num_labels)]
            self._default_metric = (
                token_metrics(names)
                if config.classifies_tokens
                else default_metric(self.romebert.problem_type)
            )
        return self._default_metric(prediction, compute_result)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As `Trainer.evaluation_loop`, with what is for one exit called for each (exit_metrics.py);
        predictions are the last's.
        """
        given = self.compute_metrics, self.preprocess_logits_for_metrics
        metric, preprocess = given
        self._default_metric = None
        if metric == self._default_metrics and preprocess is not None:
            metric = None  # it takes logits
        self.compute_metrics = (
            None if metric is None else ExitMetrics(metric, self.romebert.config.exit_layers)
        )
        if preprocess is not None:
            self.preprocess_logits_for_metrics = for_each_exit(preprocess)
        # Gathered as objects, a tuple would lose exits with the rows beyond the dataset's end. The loop sets
        # the library's again.
        self.gather_function = for_each_exit(self.gather_function)
        try:
            output = super().evaluation_loop(*args, **kwargs)
        finally:
            self.compute_metrics, self.preprocess_logits_for_metrics = given
        return output._replace(predictions=at_exit(output.predictions, -1))

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As `Trainer._determine_best_metric`; before the last stage of an objective no checkpoint is the
        best, as the exits before the last have not been trained by then.
        """
        state, stages = self.state, len(self.args.training_objective.stages)
        before = state.best_metric, state.best_global_step
        is_best = super()._determine_best_metric(metrics, trial)  # which refuses a metric that there is not
        if state.global_step > state.max_steps // stages * (stages - 1):
            return is_best
        state.best_metric, state.best_global_step = before
        return False

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        """As `Trainer.prediction_step`; the predictions are a `PerExit` of the logits (B, C).

        Hidden states and attentions are predictions too, of each exit, where `ignore_keys` is given without
        them.
        """
        ignored = self.romebert.config.keys_to_ignore_at_inference if ignore_keys is None else ignore_keys
        ignored = [*(key for key in ignored if key != "exit_logits"), "loss", "logits", "exit_layer"]
        loss, outputs, labels = super().prediction_step(
            model, {**inputs, "return_dict": True}, prediction_loss_only, ignored
        )
        if outputs is None:
            return loss, None, labels
        exit_logits, *others = outputs if isinstance(outputs, tuple) else (outputs,)
        return (
            loss,
            PerExit((logits, *others) if others else logits for logits in exit_logits.unbind(1)),
            labels,
        )

    # ---- what is published

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
        """As `Trainer.create_model_card`, with the card of this package (model_card.py); a README.md of the
        user's own stays.
        """
        if not self.is_world_process_zero():
            return
        settings = dict(self.romebert.training_settings or self.args.for_card())
        given = {
            "language": language,
            "license": license,
            "base_model": finetuned_from,
            "datasets": dataset_tags or dataset,
        }
        settings |= {name: value for name, value in given.items() if value is not None}
        self.romebert.write_card(self.args.output_dir, training=settings)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As `Trainer._push_from_checkpoint`, which uploads config and weights of a checkpoint while training
        goes on; the code that the config names, the card and the record go with them.
        """
        ends = self.args.hub_strategy == HubStrategy.END  # at which alone it uploads
        if self.is_world_process_zero() and not ends and Path(checkpoint_folder, CONFIG_NAME).is_file():
            copy_code(self.romebert.config, Path(self.args.output_dir))
            self.create_model_card()
        super()._push_from_checkpoint(checkpoint_folder)
