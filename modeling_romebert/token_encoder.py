"""The layers and exits of a token classifier: an exit reads every token, and tokens may have halted.

A halted token keeps its state while the layers above run. Where texts can be packed, layers run on the active
tokens alone, which attend to all (active_attention.py). Elsewhere a layer runs on all tokens, and the halted
ones are put back: the same answers, without the time that halting saves.
"""

from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .active_attention import ActiveQueries
from .backbones import RunLayer
from .batch_layout import Batch, PackedBatch, rounded_up
from .encoder import TorchEncoder
from .layer_masks import LayerRows


class TokenEncoder(TorchEncoder):
    """The layers and exits of a `RomeBertForTokenClassification`; see `TorchEncoder`.

    Args:
        halt_layers (b, T): layers that each token of the one batch runs; all when left out.

    `exit_logits` gives those of all tokens, as they lie: (b, T, C) padded, (1, T + filler, C) packed.
    """

    def __init__(self, *args: Any, halt_layers: Tensor | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.halt_layers = halt_layers

    def _pool(self, batch: Batch, finished: Tensor) -> Tensor:
        return finished

    def _prepare(self, batch: Batch) -> RunLayer:
        if self.halt_layers is not None:
            return self._until_told(batch, self.halt_layers)
        if batch.active is None:
            return super()._prepare(batch)
        if self.runs_active_tokens(batch):
            assert isinstance(batch, PackedBatch)
            return self._on_active_tokens(batch, batch.active)
        return self._on_all_tokens(batch, batch.active)

    def runs_active_tokens(self, batch: Batch) -> bool:
        """Whether layers run on active tokens alone; a group of layers that counts as one (ALBERT) would need
        the keys of each of them.
        """
        return isinstance(batch, PackedBatch) and getattr(self.backbone.config, "inner_group_num", 1) == 1

    def _on_active_tokens(self, batch: PackedBatch, active: Tensor) -> RunLayer:
        """How to run a layer on the active tokens (m,) alone. Writes their states into the batch's own."""
        is_active = torch.zeros(sum(batch.attended), dtype=torch.bool)
        is_active[active] = True
        mask = ActiveQueries.of_active(batch.attended, is_active)
        # What they are at every layer from here on, and zeros behind, so that few sizes occur.
        halted = _filled_up(batch.hidden[0, (~is_active).nonzero().squeeze(1)])  # (n - m + filler, H)
        inner = self.adapter.prepare(self.backbone, LayerRows(batch.hidden, mask, padded=True))
        find_key, find_value = map(attrgetter, self.adapter.keys_and_values)

        def run(number: int, layer: nn.Module, hidden: Tensor) -> Tensor:
            heads = self.backbone.config.num_attention_heads
            mask.halted = tuple(
                projection(layer)(halted).unflatten(-1, (heads, -1)) for projection in (find_key, find_value)
            )
            states = _filled_up(hidden[0, active]).unsqueeze(0)  # (1, m + filler, H)
            hidden[0, active] = inner(number, layer, states)[0, : len(active)]
            return hidden

        return run

    def _until_told(self, batch: Batch, halt_layers: Tensor) -> RunLayer:
        """How to run a layer where it is known beforehand how many each token (b, T) runs."""
        inner = super()._prepare(batch)

        def run(number: int, layer: nn.Module, hidden: Tensor) -> Tensor:
            return torch.where((halt_layers > number).unsqueeze(-1), inner(number, layer, hidden), hidden)

        return run

    def _on_all_tokens(self, batch: Batch, active: Tensor) -> RunLayer:
        """How to run a layer on all tokens, whatever their family and layout, and keep what has halted."""
        places = batch.places[active.to(batch.places.device)]
        moves = torch.zeros(batch.hidden.shape[:2], dtype=torch.bool, device=batch.hidden.device)  # (b, T)
        moves.view(-1)[places] = True
        inner = super()._prepare(batch)

        def run(number: int, layer: nn.Module, hidden: Tensor) -> Tensor:
            return torch.where(moves.unsqueeze(-1), inner(number, layer, hidden), hidden)

        return run


def _filled_up(states: Tensor) -> Tensor:
    """(m, H) -> (m + filler, H), zeros behind."""
    return F.pad(states, (0, 0, 0, rounded_up(len(states)) - len(states)))
