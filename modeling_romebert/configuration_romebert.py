"""Alias of `configuration/configuration_romebert.py`, so that the model file has its config as a sibling on
the Hub.

`save_pretrained` of a model copies this file first and then the config's own file over it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from configuration.configuration_romebert import VERSION, CustomPipelines, RomeBertConfig, is_own, plain
else:
    _real = import_module("modeling_romebert.configuration.configuration_romebert")
    VERSION, CustomPipelines, RomeBertConfig = _real.VERSION, _real.CustomPipelines, _real.RomeBertConfig
    is_own, plain = _real.is_own, _real.plain

__all__ = ["VERSION", "CustomPipelines", "RomeBertConfig", "is_own", "plain"]
