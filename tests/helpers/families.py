"""The table that the family tests go through, one row per family or variant of one, and tiny tokenizers of
their own classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import transformers
from pairs import in_turn, short
from tiny import PAD, WORDS, tiny_backbone, tiny_tokenizer
from transformers import PreTrainedConfig

BERT_WORDS = {
    word: index for index, word in enumerate(["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
}
# BPE without merges: letter by letter
LETTERS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "\u0120", *sorted(set("".join(WORDS)))]


def bert_words(kind: str, **names: str) -> Callable[[], Any]:
    return lambda: getattr(transformers, kind)(vocab=BERT_WORDS, model_max_length=62, **names)


def pieces(kind: str, *special: str) -> Callable[[], Any]:
    """A unigram model, as sentencepiece makes them, of whole words."""
    vocab = [(piece, 0.0) for piece in special] + [(f"\u2581{word}", -1.0) for word in WORDS]
    return lambda: getattr(transformers, kind)(vocab=vocab, model_max_length=62)


def letters() -> Any:
    return transformers.RobertaTokenizer(
        vocab={letter: index for index, letter in enumerate(LETTERS)}, merges=[], model_max_length=126
    )


def without_token_types() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


class Family(NamedTuple):
    """What is true of a family, by its stock model and its published checkpoints, besides the tiny sizes."""

    name: str
    stem: str  # of its classes: {stem}Config, {stem}Model, {stem}ForMaskedLM, {stem}ForSequenceClassification
    prefix: str  # of the encoder's weights in a checkpoint of the latter two
    tokenizer: Callable[[], Any]
    layers: str = "encoder.layer"  # the start of the names of the layers' weights
    matrices: int = 18  # in the layers that both the last of four exits and an earlier one reach
    pooler: str | None = "pooler.dense"  # the linear layer of the encoder's pooler
    norm: str | None = None  # that follows the last layer
    limit: int | None = 64  # longest input
    token_types: bool = True  # whether token_type_ids say anything to it
    attentions: tuple[str, ...] = ("eager", "sdpa")
    states_per_layer: int = 1  # hidden states that the stock model tells
    settings: dict[str, Any] = {}

    def backbone(self, attention: str | None = None, **settings: Any) -> PreTrainedConfig:
        """Config of a tiny encoder: 4 layers of 32, its last kind of attention when none is named."""
        return tiny_backbone(
            self.class_of("Config"), attention or self.attentions[-1], **self.settings | settings
        )

    @property
    def packs(self) -> bool:
        """Whether its layers are given a mask and nothing else."""
        return self.stem not in ("MPNet", "DebertaV2", "ModernBert")

    def class_of(self, kind: str) -> Any:
        return getattr(transformers, self.stem + kind)


ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
SMALL_IDS = {"pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
# DeBERTa as v2 published it, with a convolution beside the first layer, and one with absolute positions and
# keys of their own
DEBERTA = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": "p2c|c2p",
}
DEBERTA_V2 = DEBERTA | {
    "share_att_key": True,
    "position_biased_input": False,
    "conv_kernel_size": 3,
    "conv_act": "gelu",
}

FAMILIES = [
    Family("bert", "Bert", "bert.", bert_words("BertTokenizer")),
    Family("roberta", "Roberta", "roberta.", letters, limit=126, settings={"max_position_embeddings": 128}),
    Family("xlm-roberta", "XLMRoberta", "roberta.", pieces("XLMRobertaTokenizer", *ROBERTA), limit=62),
    Family("camembert", "Camembert", "roberta.", pieces("CamembertTokenizer", *ROBERTA), limit=62),
    Family(
        "electra",
        "Electra",
        "electra.",
        bert_words("ElectraTokenizer"),
        pooler=None,
        settings={"embedding_size": 16},
    ),
    Family(
        "electra-same-size",
        "Electra",
        "electra.",
        bert_words("BertTokenizer"),
        pooler=None,
        settings={"embedding_size": 32},
    ),
    Family(
        *("distilbert", "DistilBert", "distilbert.", bert_words("DistilBertTokenizer"), "transformer.layer"),
        **{"pooler": None, "token_types": False, "settings": {"hidden_dim": 64}},
    ),
    Family(
        *(
            "mpnet",
            "MPNet",
            "mpnet.",
            bert_words("MPNetTokenizer", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"),
        ),
        **{"limit": 62, "token_types": False, "attentions": ("eager",)},
    ),
    Family(
        *(
            "deberta-v2",
            "DebertaV2",
            "deberta.",
            pieces("DebertaV2Tokenizer", "[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"),
        ),
        **{
            "pooler": None,
            "limit": None,
            "token_types": False,
            "attentions": ("eager",),
            "settings": DEBERTA_V2,
        },
    ),
    Family(
        *(
            "deberta-absolute",
            "DebertaV2",
            "deberta.",
            pieces("DebertaV2Tokenizer", "[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"),
        ),
        **{
            "matrices": 24,
            "pooler": None,
            "attentions": ("eager",),
            "settings": DEBERTA | {"type_vocab_size": 2},
        },
    ),
    Family(
        *(
            "albert",
            "Albert",
            "albert.",
            pieces("AlbertTokenizer", "<unk>", "<pad>", "[CLS]", "[SEP]", "[MASK]"),
        ),
        **{
            "layers": "encoder.albert_layer_groups",
            "matrices": 6,
            "pooler": "pooler",
            "settings": {"embedding_size": 16},
        },
    ),
    Family(
        *(
            "albert-groups",
            "Albert",
            "albert.",
            pieces("AlbertTokenizer", "<unk>", "<pad>", "[CLS]", "[SEP]", "[MASK]"),
        ),
        **{
            "layers": "encoder.albert_layer_groups",
            "matrices": 24,
            "pooler": "pooler",
            "states_per_layer": 2,
        },
        settings={"num_hidden_groups": 2, "inner_group_num": 2},
    ),
    Family(
        *("modernbert", "ModernBert", "model.", without_token_types, "layers"),
        **{"matrices": 12, "pooler": None, "norm": "final_norm", "limit": None, "token_types": False},
        settings=SMALL_IDS | {"local_attention": 16},
    ),
]

# Families whose code is another row's, and variants of a row: not tried at every edit.
LIKE_ANOTHER = (
    *("roberta", "xlm-roberta", "camembert", "electra", "electra-same-size", "distilbert", "mpnet"),
    *("deberta-absolute", "albert-groups"),
)


def rows_of(settings: Callable[[Family], list[tuple]]) -> list:
    """A row for each of a family's settings, marked as slow where another family's are much the same."""
    return [
        pytest.param(family, *more, marks=[pytest.mark.slow] if family.name in LIKE_ANOTHER else [])
        for family in FAMILIES
        for more in settings(family)
    ]


families = pytest.mark.parametrize("family", rows_of(lambda family: [()]), ids=short)
with_attentions = pytest.mark.parametrize(
    ("family", "attention"),
    rows_of(lambda family: [(attention,) for attention in family.attentions]),
    ids=short,
)
# The two take turns, as an exit pools the same states whatever computed them.
with_attentions_and_poolings = pytest.mark.parametrize(
    ("family", "attention", "pooling"),
    rows_of(lambda family: in_turn(list(family.attentions), ["cls", "mean"])),
    ids=short,
)
