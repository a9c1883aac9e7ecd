"""What a model is and how it is used, in the words of a model card: of texts, and of tokens."""

import json
from typing import Any, NamedTuple

from .configuration_romebert import ProblemType, RomeBertConfig


class Task(NamedTuple):
    """The words of a task."""

    tag: str  # on the Hub
    title: str
    pipeline: str
    auto_class: str
    gives: str  # begins the sentence that goes on with the labels
    answers: str


OF_TEXTS = Task(
    "text-classification",
    "Text classification",
    "early-exit-classification",
    "AutoModelForSequenceClassification",
    "A RomeBERT text classifier, which gives a text",
    "at which a text leaves as soon as the model is sure enough. Answers hold `label`, `score` and"
    " `exit_layer`, the number of layers that ran.",
)
OF_TOKENS = Task(
    "token-classification",
    "Token classification",
    "early-exit-token-classification",
    "AutoModelForTokenClassification",
    "A RomeBERT token classifier, which gives every word of a text",
    "at which a text leaves, or a word halts, as soon as the model is sure enough. Answers hold `entity` or"
    " `entity_group`, `score`, `word`, `start`, `end` and `exit_layer`, the number of layers that ran.",
)


def task_of(config: RomeBertConfig) -> Task:
    """The words for a model with this config."""
    return OF_TOKENS if config.classifies_tokens else OF_TEXTS


def what_it_is(config: RomeBertConfig, base: str | None) -> str:
    """The sentence that a card begins with; `base` names the checkpoint that training started from."""
    family, layers = config.backbone_config.model_type, config.num_hidden_layers
    encoder = f"`{base}`, a `{family}` encoder" if base else f"a `{family}` encoder"
    every = list(config.exit_layers) == list(range(1, layers + 1))
    where = (
        "every layer"
        if every
        else f"layer{'s' * (len(config.exit_layers) > 1)} {_listed(config.exit_layers)}"
    )
    mixes = ", which reads a learned mix of the layers so far" if config.exit_mix else ""
    is_regression = config.problem_type == ProblemType.REGRESSION or (
        not config.problem_type and config.num_labels == 1
    )
    if is_regression and not config.classifies_tokens:
        says = "a number"
    else:
        kind = "any number of" if config.problem_type == ProblemType.MULTI_LABEL else "one of"
        names = ", ".join(f"`{one_line(name)}`" for name in config.id2label.values())
        says = f"{kind} {config.num_labels} labels ({names})"
    return (
        f"{task_of(config).gives} {says}: {encoder} of {layers} layers with an exit after {where}{mixes},"
        f" {task_of(config).answers}"
    )


def usage(config: RomeBertConfig, training: dict[str, Any]) -> str:
    """How to load the model, with the package and without; for `training` see `model_card`."""
    model = json.dumps(training["hub_model_id"]) if training.get("hub_model_id") else "ID"
    task = task_of(config)
    explained = (
        ""
        if training.get("hub_model_id")
        else "`ID` is the name of this repository, or the folder of the model. "
    )
    installed = [
        "import modeling_romebert  # registers the task",
        "from transformers import pipeline",
        f'classify = pipeline("{task.pipeline}", model={model})',
    ]
    remote = [
        f"from transformers import {task.auto_class}, pipeline",
        f'classify = pipeline("{task.pipeline}", model={model}, trust_remote_code=True)',
        f"model = {task.auto_class}.from_pretrained({model}, trust_remote_code=True)",
    ]
    return "\n".join(
        [
            *(f"{explained}With the package `romebert` installed:", "", "```python", *installed, "```", ""),
            *("Without it, with the code that comes with the model:", "", "```python", *remote, "```"),
        ]
    )


def _listed(items: Any) -> str:
    """[1, 2, 4] -> "1, 2 and 4"."""
    *some, last = map(str, items)
    return f"{', '.join(some)} and {last}" if some else last


def one_line(value: Any) -> str:
    """A value on one line, with nothing that begins a comment or ends a code span."""
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return " ".join(text.split()).replace("<!--", "&lt;!--").replace("`", "'")
