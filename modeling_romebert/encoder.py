"""A model's embeddings, layers and exits, as the early-exit loop (early_exit.py) runs them on a batch.

Token ids go straight into a batch: packed where layers can keep the texts of a packed batch apart, else
padded on the right. How a family's layers are called is in backbones.py, how an exit pools and classifies in
exit_heads.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .batch_layout import (
    Batch,
    Features,
    PackedBatch,
    PaddedBatch,
    RunLayer,
    first_attended,
    may_begin_late,
    rounded_up,
)
from .cpu import workers_for
from .input_checks import check_inputs
from .layer_masks import LayerRows
from .packed_attention import BlockDiagonalMask

# What a forward pass takes.
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")


class TorchEncoder:
    """The layers and exits of a `RomeBertForSequenceClassification`; of one for tokens see token_encoder.py.

    Args:
        model: the classifier.
        layers: to run in place of the model's own, in the same order, such as copies with prepacked weights.
        states: every layer's output (b, T, H) is appended to it, the embeddings first.
        pad_token_id: of the tokenizer, for `embed_texts`.
    """

    def __init__(
        self,
        model: Any,
        layers: Sequence[nn.Module] | None = None,
        states: list[Tensor] | None = None,
        pad_token_id: int | None = None,
    ):
        self.model, self.backbone, self.adapter = model, model.backbone, model.adapter
        self.layers = model.layers if layers is None else layers
        self.exits: Mapping[str, nn.Module] = model.exits
        self.exit_layers: list[int] = model.exit_layers
        self.num_labels: int = model.num_labels
        self.pools_mean: bool = model.pools_mean
        self.mixes_layers: bool = model.mixes_layers
        self.states, self.pad_token_id = states, pad_token_id

    @property
    def packs(self) -> bool:
        """Whether texts can be packed: on a CPU, with torch's own attention, for layers that are given a mask
        and nothing else.
        """
        attention = self.backbone.config._attn_implementation
        return self.model.device.type == "cpu" and attention == "sdpa" and self.adapter.packs

    def workers(self, tokens: int) -> int:
        """How many batches of a pass over so many tokens to run at once (cpu.py)."""
        return workers_for(self.model.device, tokens)

    # ---- token ids -> batches

    def embed_texts(self, texts: Sequence[Features]) -> Batch:
        """Tokenised texts, each of at least one token -> an embedded batch, packed where texts can be.

        Raises:
            ValueError: texts have to be padded, and there is no token for that.
        """
        lengths = [len(text["input_ids"]) for text in texts]
        names = [name for name in ("input_ids", "token_type_ids") if name in texts[0]]
        if self.packs:
            return self._embed_packed({name: [text[name] for text in texts] for name in names}, lengths)
        longest = max(lengths)
        if self.pad_token_id is None and min(lengths) < longest:
            raise ValueError(
                "the tokenizer has no padding token; set tokenizer.pad_token, or give batch_size=1."
            )
        fill = {"input_ids": self.pad_token_id or 0, "token_type_ids": 0}
        inputs: dict[str, Tensor | None] = dict.fromkeys(INPUTS)
        for name in names:
            rows = [[*text[name], *[fill[name]] * (longest - len(text[name]))] for text in texts]
            inputs[name] = torch.tensor(rows).to(self.model.device, non_blocking=True)  # (b, T)
        if min(lengths) < longest:
            mask = torch.arange(longest) < torch.tensor(lengths)[:, None]  # (b, T)
            inputs["attention_mask"] = mask.long().to(self.model.device, non_blocking=True)
        return self.embed(inputs).measure()

    def _embed_packed(self, inputs: dict[str, list[Sequence[int]]], lengths: list[int]) -> PackedBatch:
        tokens = sum(lengths)

        def flat(name: str) -> Tensor:
            ids = torch.tensor([token for text in inputs[name] for token in text])  # (T,)
            return F.pad(ids, (0, rounded_up(tokens) - tokens)).unsqueeze(0)  # (1, T + filler)

        ids = flat("input_ids")
        types = flat("token_type_ids") if "token_type_ids" in inputs else torch.zeros_like(ids)
        positions = self.adapter.packed_positions(self.backbone, ids[0, :tokens], lengths)  # (T,)
        positions = F.pad(positions, (0, ids.shape[1] - tokens)).unsqueeze(0)
        named = {"input_ids": ids, "token_type_ids": types, "position_ids": positions, "inputs_embeds": None}
        return PackedBatch(self.adapter.embed(self.backbone, None, **named), lengths)

    def embed(self, inputs: Mapping[str, Tensor | None]) -> PaddedBatch:
        """The inputs of a forward pass, by name -> an embedded batch.

        Raises:
            ValueError: see `check_inputs`.
        """
        inputs = self.with_positions(inputs)
        hidden = self.adapter.embed(self.backbone, **inputs)
        if self.states is not None:
            self.states.append(hidden)
        return PaddedBatch(hidden, inputs["attention_mask"], inputs["position_ids"])

    def with_positions(self, inputs: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
        """Checked inputs with each row's positions counted from its first attended token: padding may be on
        either side.

        Args:
            inputs: input_ids (B, T) or inputs_embeds (B, T, H); attention_mask, token_type_ids, position_ids
                (B, T).
        """
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        check_inputs(self.model, ids, mask, inputs["inputs_embeds"])
        positions = inputs["position_ids"]
        if positions is None and mask is not None and may_begin_late(mask):
            first = first_attended(mask)  # (B,)
            positions = self.adapter.shifted_positions(
                self.backbone, first, mask.shape[1], from_ids=ids is not None
            )
        return {**inputs, "position_ids": positions}

    # ---- the loop's side

    def run(self, batch: Batch, first: int, last: int) -> None:
        """Run layers first + 1 .. last, in place."""
        if batch.run_layer is None:
            batch.run_layer = self._prepare(batch)
        for number in range(first, last):
            layer = self.layers[number]
            if self._checkpoints(layer):
                batch.hidden = self.model._gradient_checkpointing_func(
                    batch.run_layer, number, layer, batch.hidden
                )
            else:
                batch.hidden = batch.run_layer(number, layer, batch.hidden)
            if self.states is not None:
                self.states.append(batch.hidden)
            if self.mixes_layers:
                self.note_pooled(batch)

    def note_pooled(self, batch: Batch, is_finished: bool = False) -> None:
        """Add what an exit reads of the layer that ran last to what it reads of those before: for exits that
        mix layers.
        """
        pooled = self._pool(batch, self._finished(batch, is_finished)).unsqueeze(1)  # (b, 1, H)
        batch.pooled = pooled if batch.pooled is None else torch.cat([batch.pooled, pooled], dim=1)

    def _finished(self, batch: Batch, is_finished: bool) -> Tensor:
        return batch.hidden if is_finished else self.adapter.finish(self.backbone, batch.hidden)

    def _pool(self, batch: Batch, finished: Tensor) -> Tensor:
        """States that lie as `hidden` does -> (b, H)"""
        return batch.means(finished) if self.pools_mean else batch.first_tokens(finished)

    def exit_logits(self, batch: Batch, layer: int, is_finished: bool = False) -> Tensor:
        """(b, C) of the exit after `layer`. is_finished: `hidden` is what the stock model returns, not what
        its layer did.
        """
        finished = self._finished(batch, is_finished)
        if self.states is not None and layer == self.exit_layers[-1]:
            self.states[-1] = finished  # as the stock model returns its last state
        # (b, layer, H), or (b, H)
        pooled = batch.pooled if self.mixes_layers else self._pool(batch, finished)
        return self.exits[str(layer)](pooled)

    def _prepare(self, batch: Batch) -> RunLayer:
        """How to run a layer on the rows of a batch: made once for the same rows."""
        if isinstance(batch, PackedBatch):
            lengths = [*batch.lengths, batch.filler] if batch.filler else batch.lengths
            rows = LayerRows(batch.hidden, BlockDiagonalMask.of(lengths), padded=True)
        else:
            assert isinstance(batch, PaddedBatch)
            rows = LayerRows(batch.hidden, batch.attention_mask, batch.position_ids, batch.is_measured)
        return self.adapter.prepare(self.backbone, rows)

    def _checkpoints(self, layer: nn.Module) -> bool:
        """Whether gradient checkpointing is done here, for families whose layers do not do it themselves."""
        wanted = self.model.gradient_checkpointing and self.model.training
        return wanted and not isinstance(layer, GradientCheckpointingLayer)
