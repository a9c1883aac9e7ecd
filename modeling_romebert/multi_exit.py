"""What the classifiers with exits share: an exit after some layers, the joint loss, and the forward pass.

Without an exit policy every layer runs and every exit is evaluated; with one, each class says how its rows or
tokens leave (`_exit_early`). The loop over the layers is in early_exit.py, what it runs in encoder.py, the
exits in exit_heads.py, the decision in exit_policies.py. The classes that users load are in
modeling_romebert.py.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, logging

from .batch_layout import PaddedBatch
from .configuration_romebert import ProblemType, RomeBertConfig
from .cpu import PREPACKING_TOKENS, pays, prepacked
from .early_exit import ActiveBatch, all_exits
from .encoder import TorchEncoder
from .exit_heads import ExitHead
from .exit_policies import ExitPolicy, as_policy
from .losses import ExitLoss, check_labels, infer_problem_type
from .pretrained import RomeBertPreTrainedModel

logger = logging.get_logger(__name__)


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


class MultiExitModel(RomeBertPreTrainedModel):
    """A text encoder with a classifier after each of `config.exit_layers`: the part that does not depend on
    what a classifier reads.
    """

    output_class: type[ModelOutput]
    encoder_class: type[TorchEncoder] = TorchEncoder
    # What the early-exit loop steps through.
    active_batch: Callable[..., ActiveBatch] = ActiveBatch
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
        return self.encoder_class(self, layers, pad_token_id=pad_token_id)

    def _start_from(self, pooler: nn.Linear | None) -> None:
        for head in self.exits.values():
            assert isinstance(head, ExitHead)
            if head.pooler is not None and pooler is not None:
                head.pooler.dense.load_state_dict(pooler.state_dict())

    def _classify(
        self,
        inputs: Mapping[str, Tensor | None],
        labels: Tensor | None,
        exit_policy: ExitPolicy | dict[str, Any] | None,
        output_hidden_states: bool | int | Sequence[int] | None,
        output_attentions: bool | None,
        **of_exits: Any,
    ) -> Any:
        """A forward pass, see the classes that users load.

        Args:
            inputs: of the backbone, by name.
            of_exits: what `_exit_early` and `_encoder_of_all_layers` take besides.
        """
        if labels is not None:
            self.note_labels(labels)
        if exit_policy is not None:
            if output_hidden_states or output_attentions:
                raise ValueError(
                    "output_hidden_states and output_attentions need every layer; leave exit_policy out."
                )
            return self._exit_early(inputs, as_policy(exit_policy), labels, **of_exits)

        wants_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        wants_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        states: list[Tensor] | None = [] if wants_states else None
        attentions = None
        if wants_attentions:
            exit_logits, states, attentions = self._all_exits_of_stock_states(inputs)
        else:
            encoder = self._encoder_of_all_layers(states, **of_exits)
            exit_logits = all_exits(encoder, encoder.embed(inputs))  # (B, E, C) or (B, E, T, C)
        if labels is None and self.watches_exits and self.training and exit_logits.requires_grad:
            self._watch_exits(exit_logits)
        loss = None
        if labels is not None:
            terms = self.exit_loss(
                exit_logits, labels, exit_layers=self.exit_layers, problem_type=self.problem_type
            )
            loss = terms.last + terms.exits
        logits = exit_logits[:, -1]  # (B, C) or (B, T, C)
        return self.output_class(
            loss=loss,
            logits=logits,
            exit_logits=exit_logits,
            exit_layer=torch.full(logits.shape[:-1], self.exit_layers[-1], device=logits.device),
            hidden_states=_selected(tuple(states), wants_states)
            if states is not None and wants_states
            else None,
            attentions=attentions,
        )

    def _encoder_of_all_layers(self, states: list[Tensor] | None, **of_exits: Any) -> TorchEncoder:
        """What runs every layer and every exit, and records states where there is a list for them."""
        return self.encoder_class(self, states=states)

    def _exit_early(
        self, inputs: Mapping[str, Tensor | None], policy: ExitPolicy, labels: Tensor | None, **of_exits: Any
    ) -> Any:
        """A batch whose rows, or tokens, exit as the policy says."""
        raise NotImplementedError

    def _loss_of(self, logits: Tensor, labels: Tensor | None) -> Tensor | None:
        """The loss of the answers of an early exit, (B, C) or (B, T, C), against labels."""
        if labels is None:
            return None
        return self.exit_loss.task_losses(logits.unsqueeze(1), labels, self.problem_type)[0]

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

        def look(gradient: Tensor) -> None:  # (B, E, C) or (B, E, T, C)
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

    def note_labels(self, labels: Tensor) -> None:
        """Refuse labels that do not fit. As in stock classifiers, the first settle a problem type that the
        config leaves open.

        Raises:
            ValueError: see `check_labels`.
        """
        if self.config.problem_type is None:
            self.config.problem_type = infer_problem_type(self.config.num_labels, labels)
        if labels.device.type == "cpu":  # elsewhere reading values would wait for the device
            check_labels(labels, self.config.problem_type, self.config.num_labels)

    def _all_exits_of_stock_states(
        self, inputs: Mapping[str, Tensor | None]
    ) -> tuple[Tensor, list[Tensor], tuple[Tensor, ...]]:
        """Exit logits (B, E, C) or (B, E, T, C), hidden states and attentions by the backbone's own forward:
        attentions are recorded there.
        """
        encoder, last = self.encoder_class(self), self.exit_layers[-1]
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
