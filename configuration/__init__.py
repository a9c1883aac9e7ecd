"""The configuration class and the fine-tuning recipes; installed as `modeling_romebert.configuration`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_romebert import RomeBertConfig

__all__ = ["RomeBertConfig"]


def __getattr__(name: str) -> Any:
    """The class needs transformers, its settings do not: imported when it is used."""
    if name == "RomeBertConfig":
        from .configuration_romebert import RomeBertConfig

        return RomeBertConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
