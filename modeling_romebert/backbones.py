"""One small adapter per encoder family: how to embed, where the layers are, and what each of them is given.

The backbone is the library's own model, used piece by piece; nothing of it is copied. Adapters hold no state,
so a backbone whose modules are wrapped or replaced later (adapters, quantization) is run as it then is.

How to add a family:

1. Read `forward` of its model in transformers: what is done before the layers, to each layer, and after the
    last one.
2. Write an adapter below that says where it differs from `Adapter`, and enter it in `ADAPTERS`. Where layers
   are given more than a mask, or look at positions themselves, `packs` is False.
3. Enter its model type in `FAMILIES` of configuration/setting_checks.py, in the same place.
4. Enter one row in `FAMILIES` of tests/helpers/families.py and run `python -m pytest tests -k families`. They
   hold the family against the stock model layer by layer, and try loading, training with the projection,
   early exit in batches and the Hub.

Layers are counted as they are applied: ALBERT's one layer counts as often as it runs. `token_type_ids` are
ignored where the stock model ignores them (DistilBERT, MPNet, ModernBERT), so that any tokenizer's output can
be passed on. transformers unpads ModernBERT inside flash attention only; with eager and sdpa it runs on
padded rows, which are cut to the longest as rows exit.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .batch_layout import RunLayer
from .layer_masks import TESTED_TRANSFORMERS, LayerRows, bidirectional_mask, sliding_window_mask


def _padding_id(backbone: PreTrainedModel) -> int:
    """Of the config when the model was built: a Trainer may write it later."""
    return backbone.embeddings.padding_idx


def _places_from(first: Tensor, tokens: int) -> Tensor:
    """Where rows begin (B,) -> (B, T): places of their tokens, counted from there; 0 before."""
    return (torch.arange(tokens, device=first.device) - first[:, None]).clamp(min=0)


def _states(output: Any) -> Tensor:
    """What a layer returns -> its hidden states: alone or first in a tuple, by family and by version of
    transformers.
    """
    return output[0] if isinstance(output, tuple) else output


class Adapter:
    """What most encoders share with BERT: `embeddings`, then `encoder.layer[k](hidden_states,
    attention_mask=...)`.
    """

    # That `embeddings` takes.
    inputs: tuple[str, ...] = ("input_ids", "token_type_ids", "position_ids", "inputs_embeds")
    layer_list = "encoder.layer"
    others: tuple[str, ...] = ()  # what else the adapter reaches for in the backbone
    packs = True  # layers are given a mask and nothing else, so that texts can be packed (batch_layout.py)
    # Where a layer that packs has the projections to keys and values, for tokens that have halted
    # (active_attention.py).
    keys_and_values: tuple[str, str] = ("attention.self.key", "attention.self.value")

    def max_tokens(self, config: PreTrainedConfig) -> int | None:
        """Longest sequence that there are positions for, special tokens included; `None` where any length
        runs.
        """
        return config.max_position_embeddings

    def embed(
        self, backbone: PreTrainedModel, attention_mask: Tensor | None, **inputs: Tensor | None
    ) -> Tensor:
        """input_ids (B, T) or inputs_embeds (B, T, embedding size), with what goes with them -> (B, T, H)"""
        return backbone.embeddings(**{name: inputs[name] for name in self.inputs})

    def packed_positions(
        self, backbone: PreTrainedModel, input_ids: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """Ids (T,) of packed texts, and their lengths -> (T,): the positions that `embeddings` would give
        each text alone.
        """
        return torch.cat([torch.arange(length) for length in lengths])

    def shifted_positions(
        self, backbone: PreTrainedModel, first: Tensor, tokens: int, from_ids: bool
    ) -> Tensor | None:
        """Positions (B, T) of rows that begin at `first` (B,), such as those with padding on the left.

        from_ids: whether there are token ids, by which some families count. `None` where `embeddings` gets
        them right itself.
        """
        return _places_from(first, tokens)

    def layers(self, backbone: PreTrainedModel) -> Sequence[nn.Module]:
        """The L layers in the order of use; one that is applied n times is there n times."""
        return attrgetter(self.layer_list)(backbone)

    def check_first_layers(self, config: PreTrainedConfig, whole: dict[str, Any]) -> None:
        """Refuse a depth at which layers of a checkpoint would not be its first ones.

        Args:
            config: of the encoder, with the depth that is wanted.
            whole: its config in the checkpoint.

        Raises:
            ValueError: other weights would run than at full depth.
        """

    def prepare(self, backbone: PreTrainedModel, rows: LayerRows) -> RunLayer:
        """How to run a layer on some rows, with their mask made as the attention backend wants it. Called
        again for the survivors whenever rows have left.
        """
        mask = bidirectional_mask(backbone, rows)
        return lambda number, layer, hidden: _states(layer(hidden, attention_mask=mask))

    def finish(self, backbone: PreTrainedModel, hidden: Tensor) -> Tensor:
        """What the stock model does to the output of its last layer, (B, T, H) -> (B, T, H); every exit sees
        its layer's so.
        """
        return hidden

    def states_by_layer(self, config: PreTrainedConfig, states: Sequence[Tensor]) -> Sequence[Tensor]:
        """`hidden_states` of the stock model -> embeddings and L layers: L + 1 tensors (B, T, H)."""
        return states

    def pooler(self, backbone: PreTrainedModel) -> nn.Linear | None:
        """The linear layer of the pretrained pooler: what the exits' poolers start from."""
        return backbone.pooler.dense if getattr(backbone, "pooler", None) is not None else None


