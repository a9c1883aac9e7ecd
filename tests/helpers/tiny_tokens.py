"""Tiny token classifiers in memory whose tokens halt at every exit, texts of words in pieces, rows alone."""

import copy

import torch
from tiny import padded_batch, tiny_backbone
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from modeling_romebert import RomeBertConfig, RomeBertForTokenClassification

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
LETTERS = "abcdefghij"
BUILT: dict[tuple, tuple[RomeBertForTokenClassification, Tensor]] = {}


@torch.no_grad()
def build_tokens(backbone=None, **settings) -> RomeBertForTokenClassification:
    """A tiny token classifier: logits of each exit have mean 0 and standard deviation 1.5 over a padded
    batch.

    Asked again for the same it is a copy, and torch's generator is left in the same state.
    """
    backbone = backbone or tiny_backbone()
    asked = type(backbone), backbone._attn_implementation, backbone.to_json_string(), repr(settings)
    if asked not in BUILT:
        BUILT[asked] = _made(backbone, settings), torch.get_rng_state()
    model, state = BUILT[asked]
    torch.set_rng_state(state)
    return copy.deepcopy(model)


def _made(backbone, settings) -> RomeBertForTokenClassification:
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(TAGS)), "label2id": {name: index for index, name in enumerate(TAGS)}}
    model = RomeBertForTokenClassification(RomeBertConfig(backbone, **names | settings)).eval()
    for head in model.exits.values():
        torch.nn.init.normal_(head.classifier.weight)
    ids, mask = padded_batch(24, 30)
    exit_logits = model(ids, mask).exit_logits.transpose(1, 2)[mask.bool()]  # (n, E, C)
    for head, logits in zip(model.exits.values(), exit_logits.unbind(1), strict=True):
        scale = 1.5 / logits.std()
        head.classifier.weight.mul_(scale)
        head.classifier.bias.copy_(-logits.mean(dim=0) * scale)
    return model


def piece_tokenizer(limit: int = 64) -> PreTrainedTokenizerFast:
    """Words of the letters a..j become one piece per letter, as WordPiece has them; [CLS] text [SEP]."""
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = [*special, *LETTERS, *(f"##{letter}" for letter in LETTERS), "."]
    pieces = Tokenizer(
        models.WordPiece(
            {piece: index for index, piece in enumerate(vocab)},
            unk_token="[UNK]",
            max_input_chars_per_word=200,
        )
    )
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        model_max_length=limit,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        mask_token="[MASK]",
        **names,
    )


def tiny_sentences(count: int, seed: int = 0, longest: int = 12, pieces: int = 4) -> list[list[str]]:
    """Lists of 1 to `longest` words of 1 to `pieces` letters."""
    generator = torch.Generator().manual_seed(seed)

    def number(high: int) -> int:
        return int(torch.randint(1, high + 1, (), generator=generator))

    def word() -> str:
        return "".join(LETTERS[number(len(LETTERS)) - 1] for _ in range(number(pieces)))

    return [[word() for _ in range(number(longest))] for _ in range(count)]


def tagged(count: int, seed: int = 0, **sizes) -> list[dict]:
    """Rows of `tokens` and `labels`; a word's tag is that of its first letter, so it can be learned."""
    rows = []
    for words in tiny_sentences(count, seed, **sizes):
        tags = [TAGS[(LETTERS.index(word[0]) // 2) % len(TAGS)] for word in words]
        rows.append({"tokens": words, "labels": [TAGS.index(tag) for tag in tags]})
    return rows


@torch.no_grad()
def alone(model, row: dict, policy) -> tuple[Tensor, Tensor]:
    """A tokenised row by itself -> logits (t, C) and exit layers (t,)."""
    output = model(
        torch.tensor([row["input_ids"]]),
        word_ids=torch.tensor([row["word_ids"]]),
        exit_policy=policy,
    )
    return output.logits[0], output.exit_layer[0]


def tokenised(sentences: list[list[str]], limit: int = 64) -> list[dict]:
    """Rows of `input_ids` and `word_ids`."""
    from modeling_romebert.data.token_rows import tokenize_words

    columns = tokenize_words(piece_tokenizer(), sentences, max_length=limit)
    names = ("input_ids", "word_ids")
    return [
        dict(zip(names, row, strict=True)) for row in zip(*(columns[name] for name in names), strict=True)
    ]


def padded(rows: list[dict], side: str = "right") -> tuple[Tensor, Tensor, Tensor]:
    """Tokenised rows -> ids, mask and words, each (B, T)."""
    longest = max(len(row["input_ids"]) for row in rows)

    def filled(name: str, fill: int) -> Tensor:
        missing = [[fill] * (longest - len(row["input_ids"])) for row in rows]
        own = [row.get(name, [1] * len(row["input_ids"])) for row in rows]
        pairs = zip(own, missing, strict=True)
        return torch.tensor([[*a, *b] if side == "right" else [*b, *a] for a, b in pairs])

    return filled("input_ids", 1), filled("mask", 0), filled("word_ids", -1)
