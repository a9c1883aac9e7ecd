"""The stock `Trainer` with a stock classifier, and ours with the same weights: what each makes of the same
settings.

The last exit has the weights of the stock classifier, there is no dropout, and with objective="last" the same
loss is minimised: every number that the stock trainer tells, ours must tell too.
"""

import copy
import functools
import json
import math
import re
from pathlib import Path

import numpy as np
import torch
from processes import enter
from tiny import tiny_rows, tiny_tokenizer
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from modeling_romebert import (
    RomeBertConfig,
    RomeBertForSequenceClassification,
    RomeBertTrainer,
    RomeBertTrainingArguments,
)

LAYERS = 3
SIZES = {
    "vocab_size": 32,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 64,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
QUIET = {
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
    "learning_rate": 1e-3,
}
SMALL = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "logging_steps": 1,
}
ON_BOTH_CONFIGS = ("output_hidden_states", "return_dict")
MEASURED = re.compile(
    r"(_runtime|_per_second|_preparation_time|total_flos|_mem_\w+)$"
)  # by the clock, or more with more exits
BESIDES = re.compile(r"(_exit_\d+|_mean|loss_last|loss_exits|gradient_cosine|projected|skipped_steps)$")


def stock_model(num_labels=2, **settings):
    return copy.deepcopy(made(num_labels, **settings)[0])


def our_model(num_labels=2, **settings):
    return copy.deepcopy(made(num_labels, **settings)[1])


@functools.cache
def made(num_labels, **settings):
    """A stock model, and ours: the same with an exit after every layer."""
    torch.manual_seed(0)
    sizes = {
        "num_hidden_layers": LAYERS,
        "num_labels": num_labels,
        "initializer_range": 0.5,
        "pad_token_id": 1,
    }
    stock = BertForSequenceClassification(BertConfig(**SIZES | NO_DROPOUT | sizes | settings))
    given = {"num_labels": stock.num_labels, "problem_type": stock.config.problem_type}
    given |= {name: settings[name] for name in ON_BOTH_CONFIGS if name in settings}
    model = RomeBertForSequenceClassification(RomeBertConfig(stock.config, exit_pooling="cls", **given))
    model.backbone.load_state_dict(stock.bert.state_dict(), strict=False)  # which has no pooler
    last = model.exits[str(LAYERS)]
    last.pooler.dense.load_state_dict(stock.bert.pooler.dense.state_dict())
    last.classifier.load_state_dict(stock.classifier.state_dict())
    return stock, model


# Trainer, arguments, model, settings of its own
STOCK = (Trainer, TrainingArguments, stock_model, {})
OURS = (RomeBertTrainer, RomeBertTrainingArguments, our_model, {})
OURS_LIKE_STOCK = (
    RomeBertTrainer,
    RomeBertTrainingArguments,
    our_model,
    {"objective": "last", "exit_learning_rate_factor": 1},
)


def trainer_of(kind, folder, settings, given=None, of_model=None):
    """A trainer of either kind on 10 rows; `given` are arguments of the trainer, `of_model` of the model's
    config.
    """
    trainer, arguments, model, own = kind
    args = arguments(str(folder), **QUIET | SMALL | own | settings)
    data = {
        "train_dataset": tiny_rows(10),
        "eval_dataset": tiny_rows(10, seed=1),
        "processing_class": tiny_tokenizer(),
    }
    given = dict(given or {})
    if given.pop("model_init", False):
        return trainer(None, args, model_init=lambda: model(**of_model or {}), **data | given)
    return trainer(model(**of_model or {}), args, **data | given)


def plain(value):
    """Arrays and tensors as lists, without what is measured: what can be compared."""
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items() if not MEASURED.search(str(name))}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return plain(value.tolist()) if isinstance(value, np.ndarray | np.generic | torch.Tensor) else value


def differences(stock, ours, where="", tolerance=1e-3):
    """Places at which ours is not as stock, and what is there; what ours tells of exits is no difference."""
    if isinstance(stock, dict) and isinstance(ours, dict):
        found = [f"{where}/{name}: missing" for name in stock.keys() - ours.keys()]
        found += [
            f"{where}/{name}: besides" for name in ours.keys() - stock.keys() if not BESIDES.search(str(name))
        ]
        both = stock.keys() & ours.keys()
        return found + [
            d for name in both for d in differences(stock[name], ours[name], f"{where}/{name}", tolerance)
        ]
    if isinstance(stock, list) and isinstance(ours, list) and len(stock) == len(ours):
        return [
            d
            for i, (a, b) in enumerate(zip(stock, ours, strict=True))
            for d in differences(a, b, f"{where}/{i}", tolerance)
        ]
    if isinstance(stock, float) and isinstance(ours, float):
        same = math.isclose(stock, ours, rel_tol=tolerance, abs_tol=tolerance / 100) or (
            math.isnan(stock) and math.isnan(ours)
        )
    else:
        same = type(stock) is type(ours) and stock == ours
    return [] if same else [f"{where}: {stock} and {ours}"]


def evaluate_in_a_process(folder, environment):
    """One of a group: evaluates and predicts with stock and with ours; the main process writes it."""
    enter(environment)
    told = {}
    for name, kind in (("stock", STOCK), ("ours", OURS_LIKE_STOCK)):
        # Stock would multiply the loss by the number of processes: BERT takes loss arguments that it does not
        # use.
        settings = {"average_tokens_across_devices": False}
        trainer = trainer_of(
            kind,
            folder,
            settings,
            {"compute_metrics": of_label_and_scores, "preprocess_logits_for_metrics": label_and_scores},
        )
        told[name] = plain([trainer.evaluate(eval_dataset=tiny_rows(11)), trainer.predict(tiny_rows(3))])
    if trainer.is_world_process_zero():
        Path(folder, "told.json").write_text(json.dumps(told))
    trainer.end()


def label_and_scores(logits, labels):
    return logits.argmax(-1), logits.softmax(-1)


def of_label_and_scores(prediction):
    said, scores = prediction.predictions
    return {
        "accuracy": np.mean(said == prediction.label_ids),
        "rows": len(said),
        "score": scores[:, 0].mean(),
    }
