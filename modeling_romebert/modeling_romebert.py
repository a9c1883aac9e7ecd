"""The models: a text encoder of the library with an exit after some of its layers.

A row is one text of a batch. Without an exit policy every row runs every layer and every exit is evaluated; with one, sure rows
exit, and deeper layers run on fewer rows and shorter padding. The loop over the layers is in early_exit.py, what it runs in
encoder.py, the exits in exits.py, the decision in policies.py.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging

from .backbones import Adapter, adapter_for, check_layout, check_token_ids
from .batch_layout import PaddedBatch
from .configuration_romebert import VERSION, RomeBertConfig
from .early_exit import all_exits, classify
from .encoder import TorchEncoder
from .exits import ExitHead
from .hub import check_code, copy_code, name_code, safetensors_only
from .loading import HUB_ARGUMENTS, MODEL_ARGUMENTS, check_exits, load_plain
from .losses import ExitLoss, check_labels, infer_problem_type
from .model_card import TEMPLATE
from .policies import ExitPolicy, as_policy
from .prepacked import PREPACKING_TOKENS, pays, prepacked
from .records import read_record, weights_digest, write_card_and_record

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
    """Hidden states by their indices, negative ones counted from the end; `True` is all of them. `None` for the others."""
    if which is True:
        return states
    count, indices = len(states), [which] if isinstance(which, int) else which
    return tuple(state if index in indices or index - count in indices else None for index, state in enumerate(states))


class RomeBertPreTrainedModel(PreTrainedModel):
    """A supported encoder as `backbone`, without its pooler, and how to load one from a plain checkpoint."""

    config_class = RomeBertConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    # For the model card: what a trainer was told, what `evaluate_exits` reported, and what came with the checkpoint (records.py).
    training_settings: dict[str, Any] | None = None
    _evaluation: dict[str, Any] | None = None
    _record: dict[str, Any] = {}

    def __init__(self, config: RomeBertConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        if backbone is None:
            dtype = config.dtype  # on which a stock model's constructor looks as little: encoder and exits are of the default type
            backbone = AutoModel.from_config(config.backbone_config, dtype=torch.get_default_dtype())
            config.dtype = dtype
        self.backbone = backbone
        self.adapter: Adapter = adapter_for(config.backbone_config)  # how its family is walked
        # Longest text that there are positions for, in tokens; `None` where any length runs.
        self.max_tokens: int | None = self.adapter.max_tokens(config.backbone_config)
        check_layout(self.backbone)
        if getattr(self.backbone, "pooler", None) is not None:
            self.backbone.pooler = None  # each exit has its own; an unused one would stall distributed training

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`; the folder also holds a card, and the code (hub.py): it loads without this package.

        The card tells figures that were measured with the very weights that are saved, in this process or before, and no others.
        """
        # Named here, the pipeline's file goes wherever this one goes.
        from .pipeline_romebert import EarlyExitPipeline  # noqa: F401

        name_code(self.config)
        self.config.romebert_version = VERSION
        folder = Path(save_directory)
        writes = kwargs.get("is_main_process", True) and not folder.is_file()
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            copy_code(self.config, folder)
            self.write_card(save_directory, kwargs.get("state_dict"))
        super().save_pretrained(save_directory, *args, **kwargs)
        if writes:
            check_code(self.config, folder)

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """What `evaluate_exits` last reported; the card tells it while the weights, and the exit policy, are those it is of."""
        return self._evaluation

    @evaluation.setter
    def evaluation(self, evaluation: dict[str, Any] | None) -> None:
        """What does not say of which weights and policy it is, is taken to be of the present ones."""
        if evaluation is not None:
            evaluation = {**evaluation, "weights": evaluation.get("weights") or weights_digest(self.state_dict())}
            if evaluation.get("calibrated"):
                evaluation["calibrated"] = {"policy": copy.deepcopy(self.config.exit_policy), **evaluation["calibrated"]}
        self._evaluation = evaluation

    def write_card(self, folder: Any, state_dict: dict[str, Any] | None = None, training: dict[str, Any] | None = None) -> None:
        """Write the card and the record of a model that is saved in a folder.

        Args:
            state_dict: the weights that are saved; the model's own when left out.
            training: what to tell of the training; `training_settings` when left out.
        """
        write_card_and_record(self, folder, self.state_dict() if state_dict is None else state_dict, training)

    def _upload_modified_files(self, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        """As the library's, which has just put the repository's card, or a template, in the place of the one of these weights."""
        readme = Path(working_dir, "README.md")
        if readme.exists() and TEMPLATE in readme.read_text(encoding="utf-8"):
            readme.unlink()
        self.write_card(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The backbone's layers in the order in which they are applied; one that is applied n times is there n times."""
        return self.adapter.layers(self.backbone)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, config: Any = None, **kwargs: Any) -> Any:
        """Load one of our checkpoints, or start from a plain encoder checkpoint (bert, roberta, ...).

        From a plain checkpoint the encoder is loaded by its own class, exactly; heads of other tasks are left behind; with
        `cls` pooling every exit's pooler starts as a copy of the pretrained one, where there is one. From one of ours,
        exits may be left out with `exit_layers`, but not added; a saved `RomeBertModel`, which has none, gets new ones.

        Args:
            pretrained_model_name_or_path, config, **kwargs: as in `PreTrainedModel.from_pretrained`; settings of the config
                (`exit_layers`, `exit_pooling`, `num_labels`, ...) may be given as keyword arguments.

        Raises:
            ValueError: the checkpoint's family is not supported, or its exits do not fit the config.
            OSError: there is no checkpoint, or none as safetensors: a pickle is refused.
        """
        at_hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        if pretrained_model_name_or_path is None or kwargs.get("state_dict") is not None:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        if not isinstance(config, PreTrainedConfig):
            of_model = {name: kwargs.pop(name) for name in MODEL_ARGUMENTS if name in kwargs}
            source = pretrained_model_name_or_path if config is None else config
            config, kwargs = cls.config_class.from_pretrained(source, return_unused_kwargs=True, **kwargs)
            kwargs.update(of_model, **at_hub)
        stored, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **at_hub)
        kwargs["use_safetensors"] = True  # whatever is asked: never a pickle
        with safetensors_only(pretrained_model_name_or_path):
            if stored.get("model_type") in (cls.config_class.model_type, RomeBertConfig.model_type):
                return cls._from_own_checkpoint(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
            return cls._from_plain_checkpoint(pretrained_model_name_or_path, config, **kwargs)

    @classmethod
    def _from_own_checkpoint(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        check_exits(model, info, args[0])
        model._record = read_record(args[0], **{name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs})
        return (model, info) if output_loading_info else model

    @classmethod
    def _from_plain_checkpoint(cls, name: Any, config: RomeBertConfig, output_loading_info: bool = False, **kwargs: Any) -> Any:
        backbone, pooler, info = load_plain(name, config.backbone_config, **kwargs)
        config = copy.deepcopy(config)  # the caller's stays as it is; ours holds what was loaded, with its dtype and attention
        backbone.config._name_or_path = config.backbone_config._name_or_path
        config.backbone_config = backbone.config
        config._name_or_path = str(name)  # as the library has it; adapters name their base by it
        model = cls(config, backbone=backbone)
        model.to(device=backbone.device, dtype=backbone.dtype)
        model._start_from(pooler)
        model.eval()
        return (model, info) if output_loading_info else model

    def _start_from(self, pooler: nn.Linear | None) -> None:
        """Use the pretrained pooler (`None` where the checkpoint has none) in a model that has just been built."""


class RomeBertModel(RomeBertPreTrainedModel):
    """The encoder alone, at full depth: what `AutoModel` gives for a RomeBERT checkpoint. Call arguments are the backbone's."""

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
        >>> config = RomeBertConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=4, intermediate_size=64)
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
    # Whether to look for a training that reaches the last exit alone, and say so; what means to do that turns it off.
    watches_exits = True
    gradient_checkpointing = False  # set by the library, with the function that does it
    _gradient_checkpointing_func: Any

    def __init__(self, config: RomeBertConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config, backbone)
        self.num_labels = config.num_labels
        # Fixed with the weights, and looked up here: for a single text each read of a config shows on the clock.
        self.exit_layers: list[int] = list(config.exit_layers)
        self.pools_mean = config.exit_pooling == "mean"
        self.exits = nn.ModuleDict({str(layer): ExitHead(config) for layer in self.exit_layers})
        self.exit_loss = ExitLoss.from_config(config)
        if config.exit_policy is not None:
            as_policy(config.exit_policy)  # settings that mean nothing fail here, not at the first text
        self.post_init()

    def encoder(self, pad_token_id: int | None = None, for_tokens: int = 0) -> TorchEncoder:
        """Layers and exits as bulk scoring runs them, for one pass: weights may be prepacked, and are not looked at again.

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
            input_ids, attention_mask, token_type_ids, position_ids: each (B, T); inputs_embeds: (B, T, H); as in BERT.
            labels: (B,) class ids, (B, C) multi-label targets, or (B,) numbers for regression.
            exit_policy: a policy from `make_policy` or its settings; rows then leave when it says so. `None` runs every layer,
                whatever `config.exit_policy` says: that one is for the pipeline.
            output_hidden_states, output_attentions: return them too; only without a policy. Left out, the config says. Indices
                of hidden states, as stock models take them, leave `None` in the place of the others.

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
                raise ValueError("output_hidden_states and output_attentions need every layer; leave exit_policy out.")
            return self._exit_early(inputs, as_policy(exit_policy), labels)

        wants_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
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
            terms = self.exit_loss(exit_logits, labels, exit_layers=self.exit_layers, problem_type=self.problem_type)
            loss = terms.last + terms.exits
        return RomeBertClassifierOutput(
            loss=loss,
            logits=exit_logits[:, -1],
            exit_logits=exit_logits,
            exit_layer=torch.full((exit_logits.shape[0],), self.exit_layers[-1], device=exit_logits.device),
            hidden_states=_selected(tuple(states), wants_states) if states is not None and wants_states else None,
            attentions=attentions,
        )

    def _exit_early(self, inputs: dict[str, Tensor | None], policy: ExitPolicy, labels: Tensor | None) -> RomeBertClassifierOutput:
        """A batch whose rows exit as the policy says."""
        policy = policy.start(len(self.exit_layers), self.problem_type, self.exit_layers)
        encoder = TorchEncoder(self)
        logits, exit_layer = classify(encoder, encoder.embed(inputs).measure(), policy)  # (B, C), (B,)
        loss = None if labels is None else self.exit_loss.task_losses(logits.unsqueeze(1), labels, self.problem_type)[0]
        return RomeBertClassifierOutput(loss=loss, logits=logits, exit_layer=exit_layer)

    def _watch_exits(self, exit_logits: Tensor) -> None:
        """Say it once when a loss that was made of the outputs reaches the last exit alone: the others are then not trained.

        A Trainer makes one of `logits` with `label_smoothing_factor`, or with a `compute_loss_func` that reads them.
        """
        early = [parameter for layer in self.exit_layers[:-1] for parameter in self.exits[str(layer)].parameters()]
        if not any(parameter.requires_grad for parameter in early) or torch.compiler.is_compiling():
            return
        self.watches_exits = False  # one look is enough, and it waits for the device

        def look(gradient: Tensor) -> None:  # (B, E, C)
            if gradient[:, -1].any() and not gradient[:, :-1].any():
                logger.warning(
                    f"Only the last of {len(self.exit_layers)} exits is being trained: the loss was made of `logits`, as by a"
                    " Trainer with label_smoothing_factor or compute_loss_func, not by the model from `labels`. RomeBertTrainer"
                    " applies both to every exit. In a loop of your own, make the loss of `exit_logits`, or pass `labels` to the"
                    " model; it smooths them after model.exit_loss = dataclasses.replace(model.exit_loss, label_smoothing=0.1)."
                )

        exit_logits.register_hook(look)

    @property
    def problem_type(self) -> str:
        """`config.problem_type`; while that is unset, what the number of labels suggests."""
        problem_type = self.config.problem_type
        if problem_type is not None:
            return problem_type
        return "regression" if self.config.num_labels == 1 else "single_label_classification"

    def _note_problem_type(self, labels: Tensor) -> None:
        """As stock classifiers do: the first labels settle a problem type that the config leaves open."""
        if self.config.problem_type is None:
            self.config.problem_type = infer_problem_type(self.config.num_labels, labels)
        if labels.device.type == "cpu":  # elsewhere reading values would wait for the device
            check_labels(labels, self.config.problem_type, self.config.num_labels)

    def _all_exits_of_stock_states(self, inputs: dict[str, Tensor | None]) -> tuple[Tensor, list[Tensor], tuple[Tensor, ...]]:
        """Exit logits (B, E, C), hidden states and attentions by the backbone's own forward: attentions are recorded there."""
        encoder, last = TorchEncoder(self), self.exit_layers[-1]
        recorded = {"output_hidden_states": True, "output_attentions": True, "return_dict": True}
        outputs = self.backbone(**encoder.with_positions(inputs), **recorded)
        states = list(self.adapter.states_by_layer(self.backbone.config, outputs.hidden_states))
        logits = []
        for layer in self.exit_layers:
            batch = PaddedBatch(states[layer], inputs["attention_mask"])
            logits.append(encoder.exit_logits(batch, layer, is_finished=layer == last))
        return torch.stack(logits, dim=1), states, outputs.attentions
