"""Exits on ONNX Runtime: a model exported as one graph per segment between exits, and the loop over them.

Running a bundle needs onnxruntime, numpy and tokenizers; exporting one needs torch, transformers and onnx.
"""

from typing import TYPE_CHECKING, Any

from .runtime import OnnxRomeBertForSequenceClassification

if TYPE_CHECKING:
    from .export import export_onnx

__all__ = ["OnnxRomeBertForSequenceClassification", "export_onnx"]


def __getattr__(name: str) -> Any:
    if name == "export_onnx":
        from .export import export_onnx

        return export_onnx
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
