"""The configuration class and the fine-tuning recipes; installed as `modeling_romebert.configuration`."""

from .configuration_romebert import RomeBertConfig

__all__ = ["RomeBertConfig"]
