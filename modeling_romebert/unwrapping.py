"""Our model inside whatever wraps it: what is written on a model has to land on the model, not on its wrapper."""

from typing import Any

from torch import nn


def inner_model(model: Any) -> Any:
    """The RomeBERT model in a `PeftModel`, `DistributedDataParallel`, `torch.compile`'s module, or any other module that holds one.

    A wrapper passes on what is read, but keeps what is written to itself: an evaluation noted on it is lost when the model is
    saved, merged or unwrapped.

    Args:
        model: the model, or a module around it.

    Raises:
        TypeError: there is no RomeBERT model in it.

    Example:
        >>> from modeling_romebert import RomeBertConfig, RomeBertForSequenceClassification
        >>> config = RomeBertConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=4, intermediate_size=64)
        >>> model = RomeBertForSequenceClassification(config)
        >>> inner_model(nn.DataParallel(model)) is model
        True
    """
    for module in model.modules() if isinstance(model, nn.Module) else ():
        # By name: a model that came with its own code is of another class of the same name.
        if getattr(getattr(type(module), "config_class", None), "model_type", None) == "romebert":
            return module
    raise TypeError(f"model is a {type(model).__name__}; it is no RomeBERT model, and holds none.")
