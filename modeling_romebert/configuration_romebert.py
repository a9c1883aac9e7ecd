"""Alias of `configuration/configuration_romebert.py`, so that the model file has its config as a sibling on the Hub.

`save_pretrained` of a model copies this file first and then the config's own file over it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from configuration.configuration_romebert import VERSION, RomeBertConfig
else:
    _real = import_module("modeling_romebert.configuration.configuration_romebert")
    VERSION, RomeBertConfig = _real.VERSION, _real.RomeBertConfig

__all__ = ["VERSION", "RomeBertConfig"]
