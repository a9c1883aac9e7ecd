"""What a batch must be for a model to take it: one of ids and embeddings, within its positions and its
vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn


def check_inputs(
    model: Any, input_ids: Tensor | None, attention_mask: Tensor | None, inputs_embeds: Tensor | None
) -> None:
    """Whether ids (B, T) or embeddings (B, T, H) and a mask fit one of our models.

    Raises:
        ValueError: not exactly one of input_ids and inputs_embeds, more tokens than positions, a mask that is
            not (B, T), or ids beyond the vocabulary, see `check_token_ids`.
    """
    given = input_ids if input_ids is not None else inputs_embeds
    if given is None or (input_ids is not None and inputs_embeds is not None):
        raise ValueError("Give exactly one of input_ids and inputs_embeds.")
    rows, tokens = given.shape[:2]
    if (limit := model.max_tokens) is not None and tokens > limit:
        raise ValueError(
            f"input of {tokens} tokens, but the backbone has positions for {limit}. Cut it in the tokenizer"
            f" with truncation=True and max_length={limit}; a pipeline takes the same arguments."
        )
    if attention_mask is not None and attention_mask.shape != (rows, tokens):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; it must be (batch, tokens) = ({rows},"
            f" {tokens})."
        )
    if input_ids is not None:
        check_token_ids(model, input_ids)


def vocabulary_size(model: Any) -> int:
    """Token ids that a model has embeddings for."""
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    return embeddings.num_embeddings if isinstance(embeddings, nn.Embedding) else model.config.vocab_size


def check_token_ids(model: Any, input_ids: Tensor) -> None:
    """Whether the vocabulary of one of our models has ids (...). Ids on a GPU are not looked at, which would
    wait for the device: where they go there in the package, call this first.

    Raises:
        ValueError: an id that is not in the vocabulary, as those of tokens that were added to a tokenizer
            later.
    """
    if (
        input_ids.device.type != "cpu"
        or not input_ids.numel()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
    ):
        return
    lowest, highest = (int(value) for value in input_ids.aminmax())
    if (flaw := beyond_vocabulary(lowest, highest, vocabulary_size(model))) is not None:
        raise ValueError(flaw)


def beyond_vocabulary(lowest: int, highest: int, known: int) -> str | None:
    """Why a model with so many tokens in its vocabulary cannot take ids in lowest .. highest; `None` where it
    can.
    """
    if lowest >= 0 and highest < known:
        return None
    return (
        f"input_ids contain {lowest if lowest < 0 else highest}, but the model's vocabulary has {known}"
        f" tokens, from 0 to {known - 1}. Use the model's own tokenizer. If tokens were added to it, call"
        " model.resize_token_embeddings(len(tokenizer)) and train."
    )
