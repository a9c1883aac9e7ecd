"""What torch and numpy spell differently: one loop and one rule serve a torch model and an ONNX bundle.

An `Array` is a tensor, or an array of numpy where torch is not installed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

try:
    import torch
    import torch.nn.functional as F
except ModuleNotFoundError as error:  # a bundle of the ONNX runtime does without
    if error.name != "torch":
        raise
    torch = None  # type: ignore[assignment]

Array = Any


def is_tensor(values: Array) -> bool:
    return torch is not None and isinstance(values, torch.Tensor)


def to_fp32(values: Array) -> Array:
    return values.float() if is_tensor(values) else values.astype(np.float32)


def exp(values: Array) -> Array:
    return values.exp() if is_tensor(values) else np.exp(values)


def largest(values: Array) -> Array:
    """(..., K) -> (...)"""
    return values.amax(dim=-1) if is_tensor(values) else values.max(axis=-1)


def smallest(values: Array) -> Array:
    """(..., K) -> (...)"""
    return values.amin(dim=-1) if is_tensor(values) else values.min(axis=-1)


def two_largest(values: Array) -> tuple[Array, Array]:
    """(..., K) -> the largest and the second largest, (...) each"""
    if is_tensor(values):
        best, second = values.topk(2, dim=-1).values.unbind(dim=-1)
        return best, second
    ordered = np.sort(values, axis=-1)
    return ordered[..., -1], ordered[..., -2]


def log_softmax(values: Array) -> Array:
    """(..., K) -> (..., K): logarithms of shares that add up to 1."""
    if is_tensor(values):
        return values.log_softmax(dim=-1)
    shifted = values - values.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_sigmoid(values: Array) -> Array:
    return F.logsigmoid(values) if is_tensor(values) else -np.logaddexp(0, -values)


def where(condition: Array, values: Array, otherwise: Any) -> Array:
    return (torch if is_tensor(values) else np).where(condition, values, otherwise)


def stack(parts: Sequence[Array], axis: int) -> Array:
    return torch.stack(tuple(parts), dim=axis) if is_tensor(parts[0]) else np.stack(parts, axis=axis)


def concat(parts: Sequence[Array]) -> Array:
    """Arrays with equal shapes but for the first dimension -> one."""
    return torch.cat(tuple(parts)) if is_tensor(parts[0]) else np.concatenate(parts)


def whole_numbers(numbers: Sequence[int], like: Array) -> Array:
    """Numbers -> (n,), where an array is: on its device, without waiting for it."""
    if not is_tensor(like):
        return np.array(numbers, dtype=np.int64)
    return torch.tensor(numbers, dtype=torch.long).to(like.device, non_blocking=True)


def no_rows(columns: int, like: Array) -> Array:
    """-> (0, columns), where and of the type that an array is."""
    return like.new_empty(0, columns) if is_tensor(like) else np.empty((0, columns), like.dtype)
