"""A token classifier that is sure of a word at a known layer, and files in CoNLL format, for tokens.md."""

from pathlib import Path

import torch
from stand_ins import SPECIAL, WIDTH, let_words_through, still_encoder, tokenizer
from tokenizers import models

from modeling_romebert import RomeBertConfig, RomeBertForTokenClassification

NAMES = ["O", "B-LOC", "B-PER", "I-PER"]
# Words: their tag, and the first layer whose exit knows it.
KNOWN = {
    **{"ann": ("B-PER", 1), "lee": ("I-PER", 4), "rome": ("B-LOC", 2), "paris": ("B-LOC", 3)},
    **dict.fromkeys(("lives", "in", "and", "works", "moved", "to", "from", "."), ("O", 1)),
}
SENTENCES = [
    "ann lives in rome .",
    "ann lee moved from paris to rome .",
    "ann works in paris .",
    "lee works .",
    "ann and lee moved to rome .",
]


def make_tagger(folder: Path) -> None:
    """The model, its tokenizer, and files to train and judge on, in a folder."""
    words = tokenizer(list(KNOWN), models.WordPiece)
    tagger([*SPECIAL, *KNOWN]).save_pretrained(folder / "runs/tokens/model")
    words.save_pretrained(folder / "runs/tokens/model")
    for name, count in (("train", 24), ("validation", 300), ("test", 10)):
        lines = []
        for number in range(count):
            sentence = SENTENCES[number % len(SENTENCES)].split()
            lines.append("".join(f"{word} {KNOWN[word][0]}\n" for word in sentence))
        (folder / f"{name}.conll").write_text("\n".join(lines))


@torch.no_grad()
def tagger(vocabulary: list[str]) -> RomeBertForTokenClassification:
    """Layers that change nothing, and exits each of which knows the words up to its layer."""
    model = RomeBertForTokenClassification(
        RomeBertConfig(
            still_encoder(len(vocabulary)),
            id2label=dict(enumerate(NAMES)),
            label2id={name: index for index, name in enumerate(NAMES)},
        )
    )
    let_words_through(model.backbone)
    for depth, head in enumerate(model.exits.values(), start=1):
        head.classifier.weight.zero_()
        head.classifier.bias.zero_()
        for word, (tag, known_from) in KNOWN.items():
            if depth >= known_from:
                head.classifier.weight[NAMES.index(tag), vocabulary.index(word)] = 10.0
                # What all other words take away.
                head.classifier.bias[NAMES.index(tag)] += 10 / (WIDTH - 1) ** 0.5
    return model.eval()
