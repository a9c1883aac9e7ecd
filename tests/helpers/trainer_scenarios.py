"""Settings of a Trainer for evaluation, prediction, metrics, logs, checkpoints and batches, as data: what is
given, what is done.

See test_trainer_scenarios.py.
"""

from collections import OrderedDict
from pathlib import Path

import datasets
import numpy as np
import torch
from by_version import CHECKPOINTING
from sklearn.metrics import classification_report
from stock_and_ours import label_and_scores, of_label_and_scores
from tiny import tiny_rows, tiny_tokenizer
from torch.utils.data import Dataset, IterableDataset
from transformers import DataCollatorWithPadding, EarlyStoppingCallback, TrainerCallback

# ---- what users give a Trainer


def accuracy(prediction):
    return {"accuracy": np.mean(prediction.predictions.argmax(-1) == prediction.label_ids)}


def accuracy_of_batches(prediction):
    hits = [
        logits.argmax(-1) == labels
        for logits, labels in zip(prediction.predictions, prediction.label_ids, strict=True)
    ]
    return {"accuracy": np.concatenate(hits).mean()}


def accuracy_of_ids(prediction):
    return {"accuracy": np.mean(prediction.predictions == prediction.label_ids)}


def accuracy_of_first(prediction):
    """Of models that give more than logits, or take more than labels."""
    logits, labels = (
        p[0] if isinstance(p, tuple) else p for p in (prediction.predictions, prediction.label_ids)
    )
    return {"accuracy": np.mean(logits.argmax(-1) == labels)}


class BatchAccuracy:
    """With a state of its own from batch to batch, as the tests of transformers have it."""

    def __init__(self):
        self.hits = []

    def __call__(self, prediction, compute_result):
        said = prediction.predictions
        self.hits += ((said.argmax(-1) if said.ndim == 2 else said) == prediction.label_ids).tolist()
        if compute_result:
            result = {"accuracy": np.mean(self.hits), "rows": len(self.hits)}
            self.hits = []
            return result


def sees(prediction, compute_result=True):
    """What of inputs and losses there is to see."""
    seen = {
        "inputs": prediction.inputs is not None,
        "losses": prediction.losses is not None,
        "parts": len(list(prediction)),
    }
    return seen | (
        {"loss_seen": np.mean(prediction.losses)} if isinstance(prediction.losses, np.ndarray) else {}
    )


def sums_inputs(prediction):
    return {"ids": int(prediction.inputs.sum()), "rows": len(prediction.inputs)}


def overwrites(prediction):
    """Legal with stock, where it is the only one to see them."""
    logits, labels = prediction
    labels += 1
    logits *= 0
    return {"labels": labels.sum(), "logits": logits.sum()}


def report_by_class(prediction):
    return classification_report(
        prediction.label_ids, prediction.predictions.argmax(-1), output_dict=True, zero_division=0
    )


def returns(value):
    return {"compute_metrics": lambda prediction: value}


def argmax(logits, labels):
    return logits.argmax(-1)


def without_labels(rows):
    return [{name: value for name, value in row.items() if name != "labels"} for row in rows]


def labelled(label, seed=0):
    return [row | {"labels": label(row["labels"], number)} for number, row in enumerate(tiny_rows(10, seed))]


def as_dict(rows):
    return dict(DataCollatorWithPadding(tiny_tokenizer())(rows))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(tiny_rows(10, seed=1))


