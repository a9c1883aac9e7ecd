"""Alias of `configuration/configuration_romebert.py`, so that the model file has its config as a sibling on
the Hub.

`save_pretrained` of a model copies this file first and then the config's own file over it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from configuration.configuration_romebert import VERSION, CustomPipelines, RomeBertConfig, is_own, plain
else:
    try:
        _real = import_module("modeling_romebert.configuration.configuration_romebert")
    except ModuleNotFoundError as error:
        if error.name != "modeling_romebert.configuration":
            raise
        raise ImportError(
            "modeling_romebert was found in a checkout that is not installed, without its configuration."
            " Run `pip install -e .` in the folder of the checkout."
        ) from None
    VERSION, CustomPipelines, RomeBertConfig = _real.VERSION, _real.CustomPipelines, _real.RomeBertConfig
    is_own, plain = _real.is_own, _real.plain

__all__ = ["VERSION", "CustomPipelines", "RomeBertConfig", "is_own", "plain"]
