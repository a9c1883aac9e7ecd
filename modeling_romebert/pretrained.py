"""Loading and saving: from a plain encoder's checkpoint or one of ours; with the card and the code that
travel (hub.py).

Weights are read from safetensors alone.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from .backbones import Adapter, adapter_for, check_layout
from .certificate import forget_certificate
from .configuration_romebert import VERSION, RomeBertConfig, plain
from .exit_heads import LayerMix
from .first_token import warn_of_first_token
from .hub import check_code, copy_code, name_code, read_record, weights_digest, write_card_and_record
from .model_card import TEMPLATE
from .stored_exits import check_exits, with_policy_of_exits

logger = logging.get_logger(__name__)

# Where a checkpoint lies: config and weights are both looked up there.
HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "token",
    "revision",
    "subfolder",
    "proxies",
)
# Arguments of PreTrainedModel.from_pretrained that a config would take for settings of its own.
MODEL_ARGUMENTS = ("dtype", "torch_dtype", "attn_implementation", "output_loading_info")


class RomeBertPreTrainedModel(PreTrainedModel):
    """A supported encoder as `backbone`, without its pooler, and how to load one from a plain checkpoint."""

    config_class = RomeBertConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    # For the model card: what a trainer was told, what `evaluate_exits` reported, and what came with the
    # checkpoint (hub.py).
    training_settings: dict[str, Any] | None = None
    _evaluation: dict[str, Any] | None = None
    _record: dict[str, Any] = {}

    def __init__(self, config: RomeBertConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        if backbone is None:
            # On which a stock model's constructor looks as little: encoder and exits are of the default type
            dtype = config.dtype
            backbone = AutoModel.from_config(config.backbone_config, dtype=torch.get_default_dtype())
            config.dtype = dtype
        self.backbone = backbone
        self.adapter: Adapter = adapter_for(config.backbone_config)  # how its family is walked
        # Longest text that there are positions for, in tokens; `None` where any length runs.
        self.max_tokens: int | None = self.adapter.max_tokens(config.backbone_config)
        check_layout(self.backbone)
        if getattr(self.backbone, "pooler", None) is not None:
            # Each exit has its own; an unused one would stall distributed training.
            self.backbone.pooler = None

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`; the folder also holds a card, and the code (hub.py): it loads
        without this package.

        The card tells figures that were measured with the very weights that are saved, in this process or
        before, and no others.
        """
        # Named here, the pipelines' files go wherever this one goes.
        from .pipeline_romebert import EarlyExitPipeline  # noqa: F401
        from .token_pipeline import EarlyExitTokenPipeline  # noqa: F401

        name_code(self.config)
        self.config.romebert_version = VERSION
        folder = Path(save_directory)
        writes = kwargs.get("is_main_process", True) and not folder.is_file()
        certificate = self.config.calibration
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            copy_code(self.config, folder)
            self.write_card(save_directory, kwargs.get("state_dict"))
        super().save_pretrained(save_directory, *args, **kwargs)
        if writes:
            forget_other_weights(folder, kwargs.get("variant"))
            check_code(self.config, folder)
        if kwargs.get("state_dict") is not None:  # others than the model's own, perhaps
            self.config.calibration = certificate

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """What `evaluate_exits` last reported; the card tells it while the weights, and the exit policy, are
        those it is of.
        """
        return self._evaluation

    @evaluation.setter
    def evaluation(self, evaluation: dict[str, Any] | None) -> None:
        """What does not say of which weights and policy it is, is taken to be of the present ones."""
        if evaluation is not None:
            evaluation = {
                **evaluation,
                "weights": evaluation.get("weights") or weights_digest(self.state_dict()),
            }
            if evaluation.get("calibrated"):
                evaluation["calibrated"] = {
                    "policy": plain(copy.deepcopy(self.config.exit_policy)),
                    **evaluation["calibrated"],
                }
        self._evaluation = evaluation

    def write_card(
        self, folder: Any, state_dict: dict[str, Any] | None = None, training: dict[str, Any] | None = None
    ) -> None:
        """Write the card and the record of a model that is saved in a folder.

        Args:
            state_dict: the weights that are saved; the model's own when left out.
            training: what to tell of the training; `training_settings` when left out.
        """
        write_card_and_record(self, folder, self.state_dict() if state_dict is None else state_dict, training)

    def _upload_modified_files(self, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        """As the library's, which has just put the repository's card, or a template, in the place of the one
        of these weights.
        """
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
        """The backbone's layers in the order in which they are applied; one that is applied n times is there
        n times.
        """
        return self.adapter.layers(self.backbone)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, config: Any = None, **kwargs: Any
    ) -> Any:
        """Load one of our checkpoints, or start from a plain encoder checkpoint (bert, roberta, ...).

        From a plain checkpoint the encoder is loaded by its own class, exactly; heads of other tasks are left
        behind; with `cls` pooling every exit's pooler starts as a copy of the pretrained one, where there is
        one. From one of ours, exits may be left out with `exit_layers`, but not added; a saved
        `RomeBertModel`, which has none, gets new ones.

        Args:
            pretrained_model_name_or_path, config, **kwargs: as in `PreTrainedModel.from_pretrained`; settings
                of the config (`exit_layers`, `exit_pooling`, `num_labels`, ...) may be given as keyword
                arguments.

        Raises:
            ValueError: the checkpoint's family is not supported, or its exits do not fit the config.
            OSError: there is no checkpoint, or none as safetensors: a pickle is refused.
        """
        at_hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        if pretrained_model_name_or_path is None or kwargs.get("state_dict") is not None:
            return super().from_pretrained(
                pretrained_model_name_or_path, *model_args, config=config, **kwargs
            )
        if not isinstance(config, PreTrainedConfig):
            of_model = {name: kwargs.pop(name) for name in MODEL_ARGUMENTS if name in kwargs}
            source = pretrained_model_name_or_path if config is None else config
            config, kwargs = cls.config_class.from_pretrained(source, return_unused_kwargs=True, **kwargs)
            kwargs.update(of_model, **at_hub)
        stored, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **at_hub)
        if isinstance(config, RomeBertConfig):
            encoder = config.backbone_config
            adapter_for(encoder).check_first_layers(encoder, stored.get("backbone_config") or stored)
        kwargs["use_safetensors"] = True  # whatever is asked: never a pickle
        with safetensors_only(pretrained_model_name_or_path):
            if stored.get("model_type") in (cls.config_class.model_type, RomeBertConfig.model_type):
                return cls._from_own_checkpoint(
                    pretrained_model_name_or_path,
                    *model_args,
                    config=with_policy_of_exits(config, stored),
                    stored=stored,
                    **kwargs,
                )
            warn_of_first_token(pretrained_model_name_or_path, config.exit_pooling, **at_hub)
            return cls._from_plain_checkpoint(pretrained_model_name_or_path, config, **kwargs)

    @classmethod
    def _from_own_checkpoint(
        cls, *args: Any, stored: dict[str, Any], output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        check_exits(model, info, args[0], stored)
        if info["missing_keys"] or info["mismatched_keys"]:
            forget_certificate(model.config, f"some of the weights are new, and none of {args[0]}")
        model._record = read_record(
            args[0], **{name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        )
        return (model, info) if output_loading_info else model

    @classmethod
    def _from_plain_checkpoint(
        cls, name: Any, config: RomeBertConfig, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        backbone, pooler, info = load_plain(name, config.backbone_config, **kwargs)
        # The caller's stays as it is; ours holds what was loaded, with its dtype and attention.
        config = copy.deepcopy(config)
        backbone.config._name_or_path = config.backbone_config._name_or_path
        config.backbone_config = backbone.config
        config._name_or_path = str(name)  # as the library has it; adapters name their base by it
        model = cls(config, backbone=backbone)
        model.to(device=backbone.device, dtype=backbone.dtype)
        model._start_from(pooler)
        model.eval()
        return (model, info) if output_loading_info else model

    def _init_weights(self, module: nn.Module) -> None:
        """As `PreTrainedModel._init_weights`: also of what a checkpoint has no weights for."""
        super()._init_weights(module)
        if isinstance(module, LayerMix):
            module.reset_parameters()

    def _start_from(self, pooler: nn.Linear | None) -> None:
        """Use the pretrained pooler (`None` where the checkpoint has none) in a model that has just been
        built.
        """


def forget_other_weights(folder: Path, variant: str | None) -> None:
    """After a save: delete the one file of weights where there are shards now, which would be loaded in their
    place, or the index of shards that are gone. The library deletes shards alone.
    """
    named = f".{variant}" if variant else ""
    index = folder / f"{SAFE_WEIGHTS_INDEX_NAME.removesuffix('.json')}{named}.json"
    whole = folder / f"{SAFE_WEIGHTS_NAME.removesuffix('.safetensors')}{named}.safetensors"
    stem = whole.name.removesuffix(".safetensors")
    shard = re.compile(re.escape(stem) + r"-\d{5}-of-\d{5}\.safetensors")
    sharded = any(shard.fullmatch(path.name) for path in folder.iterdir())
    (whole if sharded else index).unlink(missing_ok=True)


def load_plain(
    name: Any, config: PreTrainedConfig, **kwargs: Any
) -> tuple[PreTrainedModel, nn.Linear | None, dict[str, Any]]:
    """The encoder of a plain checkpoint by its own class, its pretrained pooler if it has one, and the
    loading info.
    """
    # Heads left behind and a pooler that is not there are in order; see below for what is not.
    with _quiet_loading():
        backbone, info = AutoModel.from_pretrained(name, config=config, output_loading_info=True, **kwargs)
    has_pooler = not any(key.startswith("pooler.") for key in info["missing_keys"])
    if absent := sorted(key for key in info["missing_keys"] if not key.startswith("pooler.")):
        logger.warning(f"{name} has no weights for {', '.join(absent)}; they are newly initialized.")
    return backbone, adapter_for(config).pooler(backbone) if has_pooler else None, info


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Errors only from the library while a backbone is loaded inside our own load."""
    level = logging.get_verbosity()
    logging.set_verbosity(max(level, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def safetensors_only(name: Any) -> Iterator[None]:
    """Around a load with `use_safetensors=True`: when there are none, say so, and how to get them from a
    pickle.
    """
    try:
        yield
    except OSError as error:
        if "safetensors" not in str(error):
            raise
        raise OSError(
            f"{name} holds no weights as safetensors, and pickled ones (pytorch_model.bin) are not loaded:"
            " a pickle can run code. Convert them once, in their folder: weights ="
            " torch.load('pytorch_model.bin', weights_only=True); safetensors.torch.save_file({key:"
            " weight.contiguous().clone() for key, weight in weights.items()}, 'model.safetensors',"
            " {'format': 'pt'})"
        ) from error


def inner_model(model: Any) -> Any:
    """The RomeBERT model in a `PeftModel`, `DistributedDataParallel`, `torch.compile`'s module, or any other
    module that holds one.

    A wrapper passes on what is read, but keeps what is written to itself: an evaluation noted on it is lost
    when the model is saved, merged or unwrapped.

    Args:
        model: the model, or a module around it.

    Raises:
        TypeError: there is no RomeBERT model in it.

    Example:
        >>> from modeling_romebert import RomeBertConfig, RomeBertForSequenceClassification
        >>> config = RomeBertConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=4)
        >>> model = RomeBertForSequenceClassification(config)
        >>> inner_model(nn.DataParallel(model)) is model
        True
    """
    for module in model.modules() if isinstance(model, nn.Module) else (model,):
        # By name: a model that came with its own code is of another class of the same name.
        if getattr(getattr(type(module), "config_class", None), "model_type", None) == "romebert":
            return module
    raise TypeError(f"model is a {type(model).__name__}; it is no RomeBERT model, and holds none.")


def forward_of(model: Any) -> Any:
    """A model's forward pass in the precision of its weights, as they are saved and loaded.

    A training in half precision leaves its autocast in the model (accelerate's `prepare`), where it would go
    on after the training.

    Args:
        model: the model, or a module around it.
    """
    inner = inner_model(model)
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if (own := vars(module).get("_original_forward")) is not None:
            return own
        if module is inner:
            break
    return model