class Indexed(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return tiny_rows(10, seed=1)[index]


def table(name="labels", **more):
    """A `datasets.Dataset` with its label column so named, and others that the model does not know."""
    return datasets.Dataset.from_list(
        [{**row, name: row["labels"], **more} for row in tiny_rows(10)]
    ).select_columns(["input_ids", "attention_mask", name, *more])


class ActsEachStep(TrainerCallback):
    def on_step_end(self, args, state, control, **rest):
        control.should_evaluate = control.should_save = control.should_log = True


class StopsAtOnce(TrainerCallback):
    def on_step_end(self, args, state, control, **rest):
        control.should_training_stop = True


# ---- what is done with a trainer, and what is told of it


def told_by(trainer):
    state, folder = trainer.state, Path(trainer.args.output_dir)
    checkpoints = {
        path.name: sorted(file.name for file in path.iterdir()) for path in folder.glob("checkpoint-*")
    }
    of_stock = (
        ".pt",
        ".pth",
        ".json",
        ".safetensors",
        ".bin",
    )  # ours writes its code, its card and its record besides
    kept = {
        name: [file for file in files if file.endswith(of_stock) and file != "model_record.json"]
        for name, files in checkpoints.items()
    }
    best = (state.best_metric, state.best_global_step, Path(state.best_model_checkpoint or "").name)
    return {
        "log": state.log_history,
        "steps": state.global_step,
        "epoch": state.epoch,
        "best": best,
        "checkpoints": kept,
    }


def train(trainer):
    trainer.train()
    return told_by(trainer) | {"eval": trainer.evaluate(), "predict": predict(trainer)}


def train_alone(trainer):
    return [trainer.train(), told_by(trainer)]


def evaluate(trainer, **arguments):
    return trainer.evaluate(**arguments)


def predict(trainer, rows=None, **arguments):
    return trainer.predict(tiny_rows(6, seed=2) if rows is None else rows, **arguments)._asdict()


def use(trainer):
    """Both, without training."""
    return {"eval": evaluate(trainer), "predict": predict(trainer)}


def use_without_labels(trainer):
    rows = without_labels(tiny_rows(6))
    return {"eval": evaluate(trainer, eval_dataset=rows), "predict": predict(trainer, rows)}


def use_ignoring(*keys):
    return lambda trainer: {
        "eval": evaluate(trainer, ignore_keys=list(keys)),
        "predict": predict(trainer, ignore_keys=list(keys)),
    }


def resume(trainer):
    trainer.train()
    trainer.args.max_steps = 4
    trainer.train(resume_from_checkpoint=True)
    return told_by(trainer)


def resume_by_arguments(trainer):
    trainer.train()
    trainer.args.max_steps, trainer.args.resume_from_checkpoint = 3, f"{trainer.args.output_dir}/checkpoint-1"
    trainer.train()
    return told_by(trainer)


def resume_past_the_end(trainer):
    trainer.train()
    trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-2")
    return told_by(trainer)


def train_twice(trainer):
    return [evaluate(trainer), trainer.train(), evaluate(trainer), trainer.train(), told_by(trainer)]


def write_metrics(trainer):
    """The printed form rounds to 4 digits."""
    trainer.train()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    trainer.save_state()
    return {path.name: path.stat().st_size > 0 for path in Path(trainer.args.output_dir).glob("*.json")}


def train_ignoring(trainer):
    trainer.train(ignore_keys_for_eval=["hidden_states"])
    return told_by(trainer)


def setting_metrics_late(metrics):
    def act(trainer):
        trainer.compute_metrics = metrics
        return use(trainer)

    return act


def scenario(settings=None, given=None, act=train, model=None, metrics=accuracy):
    """`given` may be a function, for what a run uses up."""
    fixed = {"compute_metrics": metrics}
    return settings or {}, (lambda: fixed | (given() if callable(given) else given or {})), act, model or {}


EACH_STEP = {"eval_strategy": "steps", "eval_steps": 1}
SAVED = {"save_strategy": "steps", "save_steps": 1}
ONE_STEP = EACH_STEP | SAVED | {"max_steps": 1}
BEST = EACH_STEP | SAVED | {"load_best_model_at_end": True, "max_steps": 3}
BY_BATCH = {"batch_eval_metrics": True}
TWO = {"a": tiny_rows(6, seed=1), "b": tiny_rows(5, seed=2)}

# One setting, or a few, each: trained, evaluated and predicted with.
SETTINGS = [
    {},
    # evaluation
    EACH_STEP,
    {"eval_strategy": "epoch", "max_steps": 4},
    {"eval_strategy": "steps", "eval_steps": 0.5},
    EACH_STEP | {"eval_on_start": True},
    EACH_STEP | {"eval_delay": 2},
    {"eval_strategy": "epoch", "eval_delay": 1, "max_steps": 6},
    {"eval_accumulation_steps": 1},
    {"eval_use_gather_object": True},
    {"prediction_loss_only": True},
    {"per_device_eval_batch_size": 1},
    {"per_device_eval_batch_size": 64},
    {"bf16_full_eval": True},
    {"fp16_full_eval": True},
    {"do_train": True, "do_eval": True, "do_predict": True},
    # best model and checkpoints
    BEST,
    BEST | {"metric_for_best_model": "eval_loss"},
    BEST | {"metric_for_best_model": "accuracy", "greater_is_better": True, "save_total_limit": 1},
    BEST | {"metric_for_best_model": "absent"},
    EACH_STEP | {"save_strategy": "best", "metric_for_best_model": "accuracy"},
    EACH_STEP | {"save_strategy": "best"},
    {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "max_steps": 4},
    {"save_strategy": "epoch", "max_steps": 4},
    {"save_strategy": "steps", "save_steps": 0.5},
    SAVED | {"save_total_limit": 1},
    SAVED | {"save_only_model": True},
    SAVED | {"save_on_each_node": True},
    SAVED | {"enable_jit_checkpoint": True},
    # logs
    {"logging_strategy": "epoch", "max_steps": 4},
    {"logging_strategy": "no"},
    {"logging_steps": 0.5},
    {"logging_first_step": True, "logging_steps": 2, "max_steps": 3},
    {"logging_nan_inf_filter": False},
    {"disable_tqdm": False},
    {"log_level": "info"},
    {"log_on_each_node": False},
    {"include_num_input_tokens_seen": "all"},
    {"include_num_input_tokens_seen": "non_padding"},
    {"report_to": "tensorboard"},
    {"run_name": "name", "project": "name"},
    {"skip_memory_metrics": False},
    # batches and data
    {"auto_find_batch_size": True},
    {"dataloader_drop_last": True},
    {"dataloader_drop_last": True, "per_device_eval_batch_size": 64},
    {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 2},
    {"dataloader_pin_memory": False, "dataloader_in_order": False},
    {"remove_unused_columns": False},
    {"train_sampling_strategy": "sequential"},
    {"accelerator_config": {"split_batches": True}},
    {"accelerator_config": {"even_batches": False, "dispatch_batches": False}},
    {"gradient_accumulation_steps": 2},
    {"label_names": ["labels"]},
    {"label_names": ["absent"]},
    {"label_names": []},
    # length of the run, and how it steps
    {"max_steps": -1, "num_train_epochs": 1},
    {"max_steps": -1, "num_train_epochs": 0.5},
    {"max_steps": -1, "num_train_epochs": 0},
    {"seed": 1, "data_seed": 2},
    {"full_determinism": True},
    {"bf16": True},
    {"torch_empty_cache_steps": 1},
    {CHECKPOINTING: True},
    {"neftune_noise_alpha": 0.1},
    {"label_smoothing_factor": 0.1},
    {"optim": "sgd"},
    {"optim": "adafactor"},
    {"max_grad_norm": 0.0, "weight_decay": 0.1, "warmup_steps": 1},
    {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}},
    EACH_STEP | {"lr_scheduler_type": "reduce_lr_on_plateau"},
    EACH_STEP | {"lr_scheduler_type": "greedy"},
    {"hub_strategy": "every_save", "hub_model_id": "name/name"},
]

