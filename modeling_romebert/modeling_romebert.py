"""The models that users load: a text encoder of the library with an exit after some of its layers.

A row is one text of a batch. Without an exit policy every row runs every layer and every exit is evaluated;
with one, sure rows exit, or of a token classifier sure tokens halt, and deeper layers run on less. What the
classifiers share is in multi_exit.py, loading and saving in pretrained.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .configuration_romebert import ProblemType, RomeBertConfig
from .early_exit import classify
from .exit_policies import ExitPolicy
from .input_checks import check_token_ids
from .losses import check_labels
from .multi_exit import MultiExitModel
from .policy_base import check_unit
from .pretrained import RomeBertPreTrainedModel
from .token_encoder import TokenEncoder
from .token_exits import active_tokens, classify_tokens


@dataclass
class RomeBertClassifierOutput(ModelOutput):
    """What `RomeBertForSequenceClassification` returns, for B rows, E exits, C labels and L layers.

    Args:
        loss: scalar, with labels only: the joint loss without a policy, the loss of `logits` with one.
        logits (B, C): of the exit where each row left; the last exit without a policy.
        exit_logits (B, E, C): of every exit; `None` with a policy.
        exit_layer (B,): layers run, 1..L.
        hidden_states: L + 1 tensors (B, T, H), embeddings first, when asked for; without a policy only.
        attentions: L tensors (B, heads, T, T), when asked for; without a policy only.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    exit_logits: Tensor | None = None
    exit_layer: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class RomeBertTokenClassifierOutput(ModelOutput):
    """What `RomeBertForTokenClassification` returns, for B rows of T tokens, E exits, C labels and L layers.

    Args:
        loss: scalar, with labels only: the joint loss without a policy, the loss of `logits` with one.
        logits (B, T, C): of the exit where each token left; the last exit without a policy.
        exit_logits (B, E, T, C): of every exit; `None` with a policy.
        exit_layer (B, T): layers run, 1..L; with a policy 0, and logits of 0, for padding.
        hidden_states: L + 1 tensors (B, T, H), embeddings first, when asked for; without a policy only.
        attentions: L tensors (B, heads, T, T), when asked for; without a policy only.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    exit_logits: Tensor | None = None
    exit_layer: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class RomeBertModel(RomeBertPreTrainedModel):
    """The encoder alone, at full depth: what `AutoModel` gives for a RomeBERT checkpoint.

    Call arguments are the backbone's.
    """

    _auto_class = "AutoModel"
    _keys_to_ignore_on_load_unexpected = [r"^exits\."]

    def __init__(self, config: RomeBertConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config, backbone)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput | tuple[Tensor, ...]:
        """input_ids (B, T) -> `last_hidden_state` (B, T, H), as the stock model computes it."""
        if input_ids is not None:
            check_token_ids(self, input_ids)
        return self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )


class RomeBertForSequenceClassification(MultiExitModel):
    """A text encoder with a classifier after each of `config.exit_layers`.

    Example:
        >>> config = RomeBertConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=4)
        >>> model = RomeBertForSequenceClassification(config).eval()
        >>> ids = torch.tensor([[101, 2023, 2003, 102]])
        >>> model(ids).exit_logits.shape
        torch.Size([1, 2, 2])
        >>> model(ids, exit_policy={"name": "confidence", "threshold": 0.0}).exit_layer
        tensor([1])
    """

    _auto_class = "AutoModelForSequenceClassification"
    output_class = RomeBertClassifierOutput

    def __init__(self, config: RomeBertConfig, backbone: PreTrainedModel | None = None):
        if config.classifies_tokens:
            raise ValueError(
                'exit_pooling="token" is that of a token classifier: load it with'
                ' AutoModelForTokenClassification, or give exit_pooling="cls" or "mean".'
            )
        super().__init__(config, backbone)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        exit_policy: ExitPolicy | dict[str, Any] | None = None,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        output_attentions: bool | None = None,
    ) -> RomeBertClassifierOutput:
        """Classify a batch.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: each (B, T); inputs_embeds: (B, T, H); as
                in BERT.
            labels: (B,) class ids, (B, C) multi-label targets, or (B,) numbers for regression.
            exit_policy: a policy from `make_policy` or its settings; rows then leave when it says so. `None`
                runs every layer, whatever `config.exit_policy` says: that one is for the pipeline.
            output_hidden_states, output_attentions: return them too; only without a policy. Left out, the
                config says. Indices of hidden states, as stock models take them, leave `None` in the place of
                the others.

        Raises:
            ValueError: inputs, labels or policy that do not fit the model.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        return self._classify(inputs, labels, exit_policy, output_hidden_states, output_attentions)

    def _exit_early(  # type: ignore[override]
        self, inputs: Mapping[str, Tensor | None], policy: ExitPolicy, labels: Tensor | None
    ) -> RomeBertClassifierOutput:
        """A batch whose rows exit as the policy says."""
        check_unit(policy, classifies_tokens=False)
        policy = policy.start(len(self.exit_layers), self.problem_type, self.exit_layers)
        encoder = self.encoder_class(self)
        logits, exit_layer = classify(encoder, encoder.embed(inputs).measure(), policy)  # (B, C), (B,)
        loss = self._loss_of(logits, labels)
        return RomeBertClassifierOutput(loss=loss, logits=logits, exit_layer=exit_layer)


