"""What a model card says of texts, and what of tokens."""

from typing import NamedTuple

from .configuration_romebert import RomeBertConfig


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
