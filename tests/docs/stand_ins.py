"""What the pages name, in small: an encoder of random weights, files of texts, and a classifier that is sure
of a text at a known layer.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from modeling_romebert import RomeBertConfig, RomeBertForSequenceClassification

LAYERS = 6
# Words that decide a text: the label that they speak for, and the first layer whose exit knows them.
DECISIVE = {
    **{"delight": (1, 3), "lovely": (1, 1), "dull": (0, 1), "boring": (0, 2)},
    **{"clever": (1, 3), "worse": (1, 5), "hoped": (0, 6), "effort": (1, 6)},
}
FILLERS = ("a", "the", "film", "was", "is", "from", "start", "to", "finish", "and", "far", "too", "long")
SPECIAL = ("[UNK]", "[PAD]", "[CLS]", "[SEP]")
VOCABULARY = [*SPECIAL, *FILLERS, *DECISIVE]
WIDTH = 32  # at least as many as there are words


def make_all(folder: Path) -> None:
    """Everything that a page may name, in a folder."""
    torch.manual_seed(0)
    sizes = {"vocab_size": len(VOCABULARY), "hidden_size": WIDTH, "intermediate_size": 64, "pad_token_id": 1}
    BertModel(BertConfig(**sizes, num_hidden_layers=4, num_attention_heads=2)).save_pretrained(
        folder / "bert-base-uncased"
    )
    tokenizer().save_pretrained(folder / "bert-base-uncased")
    classifier().save_pretrained(folder / "runs/quickstart/model")
    tokenizer().save_pretrained(folder / "runs/quickstart/model")
    write_texts(folder / "train.csv", 24)
    write_texts(folder / "validation.csv", 24, "a film was")
    write_texts(folder / "test.csv", 10)


def write_texts(path: Path, count: int, begin: str = "the film was") -> None:
    """Rows with the label of their decisive word; every sixth has a word that only the last exit knows."""
    easy = ["delight", "dull", "lovely", "boring"]
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for number in range(count):
            word = "hoped" if number % 6 == 5 else easy[number % 4]
            rows.writerow([f"{begin} {word}{' and long' * (number % 3)}", DECISIVE[word][0]])


def still_encoder(words: int) -> BertConfig:
    """An encoder that has a dimension for each word."""
    return BertConfig(
        vocab_size=words,
        hidden_size=WIDTH,
        intermediate_size=4,
        num_hidden_layers=LAYERS,
        num_attention_heads=1,
        pad_token_id=1,
    )


def let_words_through(backbone: BertModel) -> None:
    """A token's state is its own direction at every layer."""
    embeddings = backbone.embeddings
    for embedding in (embeddings.position_embeddings, embeddings.token_type_embeddings):
        embedding.weight.zero_()
    embeddings.word_embeddings.weight.copy_(torch.eye(backbone.config.vocab_size, WIDTH))
    for layer in backbone.encoder.layer:
        for part in (layer.attention.output.dense, layer.output.dense):
            part.weight.zero_()
            part.bias.zero_()


@torch.no_grad()
def classifier() -> RomeBertForSequenceClassification:
    """Layers that change nothing, and exits each of which knows the words up to its layer.

    A token's state is its own direction, so a mean-pooled row says which words are in it.
    """
    model = RomeBertForSequenceClassification(
        RomeBertConfig(
            still_encoder(len(VOCABULARY)),
            exit_pooling="mean",
            id2label={0: "negative", 1: "positive"},
            label2id={"negative": 0, "positive": 1},
            exit_policy={"name": "entropy", "threshold": 0.67},
        )
    )
    let_words_through(model.backbone)
    for depth, head in enumerate(model.exits.values(), start=1):
        head.classifier.weight.zero_()
        # a text without a known word is taken for positive
        head.classifier.bias.copy_(torch.tensor([0.0, 0.1]))
        for word, (label, known_from) in DECISIVE.items():
            if depth >= known_from:
                head.classifier.weight[label, VOCABULARY.index(word)] = 10.0
                head.classifier.bias[label] += 10 / (WIDTH - 1) ** 0.5  # what all other words take away
    return model.eval()


def tokenizer(
    known: Sequence[str] = VOCABULARY[len(SPECIAL) :], kind: Any = models.WordLevel
) -> PreTrainedTokenizerFast:
    """Words in lower case to ids: [CLS] words [SEP]."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *known])}
    words = Tokenizer(kind(vocabulary, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=512,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