class RobertaAdapter(Adapter):
    """RoBERTa and its relatives: BERT's layers; positions are counted from `pad_token_id + 1`."""

    def max_tokens(self, config: PreTrainedConfig) -> int:
        return config.max_position_embeddings - config.pad_token_id - 1

    def packed_positions(
        self, backbone: PreTrainedModel, input_ids: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        pad = _padding_id(backbone)
        counts = input_ids != pad  # the padding token is not counted, not even within a text
        counted = torch.cat([of_text.cumsum(dim=0) for of_text in counts.split(list(lengths))])
        return counted * counts + pad

    def shifted_positions(
        self, backbone: PreTrainedModel, first: Tensor, tokens: int, from_ids: bool
    ) -> Tensor | None:
        return None if from_ids else _places_from(first, tokens) + _padding_id(backbone) + 1


class ElectraAdapter(Adapter):
    """ELECTRA: BERT's layers; small embeddings are projected to the hidden size."""

    def embed(
        self, backbone: PreTrainedModel, attention_mask: Tensor | None, **inputs: Tensor | None
    ) -> Tensor:
        embedded = super().embed(backbone, attention_mask, **inputs)
        return backbone.embeddings_project(embedded) if hasattr(backbone, "embeddings_project") else embedded


class DistilBertAdapter(Adapter):
    """DistilBERT: no token types, no pooler."""

    inputs = ("input_ids", "position_ids", "inputs_embeds")
    layer_list = "transformer.layer"
    keys_and_values = ("attention.k_lin", "attention.v_lin")


class MPNetAdapter(Adapter):
    """MPNet: all layers add one bias to the attention scores, by distance of the tokens; positions are
    counted from 2.
    """

    inputs = ("input_ids", "position_ids", "inputs_embeds")
    others = ("encoder.compute_position_bias",)
    packs = False

    def max_tokens(self, config: PreTrainedConfig) -> int:
        # Its embeddings pad with position 1, whatever the config says.
        return config.max_position_embeddings - 2

    def shifted_positions(
        self, backbone: PreTrainedModel, first: Tensor, tokens: int, from_ids: bool
    ) -> Tensor | None:
        return None if from_ids else _places_from(first, tokens) + 2

    def prepare(self, backbone: PreTrainedModel, rows: LayerRows) -> RunLayer:
        mask = bidirectional_mask(backbone, rows)
        bias = backbone.encoder.compute_position_bias(rows.hidden[:1])  # (1, heads, T, T), of every row
        return lambda number, layer, hidden: _states(layer(hidden, attention_mask=mask, position_bias=bias))


class DebertaV2Adapter(Adapter):
    """DeBERTa v2 and v3: relative attention; padding is blanked in the embeddings; a convolution may go
    beside the first layer.
    """

    others = (
        "encoder.get_attention_mask",
        "encoder.get_rel_pos",
        "encoder.get_rel_embedding",
        "encoder.conv",
    )
    packs = False

    def max_tokens(self, config: PreTrainedConfig) -> int | None:
        return config.max_position_embeddings if config.position_biased_input else None

    def shifted_positions(
        self, backbone: PreTrainedModel, first: Tensor, tokens: int, from_ids: bool
    ) -> Tensor | None:
        return _places_from(first, tokens) if backbone.config.position_biased_input else None

    def embed(
        self, backbone: PreTrainedModel, attention_mask: Tensor | None, **inputs: Tensor | None
    ) -> Tensor:
        return backbone.embeddings(mask=attention_mask, **inputs)

    def prepare(self, backbone: PreTrainedModel, rows: LayerRows) -> RunLayer:
        encoder = backbone.encoder
        hidden, mask = rows.hidden, rows.attention_mask
        attended = hidden.new_ones(hidden.shape[:2]) if mask is None else mask.to(hidden.dtype)  # (B, T)
        arguments = {
            "attention_mask": encoder.get_attention_mask(attended),  # (B, 1, T, T)
            "relative_pos": encoder.get_rel_pos(hidden),
            "rel_embeddings": encoder.get_rel_embedding(),
        }

        def run(number: int, layer: nn.Module, hidden: Tensor) -> Tensor:
            output = _states(layer(hidden, **arguments))
            beside = encoder.conv if number == 0 else None
            return output if beside is None else beside(hidden, output, attended)

        return run


class AlbertAdapter(Adapter):
    """ALBERT: one layer, or one per group, applied L times; embeddings are mapped to the hidden size."""

    layer_list = "encoder.albert_layer_groups"
    others = ("encoder.embedding_hidden_mapping_in",)
    keys_and_values = ("albert_layers.0.attention.key", "albert_layers.0.attention.value")

    def embed(
        self, backbone: PreTrainedModel, attention_mask: Tensor | None, **inputs: Tensor | None
    ) -> Tensor:
        return backbone.encoder.embedding_hidden_mapping_in(super().embed(backbone, attention_mask, **inputs))

    def layers(self, backbone: PreTrainedModel) -> Sequence[nn.Module]:
        groups = super().layers(backbone)
        return [groups[index] for index in self._groups(backbone.config.num_hidden_layers, len(groups))]

    @staticmethod
    def _groups(layers: int, groups: int) -> list[int]:
        """(L,): the group that each layer is of, by the stock model's own rounding."""
        return [int(index / (layers / groups)) for index in range(layers)]

    def check_first_layers(self, config: PreTrainedConfig, whole: dict[str, Any]) -> None:
        depth, groups = config.num_hidden_layers, config.num_hidden_groups
        of_whole = self._groups(whole.get("num_hidden_layers", depth), groups)
        if self._groups(depth, groups) != of_whole[:depth]:
            raise ValueError(
                f"num_hidden_layers={depth}: this ALBERT has {groups} groups of layers for"
                f" {len(of_whole)} layers, and with {depth} others of its layers would be of each group. Load"
                " all layers, or a checkpoint of one group."
            )

    def states_by_layer(self, config: PreTrainedConfig, states: Sequence[Tensor]) -> Sequence[Tensor]:
        return states[:: config.inner_group_num]  # the stock model also tells what is inside a group

    def pooler(self, backbone: PreTrainedModel) -> nn.Linear | None:
        return backbone.pooler


class ModernBertAdapter(Adapter):
    """ModernBERT: rotary positions and a mask per kind of attention, local or global; a norm after the last
    layer.

    Its layers add to a stream that is normed only where it is read, so every exit reads it through that final
    norm: at the last layer because the stock model does, before it because a stream that grows with depth has
    no scale a classifier could rely on.
    """

    inputs = ("input_ids", "inputs_embeds")
    layer_list = "layers"
    others = ("layers.0.attention_type", "rotary_emb", "final_norm")
    packs = False

    def max_tokens(self, config: PreTrainedConfig) -> None:
        return None

    def shifted_positions(
        self, backbone: PreTrainedModel, first: Tensor, tokens: int, from_ids: bool
    ) -> None:
        return None  # rotary: only distances count

    def prepare(self, backbone: PreTrainedModel, rows: LayerRows) -> RunLayer:
        masks = {
            "full_attention": bidirectional_mask(backbone, rows),
            "sliding_attention": sliding_window_mask(backbone, rows),
        }
        positions = rows.position_ids
        if positions is None:
            positions = torch.arange(rows.hidden.shape[1], device=rows.hidden.device).unsqueeze(0)
        kinds = set(backbone.config.layer_types)
        rotary = {kind: backbone.rotary_emb(rows.hidden, positions, kind) for kind in kinds}

        def run(number: int, layer: Any, hidden: Tensor) -> Tensor:
            kind = layer.attention_type
            return _states(layer(hidden, attention_mask=masks[kind], position_embeddings=rotary[kind]))

        return run

    def finish(self, backbone: PreTrainedModel, hidden: Tensor) -> Tensor:
        return backbone.final_norm(hidden)


ADAPTERS: dict[str, Adapter] = {
    "bert": Adapter(),
    "roberta": RobertaAdapter(),
    "xlm-roberta": RobertaAdapter(),
    "camembert": RobertaAdapter(),
    "electra": ElectraAdapter(),
    "distilbert": DistilBertAdapter(),
    "mpnet": MPNetAdapter(),
    "deberta-v2": DebertaV2Adapter(),
    "albert": AlbertAdapter(),
    "modernbert": ModernBertAdapter(),
}


def adapter_for(config: PreTrainedConfig) -> Adapter:
    """The adapter of a backbone config's family; which families there are is checked by the config."""
    return ADAPTERS[config.model_type]


def check_layout(backbone: PreTrainedModel) -> None:
    """Hold a stock model that was just built against what its adapter reaches for.

    Raises:
        RuntimeError: something is not there, as in a version of transformers that is laid out differently.
    """
    adapter = adapter_for(backbone.config)
    for path in ("embeddings", adapter.layer_list, *adapter.others):
        try:
            attrgetter(path)(backbone)
        except AttributeError:
            raise RuntimeError(
                f"{type(backbone).__name__} of transformers {transformers.__version__} has no {path}, which"
                " the early-exit loop needs. Install a version that this package was tested with,"
                f" {TESTED_TRANSFORMERS}, or mend {type(adapter).__name__} in modeling_romebert/backbones.py."
            ) from None