class RomeBertForTokenClassification(MultiExitModel):
    """A text encoder with a classifier of every token after each of `config.exit_layers`.

    Labels, logits and exit layers are of tokens. With a policy whole rows leave when all their words are
    sure, or with `unit="token"` single tokens halt, and keep their state while the layers above run on the
    others (SENTEE and TOKEE, Li et al., arXiv 2105.13878; sentence_exits.py, token_exits.py). A class per
    token is the only problem type.

    Example:
        >>> config = RomeBertConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_labels=3)
        >>> model = RomeBertForTokenClassification(config).eval()
        >>> ids = torch.tensor([[101, 2023, 2003, 102]])
        >>> model(ids).exit_logits.shape
        torch.Size([1, 2, 4, 3])
        >>> model(ids, exit_policy={"name": "entropy", "threshold": 1.0, "unit": "token"}).exit_layer
        tensor([[1, 1, 1, 1]])
    """

    _auto_class = "AutoModelForTokenClassification"
    output_class = RomeBertTokenClassifierOutput
    encoder_class = TokenEncoder
    active_batch = staticmethod(active_tokens)
    problem_type = ProblemType.SINGLE_LABEL.value  # of a token

    def __init__(self, config: RomeBertConfig, backbone: PreTrainedModel | None = None):
        if config.exit_mix:
            raise ValueError(
                "exit_mix=True mixes what is pooled of each layer, and a token classifier pools nothing."
            )
        config.exit_pooling = "token"
        super().__init__(config, backbone)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        exit_policy: ExitPolicy | dict[str, Any] | None = None,
        word_ids: Tensor | None = None,
        halt_layers: Tensor | None = None,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        output_attentions: bool | None = None,
    ) -> RomeBertTokenClassifierOutput:
        """Classify the tokens of a batch.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: each (B, T); inputs_embeds: (B, T, H); as
                in BERT.
            labels: (B, T) class ids, or -100 for tokens without one.
            exit_policy: see `RomeBertForSequenceClassification.forward`.
            word_ids: (B, T), the word of each token as a fast tokenizer counts them, and -1 for special
                tokens, which have no say in a policy; nor has a piece of a word but the first. Left out, each
                attended token is a word.
            halt_layers: (B, T), layers that each token runs before it halts, instead of a policy: what the
                second stage of training sees (training/self_sampling.py). Every exit is evaluated.
            output_hidden_states, output_attentions: see `RomeBertForSequenceClassification.forward`.

        Raises:
            ValueError: inputs, labels, policy or words that do not fit the model.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        if halt_layers is not None and (exit_policy is not None or output_attentions):
            raise ValueError("halt_layers is given with exit_policy or output_attentions; leave one out.")
        of_exits = {"word_ids": word_ids, "halt_layers": halt_layers}
        return self._classify(
            inputs, labels, exit_policy, output_hidden_states, output_attentions, **of_exits
        )

    def _encoder_of_all_layers(self, states: list[Tensor] | None, **of_exits: Any) -> TokenEncoder:
        return TokenEncoder(self, states=states, halt_layers=of_exits["halt_layers"])

    def _exit_early(  # type: ignore[override]
        self,
        inputs: Mapping[str, Tensor | None],
        policy: ExitPolicy,
        labels: Tensor | None,
        word_ids: Tensor | None = None,
        halt_layers: None = None,
    ) -> RomeBertTokenClassifierOutput:
        """A batch whose rows, or tokens, exit as the policy says."""
        policy = policy.start(len(self.exit_layers), self.problem_type, self.exit_layers)
        encoder = self.encoder_class(self)
        batch = encoder.embed(inputs).measure()
        shape = batch.hidden.shape[:2]
        if word_ids is None:
            word_ids = torch.arange(shape[1], device=batch.hidden.device).expand(shape)
        if word_ids.shape != shape:
            raise ValueError(
                f"word_ids have shape {tuple(word_ids.shape)}; give one per token, {tuple(shape)}, with -1"
                " for tokens of no word."
            )
        words = word_ids.flatten()[batch.places].cpu()  # (n,)
        logits, exit_layer = classify_tokens(encoder, batch, policy, words)  # (B, T, C), (B, T)
        loss = self._loss_of(logits, labels)
        return RomeBertTokenClassifierOutput(loss=loss, logits=logits, exit_layer=exit_layer)

    def note_labels(self, labels: Tensor) -> None:
        """Refuse labels that are no class of a token; the problem type is always the same.

        Raises:
            ValueError: a value that is no class, or labels that are not (B, T).
        """
        if labels.ndim != 2:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}, and a token classifier needs (B, T): one per"
                " token, -100 where there is none."
            )
        if labels.device.type == "cpu":  # elsewhere reading values would wait for the device
            check_labels(labels.flatten(), self.problem_type, self.config.num_labels)
