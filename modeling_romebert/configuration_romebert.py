"""Alias of `configuration/configuration_romebert.py`: the model's files have their config as a sibling.

`save_pretrained` of a model copies this file first and then the config's own file over it.
"""

from importlib import import_module
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
    )
else:
    _config = import_module("modeling_romebert.configuration.configuration_romebert")
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
]
