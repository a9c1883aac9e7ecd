"""Does every family compute what its stock model computes? Real weights where there are some, and what rows
that leave change.

    python examples/benchmarks/check_families.py  # MiniLM; other families: random
    python examples/benchmarks/check_families.py --mpnet  # and MPNet: 404 MB
    python examples/benchmarks/check_families.py --models my/encoder another  # and your own
    python examples/benchmarks/check_families.py --mpnet --output_file docs/results/families.json

For each encoder, on movie-review sentences in one padded batch, with every kind of attention that it has:

1. the largest deviation of a hidden state, at any layer and attended token, from the stock model's;
2. the largest deviation of an embedding, pooled as an exit with mean pooling does, from the mean of the stock
    model's states;
3. with a policy that lets half of the rows leave at each exit: the largest deviation of a row's logits from
   those that it gets alone, without padding, and whether every row leaves where it leaves alone.

What is 0 is equal bit for bit. In 2 and 3 sums are taken in another order, or over other shapes, so rounding
differs.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # examples/
import support.installed  # noqa: F401

# isort: split
import statistics
import tempfile
from dataclasses import dataclass, field
from typing import Any

import torch
from support import assets
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, HfArgumentParser

from modeling_romebert import RomeBertForSequenceClassification
from modeling_romebert.backbones import ADAPTERS
from modeling_romebert.evaluation.provenance import provenance, write_json
from modeling_romebert.exit_heads import mean_weights

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "initializer_range": 0.1,
}
# What makes a random model of a family one of its kind.
TRAITS: dict[str, dict[str, Any]] = {
    "electra": {"embedding_size": 32},
    "distilbert": {"hidden_dim": 256},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 32,
        "pos_att_type": "p2c|c2p",
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "conv_kernel_size": 3,
    },
    "albert": {"embedding_size": 32},
    "modernbert": {
        "local_attention": 16,
        "bos_token_id": 101,
        "eos_token_id": 102,
        "cls_token_id": 101,
        "sep_token_id": 102,
    },
}


@dataclass
class CheckArguments:
    """Which encoders are checked."""

    models: list[str] = field(
        default_factory=list, metadata={"help": "Folders or ids of plain encoder checkpoints."}
    )
    mpnet: bool = field(default=False, metadata={"help": "Also all-mpnet-base-v2, downloaded once (404 MB)."})
    texts: int = field(default=48, metadata={"help": "Movie-review sentences."})
    output_file: str | None = field(default=None, metadata={"help": "JSON to write."})


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(CheckArguments).parse_args_into_dataclasses(argv)
    texts = [review.text for review in assets.movie_reviews()[: arguments.texts]]
    minilm = assets.minilm()
    real = [str(minilm), *([str(assets.mpnet())] if arguments.mpnet else []), *arguments.models]
    rows = [check(folder, Path(folder).name, texts) for folder in real]
    with tempfile.TemporaryDirectory() as scratch:
        for model_type in ADAPTERS:
            if all(row["family"] != model_type for row in rows):
                rows.append(check(random_encoder(model_type, minilm, Path(scratch, model_type)), None, texts))
    rows.sort(key=lambda row: list(ADAPTERS).index(row["family"]))
    results = {"texts": len(texts), "models": rows, **provenance()}
    print(table(results))
    if arguments.output_file:
        write_json(arguments.output_file, results)
        print(f"\nResults are in {arguments.output_file}.")


def random_encoder(model_type: str, tokenizer: str | Path, folder: Path) -> str:
    """A checkpoint of a small encoder with random weights, which reads with `tokenizer` -> its folder."""
    words = AutoTokenizer.from_pretrained(tokenizer)
    common = SIZES | {"vocab_size": len(words), "pad_token_id": words.pad_token_id}
    torch.manual_seed(0)
    AutoModel.from_config(
        AutoConfig.for_model(model_type, **common | TRAITS.get(model_type, {}))
    ).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def check(checkpoint: str, weights: str | None, texts: list[str]) -> dict[str, Any]:
    """A plain checkpoint, the name of its weights (`None`: random) -> largest deviations by kind of
    attention.
    """
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    batch = dict(tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt"))
    by_attention = {}
    for attention in ("eager", "sdpa"):
        if (
            attention == "eager"
            or AutoModel.from_pretrained(checkpoint).config._attn_implementation == attention
        ):
            by_attention[attention] = deviations(checkpoint, attention, batch)
    config = AutoConfig.from_pretrained(checkpoint)
    print(f"{config.model_type}, {weights or 'random weights'}: {', '.join(by_attention)}")
    size = {"layers": config.num_hidden_layers, "hidden_size": config.hidden_size}
    return {"family": config.model_type, "weights": weights, **size, "attention": by_attention}


@torch.no_grad()
def deviations(checkpoint: str, attention: str, batch: dict[str, Tensor]) -> dict[str, Any]:
    """Ours against the stock model of a checkpoint, on a padded batch."""
    stock = AutoModel.from_pretrained(checkpoint, attn_implementation=attention)
    torch.manual_seed(0)
    model = RomeBertForSequenceClassification.from_pretrained(
        checkpoint, attn_implementation=attention, exit_pooling="mean"
    )
    attended = batch["attention_mask"] == 1
    ours, theirs = model(**batch, output_hidden_states=True), stock(**batch, output_hidden_states=True)
    at_layers = [
        largest(a[attended] - b[attended])
        for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True)
    ]
    pooled = torch.bmm(
        mean_weights(ours.hidden_states[-1], batch["attention_mask"]), ours.hidden_states[-1]
    ).squeeze(1)  # (B, H)
    means = [
        tokens[kept].mean(dim=0) for tokens, kept in zip(theirs.last_hidden_state, attended, strict=True)
    ]

    sureness = ours.exit_logits.softmax(-1).amax(-1)  # (B, E)
    policy = {
        "name": "confidence",
        "thresholds": [statistics.median(exit_.tolist()) for exit_ in sureness.unbind(1)],
    }
    together = model(**batch, exit_policy=policy)
    alone = [
        model(
            **{name: values[row : row + 1, attended[row]] for name, values in batch.items()},
            exit_policy=policy,
        )
        for row in range(len(attended))
    ]
    return {
        "states": max(at_layers),
        "embeddings": largest(pooled - torch.stack(means)),
        "row_in_batch": largest(together.logits - torch.cat([one.logits for one in alone])),
        "same_exits": torch.equal(together.exit_layer, torch.cat([one.exit_layer for one in alone])),
        "exits": sorted(set(together.exit_layer.tolist())),
    }


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def table(results: dict[str, Any]) -> str:
    """One row per encoder, each figure the largest over its kinds of attention."""
    head = (
        "family",
        "weights",
        "layers x hidden",
        "attention",
        "every layer",
        "embeddings",
        "row in a batch, row alone",
    )
    lines = [head, ("---",) * len(head)]
    for row in results["models"]:
        found = row["attention"].values()
        states, embeddings, in_batch = (
            max(one[name] for one in found) for name in ("states", "embeddings", "row_in_batch")
        )
        exits = "same exits" if all(one["same_exits"] for one in found) else "other exits"
        size = f"{row['layers']} x {row['hidden_size']}"
        figures = (f"{states:.1g}", f"{embeddings:.1g}", f"{in_batch:.1g}, {exits}")
        lines.append((row["family"], row["weights"] or "random", size, ", ".join(row["attention"]), *figures))
    return (
        "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        .replace("| --- ", "|---")
        .replace("--- |", "---|")
    )


if __name__ == "__main__":
    main()
