"""An exit: hidden states after some layer -> logits. Pools tokens, then classifies; decides nothing (policies.py does)."""

import torch
from torch import Tensor, nn

from .configuration_romebert import RomeBertConfig


def masked_mean(hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """hidden_states (B, T, H), attention_mask (B, T) of 0 and 1 -> (B, H): mean over the attended tokens.

    A row that attends to nothing gives zeros.
    """
    if attention_mask is None:
        return hidden_states.mean(dim=1)
    weights = attention_mask.float()  # (B, T)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)  # before the sum, which could overflow in fp16
    return torch.einsum("bth,bt->bh", hidden_states, weights.to(hidden_states.dtype))


class Pooler(nn.Module):
    """BERT's pooler: a dense layer and tanh on the first token. (B, T, H) -> (B, H)"""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden_states[:, 0]))


class ExitHead(nn.Module):
    """Pooling, dropout and a linear classifier. (B, T, H), (B, T) -> (B, C)"""

    def __init__(self, config: RomeBertConfig):
        super().__init__()
        backbone = config.backbone_config
        dropout = getattr(backbone, "classifier_dropout", None)
        self.pooler = Pooler(config.hidden_size) if config.exit_pooling == "cls" else None
        self.dropout = nn.Dropout(backbone.hidden_dropout_prob if dropout is None else dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        pooled = masked_mean(hidden_states, attention_mask) if self.pooler is None else self.pooler(hidden_states)  # (B, H)
        return self.classifier(self.dropout(pooled))
