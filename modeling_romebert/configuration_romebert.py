"""Alias of `configuration/configuration_romebert.py`: the model's files have their config as a sibling.

`save_pretrained` of a model copies this file first and then the config's own file over it.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from configuration.configuration_romebert import (
        LOSS_SETTINGS,
        VERSION,
        CustomPipelines,
        LossSettings,
        ProblemType,
        RomeBertConfig,
        is_own,
        loss_settings,
        plain,
        scale_of_reduction,
    )
else:
    # Without transformers, where a bundle of ONNX runs, there are the settings alone.
    _file = "configuration_romebert" if find_spec("transformers") else "settings"
    try:
        _config = import_module(f"modeling_romebert.configuration.{_file}")
    except ModuleNotFoundError as error:
        if error.name != "modeling_romebert.configuration":
            raise
        raise ImportError(
            "modeling_romebert was found in a checkout that is not installed, without its configuration."
            " Run `pip install -e .` in the folder of the checkout."
        ) from None
    globals().update({name: getattr(_config, name) for name in _config.__all__})

__all__ = [
    "LOSS_SETTINGS",
    "VERSION",
    "CustomPipelines",
    "LossSettings",
    "ProblemType",
    "RomeBertConfig",
    "is_own",
    "loss_settings",
    "plain",
    "scale_of_reduction",
]