BASES = {"best": BEST, "each-step": EACH_STEP, "saved": SAVED}


def name_of(settings):
    """The settings, with those that go together by one name."""
    parts = []
    for name, base in BASES.items():
        if base.items() <= settings.items():
            parts.append(name)
            settings = {key: value for key, value in settings.items() if key not in base}
    return " ".join([*parts, *(f"{name}={value}" for name, value in settings.items())]) or "defaults"


ODD_VALUES = {
    "none": None,
    "text": "text",
    "nested": {"b": 1.0},
    "numpy": np.float32(0.5),
    "tensor": torch.tensor(0.5),
    "list": [1, 2],
    "truth": True,
    "not-a-number": float("nan"),
}

SCENARIOS = {
    **{name_of(settings): scenario(settings) for settings in SETTINGS},
    # metrics: what they return
    "metrics-absent": scenario(metrics=None),
    "metrics-return-nothing": scenario(given=returns(None), act=evaluate),
    "metrics-return-a-list": scenario(given=returns([1.0]), act=evaluate),
    "metrics-return-no-figures": scenario(ONE_STEP, returns({})),
    "metrics-with-prefix": scenario(given=returns({"eval_a": 1.0}), act=use),
    "metrics-of-a-kind-of-dict": scenario(given=returns(OrderedDict(a=1.0)), act=use),
    "metrics-named-as-ours": scenario(given=returns({"a": 1.0, "a_mean": 3.0, "a_exit_1": 4.0}), act=use),
    "metrics-named-loss": scenario(EACH_STEP, returns({"loss": 3.0})),
    "metrics-with-an-array": scenario(given=returns({"a": np.ones(2)}), act=use),
    **{f"metrics-{name}": scenario(ONE_STEP, returns({"a": value})) for name, value in ODD_VALUES.items()},
    "metrics-by-class": scenario(ONE_STEP, metrics=report_by_class),
    "metrics-that-overwrite": scenario(metrics=overwrites, act=evaluate),
    "metrics-set-late": scenario(metrics=None, act=setting_metrics_late(accuracy)),
    "metrics-unset-late": scenario(act=setting_metrics_late(None)),
    "metrics-written": scenario(act=write_metrics),
    # metrics: what they see
    "sees-inputs": scenario({"include_for_metrics": ["inputs"]}, metrics=sums_inputs, act=use),
    "sees-losses": scenario({"include_for_metrics": ["loss"]}, metrics=sees, act=use),
    "sees-both": scenario({"include_for_metrics": ["inputs", "loss"]}, metrics=sees, act=use),
    "sees-both-by-batch": scenario(
        {"include_for_metrics": ["inputs", "loss"]} | BY_BATCH, metrics=sees, act=use
    ),
    "sees-neither": scenario(metrics=sees, act=use),
    "sees-batches": scenario({"eval_do_concat_batches": False}, metrics=accuracy_of_batches, act=use),
    "sees-batches-accumulated": scenario(
        {"eval_do_concat_batches": False, "eval_accumulation_steps": 1}, metrics=accuracy_of_batches, act=use
    ),
    # metrics: by batch
    "by-batch": scenario(BY_BATCH | EACH_STEP, lambda: {"compute_metrics": BatchAccuracy()}),
    "by-batch-accumulated": scenario(
        BY_BATCH | {"eval_accumulation_steps": 1}, lambda: {"compute_metrics": BatchAccuracy()}, use
    ),
    "by-batch-apart": scenario(
        BY_BATCH | {"eval_do_concat_batches": False}, lambda: {"compute_metrics": BatchAccuracy()}, use
    ),
    "by-batch-loss-only": scenario(
        BY_BATCH | {"prediction_loss_only": True}, lambda: {"compute_metrics": BatchAccuracy()}, use
    ),
    "by-batch-without-labels": scenario(
        BY_BATCH, lambda: {"compute_metrics": BatchAccuracy()}, use_without_labels
    ),
    "by-batch-of-ids": scenario(
        BY_BATCH, lambda: {"compute_metrics": BatchAccuracy(), "preprocess_logits_for_metrics": argmax}, use
    ),
    "by-batch-of-a-stream": scenario(
        BY_BATCH, lambda: {"compute_metrics": BatchAccuracy(), "eval_dataset": Stream()}, use
    ),
    "by-batch-returning-nothing": scenario(
        BY_BATCH, metrics=lambda prediction, compute_result: None, act=use
    ),
    "by-batch-without-the-argument": scenario(BY_BATCH),
    # preprocess_logits_for_metrics
    "ids": scenario(given={"preprocess_logits_for_metrics": argmax}, metrics=accuracy_of_ids),
    "ids-accumulated": scenario(
        {"eval_accumulation_steps": 1},
        {"preprocess_logits_for_metrics": argmax},
        metrics=accuracy_of_ids,
        act=use,
    ),
    "ids-apart": scenario(
        {"eval_do_concat_batches": False},
        {"preprocess_logits_for_metrics": argmax},
        metrics=lambda p: {"n": len(p[0])},
        act=use,
    ),
    "ids-without-metrics": scenario(given={"preprocess_logits_for_metrics": argmax}, metrics=None, act=use),
    "ids-gathered-as-objects": scenario(
        {"eval_use_gather_object": True},
        {"preprocess_logits_for_metrics": argmax},
        metrics=accuracy_of_ids,
        act=use,
    ),
    "tuples": scenario(
        given={"preprocess_logits_for_metrics": label_and_scores}, metrics=of_label_and_scores, act=use
    ),
    "hits": scenario(
        given={"preprocess_logits_for_metrics": lambda logits, labels: (logits.argmax(-1) == labels).float()},
        metrics=lambda prediction: {"accuracy": prediction.predictions.mean()},
        act=evaluate,
    ),
    "batches-of-other-widths": scenario(
        given={"preprocess_logits_for_metrics": lambda logits, labels: logits.repeat(1, len(logits))},
        metrics=lambda prediction: {
            "width": prediction.predictions.shape[1],
            "padded": int((prediction.predictions == -100).sum()),
        },
        act=use,
    ),
    "dicts": scenario(
        given={"preprocess_logits_for_metrics": lambda logits, labels: {"logits": logits}},
        metrics=lambda prediction: {"mean": prediction.predictions["logits"].mean()},
        act=use,
    ),
    # predict and evaluate
    "without-labels": scenario(act=use_without_labels),
    "without-labels-or-metrics": scenario(metrics=None, act=use_without_labels),
    "without-labels-loss-only": scenario({"prediction_loss_only": True}, act=use_without_labels),
    "loss-only-without-metrics": scenario({"prediction_loss_only": True}, metrics=None, act=use),
    "prefixes": scenario(
        act=lambda trainer: [
            evaluate(trainer, metric_key_prefix="dev"),
            predict(trainer, metric_key_prefix="x"),
        ]
    ),
    "ignoring-nothing": scenario(metrics=accuracy_of_first, act=use_ignoring()),
    "ignoring-states": scenario(act=use_ignoring("hidden_states"), model={"output_hidden_states": True}),
    "not-ignoring-states": scenario(
        metrics=accuracy_of_first, act=use_ignoring(), model={"output_hidden_states": True}
    ),
    "states-by-the-config": scenario(
        metrics=accuracy_of_first, act=use, model={"output_hidden_states": True}
    ),
    "ignoring-in-training": scenario(EACH_STEP, act=train_ignoring, model={"output_hidden_states": True}),
    "tuples-by-the-config": scenario(act=train, model={"return_dict": False}),
    "tuples-by-the-config-without-labels": scenario(act=use_without_labels, model={"return_dict": False}),
    "one-row": scenario(
        act=lambda trainer: [evaluate(trainer, eval_dataset=tiny_rows(1)), predict(trainer, tiny_rows(1))]
    ),
    "no-rows": scenario(act=lambda trainer: [evaluate(trainer, eval_dataset=[]), predict(trainer, [])]),
    # datasets, collators and callbacks
    "two-datasets": scenario(EACH_STEP, {"eval_dataset": TWO}, act=train_alone),
    "best-on-one-of-two-datasets": scenario(
        BEST | {"metric_for_best_model": "eval_b_accuracy"},
        {"eval_dataset": TWO},
        act=train_alone,
    ),
    "dataset-by-name": scenario(
        given={"eval_dataset": TWO}, act=lambda trainer: evaluate(trainer, eval_dataset="b")
    ),
    "dataset-by-name-that-is-not-there": scenario(
        given={"eval_dataset": TWO}, act=lambda trainer: evaluate(trainer, eval_dataset="c")
    ),
    "datasets-of-the-call": scenario(act=lambda trainer: evaluate(trainer, eval_dataset=TWO)),
    "no-eval-dataset": scenario(given={"eval_dataset": None}, act=evaluate),
    "no-eval-dataset-to-train-with": scenario(EACH_STEP, {"eval_dataset": None}),
    "no-train-dataset": scenario(given={"train_dataset": None}, act=use),
    "stream": scenario(EACH_STEP, lambda: {"train_dataset": Stream(), "eval_dataset": Stream()}),
    "stream-without-an-end": scenario({"max_steps": -1}, lambda: {"train_dataset": Stream()}),
    "indexed": scenario(given=lambda: {"train_dataset": Indexed(), "eval_dataset": Indexed()}),
    "table": scenario(
        given=lambda: {"train_dataset": table("label", text="x"), "eval_dataset": table("label", text="x")}
    ),
    "table-of-tensors": scenario(
        given=lambda: {"eval_dataset": table("label_ids").with_format("torch")}, act=use
    ),
    "table-as-a-stream": scenario(given=lambda: {"eval_dataset": table().to_iterable_dataset()}, act=use),
    "collator-that-pads-to-the-end": scenario(
        given={
            "data_collator": DataCollatorWithPadding(tiny_tokenizer(), padding="max_length", max_length=40)
        }
    ),
    "collator-that-makes-a-dict": scenario(
        given={"data_collator": lambda rows: dict(DataCollatorWithPadding(tiny_tokenizer())(rows))}
    ),
    "no-tokenizer": scenario(given={"processing_class": None}),
    "early-stopping": scenario(
        BEST | {"metric_for_best_model": "accuracy"}, lambda: {"callbacks": [EarlyStoppingCallback(1)]}
    ),
    "early-stopping-without-a-metric": scenario(given=lambda: {"callbacks": [EarlyStoppingCallback(1)]}),
    "callback-that-stops": scenario(given={"callbacks": [StopsAtOnce]}),
    "callback-that-acts": scenario({"logging_strategy": "no"}, {"callbacks": [ActsEachStep]}),
    "model-init": scenario(given={"model_init": True}),
    "optimizer-class": scenario(given={"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})}),
    # resuming
    "resume": scenario(SAVED, act=resume),
    "resume-without-skipping": scenario(SAVED | {"ignore_data_skip": True}, act=resume),
    "resume-with-one-checkpoint": scenario(SAVED | {"save_total_limit": 1}, act=resume),
    "resume-with-callbacks": scenario(SAVED | {"restore_callback_states_from_checkpoint": True}, act=resume),
    "resume-from-weights-alone": scenario(SAVED | {"save_only_model": True}, act=resume),
    "resume-from-nothing": scenario(act=lambda trainer: trainer.train(resume_from_checkpoint=True)),
    "resume-by-arguments": scenario(SAVED, act=resume_by_arguments),
    "resume-past-the-end": scenario(SAVED, act=resume_past_the_end),
    "train-twice": scenario(act=train_twice),
    # problems
    "regression": scenario(
        given=lambda: {
            name: labelled(lambda y, i: y + i / 10, seed)
            for seed, name in enumerate(("train_dataset", "eval_dataset"))
        },
        model={"num_labels": 1},
        metrics=None,
        act=evaluate,
    ),
    "several-numbers": scenario(
        given=lambda: {"eval_dataset": labelled(lambda y, i: [y * 1.0, i / 10])},
        model={"problem_type": "regression"},
        metrics=None,
        act=evaluate,
    ),
    "several-labels": scenario(
        given=lambda: {"eval_dataset": labelled(lambda y, i: [y * 1.0, 1.0])}, metrics=None, act=evaluate
    ),
    "a-label-in-a-list": scenario(
        given=lambda: {"eval_dataset": labelled(lambda y, i: [y])}, metrics=None, act=evaluate
    ),
    "labels-to-ignore": scenario(
        given=lambda: {"eval_dataset": labelled(lambda y, i: y if i % 3 else -100)},
        metrics=None,
        act=evaluate,
    ),
}

OWN_METRIC = ("there is a metric where none is given", r"/\w+_(accuracy|pearson|f1_micro): besides")
# Scenario: why ours differs, and where.
OTHERWISE = {
    "no-rows": ("no rows are a slip of whoever made the split, and are refused by name", "ValueError$"),
    "metrics-absent": OWN_METRIC,
    "regression": OWN_METRIC,
    "several-numbers": OWN_METRIC,
    "several-labels": OWN_METRIC,
    "a-label-in-a-list": OWN_METRIC,
    "labels-to-ignore": OWN_METRIC,
    "gradient_accumulation_steps=2": (
        "BERT takes loss arguments that it does not use, so the stock trainer adds the micro-batches'"
        " losses up",
        r"/log/\d/(loss|grad_norm|train_loss): ",
    ),
    "label_names=['absent']": (
        "stock has the loss among the predictions when it knows of no labels",
        r"/predict/predictions: ",
    ),
    "label_names=[]": (
        "stock has the loss among the predictions when it knows of no labels",
        r"/predict/predictions: ",
    ),
    "states-by-the-config": (
        "states of all layers are no predictions unless they are asked for",
        r"/predict/predictions: ",
    ),
    "resume-from-weights-alone": (
        "without its optimizer's state it is another run",
        r": .* and ValueError",
    ),
}
# In half precision a last digit may differ, and our losses are computed in fp32.
TOLERANCES = {"bf16_full_eval=True": 0.05, "fp16_full_eval=True": 0.05}
# What stock refuses, ours refuses.
RAISES = {
    "best metric_for_best_model=absent": "KeyError",
    "each-step save_strategy=best": "ValueError",
    "metrics-return-nothing": "TypeError",
    "metrics-return-a-list": "TypeError",
    "by-batch-without-the-argument": "ValueError",
    "dataset-by-name-that-is-not-there": "KeyError",
    "no-eval-dataset": "ValueError",
    "no-eval-dataset-to-train-with": "ValueError",
    "stream-without-an-end": "ValueError",
    "no-tokenizer": "ValueError",
    "early-stopping-without-a-metric": "AssertionError",
    "resume-from-nothing": "ValueError",
}
