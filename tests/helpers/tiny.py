"""What the tests share: tiny models in memory whose exits disagree, batches with padding, and a tokenizer."""

import copy
import csv
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, PreTrainedTokenizerFast

from modeling_romebert import RomeBertConfig, RomeBertForSequenceClassification

BUILT: dict[tuple, tuple[RomeBertForSequenceClassification, Tensor]] = {}
ROWS, TOKENS, LAYERS, CLASSES, PAD = 64, 40, 4, 3, 1
# What the paper trains with: distillation that outweighs the labels, and gradients that are projected.
PAPER_LOSS = {"distillation_weight": 0.9, "distillation_temperature": 3.0, "exit_scale": 1.0}
PAPER = {**PAPER_LOSS, "gradient_regularization": "protect_exits", "exit_learning_rate_factor": 1.0}
WORDS = [
    *("the", "a", "film", "was", "is", "very", "not", "good", "bad", "dull"),
    *("great", "long", "short", "fine", "poor", "plot", "cast", "never", "always", "again"),
]


def padded_batch(rows: int = ROWS, tokens: int = TOKENS) -> tuple[Tensor, Tensor]:
    """ids (B, T) and mask (B, T) of rows with 1 to T tokens, padded on the right."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 100, (rows, tokens), generator=generator)
    lengths = torch.randint(1, tokens + 1, (rows,), generator=generator)
    lengths[0], lengths[1] = tokens, 1
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    return torch.where(mask == 1, ids, PAD), mask


def tiny_backbone(family=BertConfig, attention="sdpa", **settings):
    """Config of a 4 x 32 encoder of a family."""
    sizes = {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "initializer_range": 0.1,
        "pad_token_id": PAD,
    }
    return family(**sizes | settings, attn_implementation=attention)


@torch.no_grad()
def build(
    family=BertConfig, attention="sdpa", num_labels=CLASSES, backbone=None, **settings
) -> RomeBertForSequenceClassification:
    """A tiny model whose exits disagree: logits of each exit have mean 0 and standard deviation 1.5 over the
    padded batch.

    Asked again for the same it is a copy, and torch's generator is left in the same state.
    """
    backbone = backbone or tiny_backbone(family, attention)
    asked = (
        type(backbone),
        backbone._attn_implementation,
        backbone.to_json_string(),
        num_labels,
        repr(settings),
    )
    if asked not in BUILT:
        BUILT[asked] = made(backbone, num_labels, settings), torch.get_rng_state()
    model, state = BUILT[asked]
    torch.set_rng_state(state)
    return copy.deepcopy(model)


def made(backbone, num_labels, settings) -> RomeBertForSequenceClassification:
    torch.manual_seed(0)
    model = RomeBertForSequenceClassification(
        RomeBertConfig(backbone, num_labels=num_labels, **settings)
    ).eval()
    for head in model.exits.values():
        torch.nn.init.normal_(head.classifier.weight)
        if head.mix is not None:
            torch.nn.init.normal_(head.mix.weights)
            torch.nn.init.normal_(head.mix.scale, mean=1.0, std=0.1)
    ids, mask = padded_batch()
    exit_logits = model(ids, mask).exit_logits  # (B, E, C)
    for head, logits in zip(model.exits.values(), exit_logits.unbind(1), strict=True):
        scale = 1.5 / logits.std()
        head.classifier.weight.mul_(scale)
        head.classifier.bias.copy_(-logits.mean(dim=0) * scale)
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Words to ids, made in memory: [CLS] words [SEP], as BERT has it."""
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    words = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(special + WORDS)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **names,
    )


@torch.no_grad()
def spread_exits(
    model: RomeBertForSequenceClassification, texts: list[str]
) -> RomeBertForSequenceClassification:
    """Scale each exit's classifier: logits with mean 0 and standard deviation 1.5 over the texts, so that
    they leave everywhere.
    """
    tokenizer = tiny_tokenizer()
    logits = torch.cat(
        [model(**tokenizer(text, return_tensors="pt")).exit_logits for text in texts]
    )  # (N, E, C)
    mean = logits.mean(dim=0)
    for index, head in enumerate(model.exits.values()):
        scale = 1.5 / (logits[:, index] - mean[index]).std()
        head.classifier.weight.mul_(scale)
        head.classifier.bias.copy_((head.classifier.bias - mean[index]) * scale)
    return model


def tiny_texts(count: int, seed: int = 0, longest: int = 30) -> list[str]:
    """Texts of 1 to `longest` known words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [
        " ".join(WORDS[int(w)] for w in torch.randint(len(WORDS), (n,), generator=generator)) for n in lengths
    ]


def assert_same_results(results, expected):
    """Results of the pipeline or of `score`: equal, scores up to rounding."""
    assert len(results) == len(expected)
    for one, other in zip(results, expected, strict=True):
        assert one == {**other, "score": pytest.approx(other["score"], abs=1e-5, nan_ok=True)}


def tiny_rows(count: int, seed: int = 0, classes: int = 2) -> list[dict]:
    """Rows for a Trainer: `input_ids`, `attention_mask`, `labels`; the label depends on the text, so it can
    be learned.
    """
    tokenizer = tiny_tokenizer()
    rows = [dict(tokenizer(text, truncation=True)) for text in tiny_texts(count, seed)]
    for row in rows:
        row["labels"] = sum(row["input_ids"]) % classes
    return rows


def write_rows(name: str, rows: list[dict]) -> str:
    """A CSV, JSON or JSONL file, by the ending of its name, in the present folder -> the name."""
    if name.endswith(".csv"):
        with open(name, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    else:
        Path(name).write_text(
            json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
        )
    return name


def labelled(count, label, seed=0, columns=("text",)) -> list[dict]:
    """Rows of known words; label(row number) gives the label."""
    texts = [tiny_texts(count, seed=10 * seed + index, longest=12) for index in range(len(columns))]
    return [
        {**dict(zip(columns, row, strict=True)), "label": label(number)}
        for number, row in enumerate(zip(*texts, strict=True))
    ]


def color(number: int) -> str:
    """A label that is a string."""
    return ("red", "green", "blue")[number % 3]


def train_and_validation_files(train: list[dict], validation: list[dict], kind: str = "jsonl") -> list[str]:
    """The arguments that name the two files."""
    return [
        "--train_file",
        write_rows(f"train.{kind}", train),
        "--validation_file",
        write_rows(f"validation.{kind}", validation),
    ]
