"""The models: a text encoder of the library with an exit after some of its layers.

A row is one text of a batch. Without an exit policy every row runs every layer and every exit is evaluated;
with one, sure rows exit, and deeper layers run on fewer rows and shorter padding. The loop over the layers is
in early_exit.py, what it runs in encoder.py, the exits in exit_heads.py, the decision in exit_policies.py,
loading and saving in pretrained.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging

from .batch_layout import PaddedBatch
from .configuration_romebert import ProblemType, RomeBertConfig
from .cpu import PREPACKING_TOKENS, pays, prepacked
from .early_exit import all_exits, classify
from .encoder import TorchEncoder
from .exit_heads import ExitHead
from .exit_policies import ExitPolicy, as_policy
from .input_checks import check_token_ids
from .losses import ExitLoss, check_labels, infer_problem_type
from .pretrained import RomeBertPreTrainedModel

logger = logging.get_logger(__name__)


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


def _selected(states: tuple[Tensor, ...], which: bool | int | Sequence[int]) -> tuple[Tensor | None, ...]:
    """Hidden states by their indices, negative ones counted from the end; `True` is all of them.

    `None` for the others.
    """
    if which is True:
        return states
    count, indices = len(states), [which] if isinstance(which, int) else which
    return tuple(
        state if index in indices or index - count in indices else None for index, state in enumerate(states)
    )


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


class RomeBertForSequenceClassification(RomeBertPreTrainedModel):
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
    # The loss is a mean over the batch: a Trainer divides it by the accumulation steps itself.
    accepts_loss_kwargs = False
    # Whether to look for a training that reaches the last exit alone, and say so; what means to do that turns
    # it off.
    watches_exits = True
    gradient_checkpointing = False  # set by the library, with the function that does it
    _gradient_checkpointing_func: Any

    def __init__(self, config: RomeBertConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config, backbone)
        self.num_labels = config.num_labels
        # Fixed with the weights, and looked up here: for a single text each read of a config shows on the
        # clock.
        self.exit_layers: list[int] = list(config.exit_layers)
        self.pools_mean = config.exit_pooling == "mean"
        self.mixes_layers: bool = config.exit_mix
        self.exits = nn.ModuleDict({str(layer): ExitHead(config, layer) for layer in self.exit_layers})
        self.exit_loss = ExitLoss.from_config(config)
        if config.exit_policy is not None:
            as_policy(config.exit_policy)  # settings that mean nothing fail here, not at the first text
        self.post_init()

    def encoder(self, pad_token_id: int | None = None, for_tokens: int = 0) -> TorchEncoder:
        """Layers and exits as bulk scoring runs them, for one pass: weights may be prepacked, and are not
        looked at again.

        Args:
            pad_token_id: of the tokenizer.
            for_tokens: tokens of the pass; prepacking has to pay for itself.
        """
        layers = prepacked(self.layers) if for_tokens >= PREPACKING_TOKENS and pays(self.backbone) else None
        return TorchEncoder(self, layers, pad_token_id=pad_token_id)

    def _start_from(self, pooler: nn.Linear | None) -> None:
        for head in self.exits.values():
            assert isinstance(head, ExitHead)
            if head.pooler is not None and pooler is not None:
                head.pooler.dense.load_state_dict(pooler.state_dict())

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
        if labels is not None:
            self._note_problem_type(labels)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        if exit_policy is not None:
            if output_hidden_states or output_attentions:
                raise ValueError(
                    "output_hidden_states and output_attentions need every layer; leave exit_policy out."
                )
            return self._exit_early(inputs, as_policy(exit_policy), labels)

        wants_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        wants_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        states: list[Tensor] | None = [] if wants_states else None
        attentions = None
        if wants_attentions:
            exit_logits, states, attentions = self._all_exits_of_stock_states(inputs)
        else:
            encoder = TorchEncoder(self, states=states)
            exit_logits = all_exits(encoder, encoder.embed(inputs))  # (B, E, C)
        if labels is None and self.watches_exits and self.training and exit_logits.requires_grad:
            self._watch_exits(exit_logits)
        loss = None
        if labels is not None:
            terms = self.exit_loss(
                exit_logits, labels, exit_layers=self.exit_layers, problem_type=self.problem_type
            )
            loss = terms.last + terms.exits
        return RomeBertClassifierOutput(
            loss=loss,
            logits=exit_logits[:, -1],
            exit_logits=exit_logits,
            exit_layer=torch.full((exit_logits.shape[0],), self.exit_layers[-1], device=exit_logits.device),
            hidden_states=_selected(tuple(states), wants_states)
            if states is not None and wants_states
            else None,
            attentions=attentions,
        )

    def _exit_early(
        self, inputs: dict[str, Tensor | None], policy: ExitPolicy, labels: Tensor | None
    ) -> RomeBertClassifierOutput:
        """A batch whose rows exit as the policy says."""
        policy = policy.start(len(self.exit_layers), self.problem_type, self.exit_layers)
        encoder = TorchEncoder(self)
        logits, exit_layer = classify(encoder, encoder.embed(inputs).measure(), policy)  # (B, C), (B,)
        loss = (
            None
            if labels is None
            else self.exit_loss.task_losses(logits.unsqueeze(1), labels, self.problem_type)[0]
        )
        return RomeBertClassifierOutput(loss=loss, logits=logits, exit_layer=exit_layer)

    def _watch_exits(self, exit_logits: Tensor) -> None:
        """Say it once when a loss that was made of the outputs reaches the last exit alone: the others are
        then not trained.

        A Trainer makes one of `logits` with `label_smoothing_factor`, or with a `compute_loss_func` that
        reads them.
        """
        early = [
            parameter for layer in self.exit_layers[:-1] for parameter in self.exits[str(layer)].parameters()
        ]
        if not any(parameter.requires_grad for parameter in early) or torch.compiler.is_compiling():
            return
        self.watches_exits = False  # one look is enough, and it waits for the device

        def look(gradient: Tensor) -> None:  # (B, E, C)
            if gradient[:, -1].any() and not gradient[:, :-1].any():
                logger.warning(
                    f"Only the last of {len(self.exit_layers)} exits is being trained: the loss was made of"
                    " `logits`, as by a Trainer with label_smoothing_factor or compute_loss_func, not by"
                    " the model from `labels`. RomeBertTrainer applies both to every exit. In a loop of"
                    " your own, make the loss of `exit_logits`, or pass `labels` to the model; it smooths"
                    " them after model.exit_loss = dataclasses.replace(model.exit_loss, label_smoothing=0.1)."
                )

        exit_logits.register_hook(look)

    @property
    def problem_type(self) -> str:
        """`config.problem_type`; while that is unset, what the number of labels suggests."""
        problem_type = self.config.problem_type
        if problem_type is not None:
            return problem_type
        return (ProblemType.REGRESSION if self.config.num_labels == 1 else ProblemType.SINGLE_LABEL).value

    def _note_problem_type(self, labels: Tensor) -> None:
        """As stock classifiers do: the first labels settle a problem type that the config leaves open."""
        if self.config.problem_type is None:
            self.config.problem_type = infer_problem_type(self.config.num_labels, labels)
        if labels.device.type == "cpu":  # elsewhere reading values would wait for the device
            check_labels(labels, self.config.problem_type, self.config.num_labels)

    def _all_exits_of_stock_states(
        self, inputs: dict[str, Tensor | None]
    ) -> tuple[Tensor, list[Tensor], tuple[Tensor, ...]]:
        """Exit logits (B, E, C), hidden states and attentions by the backbone's own forward: attentions are
        recorded there.
        """
        encoder, last = TorchEncoder(self), self.exit_layers[-1]
        recorded = {"output_hidden_states": True, "output_attentions": True, "return_dict": True}
        outputs = self.backbone(**encoder.with_positions(inputs), **recorded)
        states = list(self.adapter.states_by_layer(self.backbone.config, outputs.hidden_states))
        logits, pooled = [], None
        for layer in range(1, last + 1) if self.mixes_layers else self.exit_layers:
            batch = PaddedBatch(states[layer], inputs["attention_mask"])
            if self.mixes_layers:
                batch.pooled = pooled
                encoder.note_pooled(batch, is_finished=layer == last)
                pooled = batch.pooled
            if layer in self.exit_layers:
                logits.append(encoder.exit_logits(batch, layer, is_finished=layer == last))
        return torch.stack(logits, dim=1), states, outputs.attentions
