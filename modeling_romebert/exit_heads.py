"""An exit: what it sees of a row after some layer -> logits. It decides nothing; exit_policies.py does."""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_romebert import RomeBertConfig

# Dropout before a classifier, as the encoders' configs call it: the first that is set. None of them: no
# dropout.
_DROPOUTS = (
    "classifier_dropout",
    "classifier_dropout_prob",
    "seq_classif_dropout",
    "cls_dropout",
    "hidden_dropout_prob",
)


def mean_weights(hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """hidden_states (B, T, H), attention_mask (B, T) of 0 and 1 -> (B, 1, T): what each token weighs in the
    mean of its row.

    The same for every exit, so it is computed once. A row that attends to nothing weighs nothing.
    """
    rows, tokens, _ = hidden_states.shape
    if attention_mask is None:
        # An expanded one is multiplied four times as slowly.
        return hidden_states.new_full((rows, 1, tokens), 1 / tokens)
    weights = attention_mask.float()
    # Before the sum, which could overflow in fp16.
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
    return weights.to(hidden_states.dtype).unsqueeze(1)


def weighted_mean(weights: Tensor, hidden_states: Tensor) -> Tensor:
    """weights (B, 1, T), hidden_states (B, T, H) -> (B, H)"""
    if hidden_states.dtype in (torch.bfloat16, torch.float16) and hidden_states.is_cpu:
        # In half precision a CPU prepares code for every new shape first, which takes longer than the
        # product.
        return torch.bmm(weights.float(), hidden_states.float()).squeeze(1).to(hidden_states.dtype)
    return torch.bmm(weights, hidden_states).squeeze(1)


class Pooler(nn.Module):
    """BERT's pooler: a dense layer and tanh. (B, H) -> (B, H)"""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, first_token: Tensor) -> Tensor:
        return torch.tanh(self.dense(first_token))


class LayerMix(nn.Module):
    """What an exit reads of the layers so far: scale * sum over l of softmax(weights)_l pooled_l.

    ELMo's mix of layers, as BERMo (arXiv 2110.15802) has it for the top of BERT, at every exit. Pooling is
    linear, so the mix of pooled states is the pooled mix. It starts as their mean.

    Args:
        layers: l of the exit, the number of layers run.

    Example:
        >>> pooled = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])  # one row after two layers
        >>> LayerMix(2)(pooled).tolist()
        [[2.0, 2.0]]
    """

    def __init__(self, layers: int):
        super().__init__()
        self.weights = nn.Parameter(torch.empty(layers))
        self.scale = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the mean of the layers."""
        init.zeros_(self.weights)
        init.ones_(self.scale)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, l, H), the pooled states of each layer -> (B, H)"""
        weights = self.scale.float() * self.weights.float().softmax(dim=0)  # (l,)
        return (weights[:, None].to(pooled.dtype) * pooled).sum(dim=1)


class ExitHead(nn.Module):
    """A classifier at one exit: (B, H) -> (B, C), from the first token through a pooler of its own, or from
    the mean of a row; or (..., H) -> (..., C) from every token. With `config.exit_mix`: (B, l, H) -> (B, C),
    from those of every layer so far.

    Args:
        layer: after which it is, counted from 1.
    """

    def __init__(self, config: RomeBertConfig, layer: int):
        super().__init__()
        self.mix = LayerMix(layer) if config.exit_mix else None
        dropouts = (getattr(config.backbone_config, name, None) for name in _DROPOUTS)
        self.pooler = Pooler(config.hidden_size) if config.exit_pooling == "cls" else None
        self.dropout = nn.Dropout(next((dropout for dropout in dropouts if dropout is not None), 0.0))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, pooled: Tensor) -> Tensor:
        if self.mix is not None:
            pooled = self.mix(pooled)
        if self.pooler is not None:
            pooled = self.pooler(pooled)
        return self.classifier(self.dropout(pooled))
