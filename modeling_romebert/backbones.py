"""One small adapter per encoder family: how to embed, what every layer is given, and where the layers are.

The backbone is the library's own model, used piece by piece; nothing of it is copied. Adapters hold no state, so a
backbone whose modules are wrapped or replaced later (adapters, quantization) is walked as it then is.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask

_CAN_BE_TOLD = "allow_is_bidirectional_skip" in inspect.signature(create_bidirectional_mask).parameters


class BertAdapter:
    """BERT: `embeddings`, then `encoder.layer[k](hidden_states, attention_mask=...)`."""

    def max_tokens(self, config: PreTrainedConfig) -> int:
        """Longest sequence that the position embeddings cover, special tokens included."""
        return config.max_position_embeddings

    def embed(self, backbone: PreTrainedModel, **inputs: Tensor | None) -> Tensor:
        """input_ids (B, T) or inputs_embeds (B, T, H), and the optional token_type_ids and position_ids -> (B, T, H)"""
        return backbone.embeddings(**inputs)

    def layer_arguments(
        self, backbone: PreTrainedModel, hidden_states: Tensor, attention_mask: Tensor | None, padded: bool = False
    ) -> dict[str, Any]:
        """hidden_states (B, T, H), attention_mask (B, T) -> keyword arguments for every layer, as the attention backend wants them.

        Called again for the survivors whenever rows have left. padded: the mask is known to mask something, so that nobody has to
        look, which would wait for the device.
        """
        no_look = {"allow_is_bidirectional_skip": False} if padded and _CAN_BE_TOLD else {}
        return {"attention_mask": create_bidirectional_mask(backbone.config, hidden_states, attention_mask, **no_look)}

    def layers(self, backbone: PreTrainedModel) -> nn.ModuleList:
        """The L layers in order; each maps (B, T, H) to (B, T, H)."""
        return backbone.encoder.layer


class RobertaAdapter(BertAdapter):
    """RoBERTa and its relatives: BERT's layers; positions are counted from `pad_token_id + 1`."""

    def max_tokens(self, config: PreTrainedConfig) -> int:
        return config.max_position_embeddings - config.pad_token_id - 1


ADAPTERS: dict[str, BertAdapter] = {
    "bert": BertAdapter(),
    "roberta": RobertaAdapter(),
    "xlm-roberta": RobertaAdapter(),
    "camembert": RobertaAdapter(),
}


def adapter_for(config: PreTrainedConfig) -> BertAdapter:
    """The adapter of a backbone config's family.

    Raises:
        ValueError: the family is not supported, or the config describes a decoder.
    """
    if config.model_type not in ADAPTERS:
        raise ValueError(f"backbone model_type={config.model_type!r} is not supported; choose from {', '.join(ADAPTERS)}.")
    if getattr(config, "is_decoder", False) or config.is_encoder_decoder:
        raise ValueError(
            f"backbone_config is a decoder ({config.model_type}, is_decoder=True); exits need a bidirectional encoder."
        )
    return ADAPTERS[config.model_type]


def embed(
    backbone: PreTrainedModel,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    inputs_embeds: Tensor | None,
) -> Tensor:
    """Check the inputs of a forward pass and embed them: ids (B, T) -> (B, T, H).

    Raises:
        ValueError: not exactly one of input_ids and inputs_embeds, more tokens than positions, or a mask that is not (B, T).
    """
    given = input_ids if input_ids is not None else inputs_embeds
    if given is None or (input_ids is not None and inputs_embeds is not None):
        raise ValueError("Give exactly one of input_ids and inputs_embeds.")
    adapter = adapter_for(backbone.config)
    rows, tokens = given.shape[:2]
    if tokens > (limit := adapter.max_tokens(backbone.config)):
        raise ValueError(
            f"input of {tokens} tokens, but the backbone has positions for {limit}. Cut it in the tokenizer with truncation=True"
            f" and max_length={limit}; a pipeline takes the same arguments."
        )
    if attention_mask is not None and attention_mask.shape != (rows, tokens):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; it must be (batch, tokens) = ({rows}, {tokens})."
        )
    return adapter.embed(
        backbone, input_ids=input_ids, token_type_ids=token_type_ids, position_ids=position_ids, inputs_embeds=inputs_embeds
    )


def attended_lengths(attention_mask: Tensor) -> Tensor:
    """attention_mask (B, T) -> (B,): tokens up to and including the last attended one, at least 1."""
    positions = torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)
    return (positions * (attention_mask != 0)).amax(dim=1).clamp(min=1)
