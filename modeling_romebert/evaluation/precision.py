"""What half precision changes: the same texts scored in fp32 and in other dtypes, and compared."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..scoring import score


@dataclass
class PrecisionChange:
    """A dtype against fp32, on the same texts with the same policy."""

    dtype: str
    texts: int
    labels_changed: int  # texts with another label than in fp32
    exits_changed: int  # texts that left after another layer
    largest_score_change: float  # among texts with the same label
    cost: float  # layers run / layers
    seconds: float  # for all texts, once: for a rough idea, not for a table


def compare_precision(
    model: Any,
    tokenizer: Any,
    texts: Sequence[Any],
    dtypes: Sequence[str] = ("bfloat16", "float16"),
    **settings: Any,
) -> list[PrecisionChange]:
    """Count the predictions that change when a model runs in half precision, before choosing it.

    Policies read logits in fp32 whatever the dtype; what changes are the logits. bf16 keeps 8 bits of a
    number and the range of fp32, fp16 keeps 11 and overflows above 65,504.

    Args:
        model: a `RomeBertForSequenceClassification` in fp32; it stays as it is, copies are converted.
        tokenizer, texts: see `score`; a list.
        dtypes: names of floating-point types of torch.
        **settings: of `score`, but for `top_k` and `on_error`.

    Returns:
        One entry per dtype, fp32 first.

    Raises:
        ValueError: the model is not in fp32, there are no texts, or a dtype is none.

    Example:
        >>> for change in compare_precision(model, tokenizer, texts, dtypes=["bfloat16"]):  # doctest: +SKIP
        ...     print(f"{change.dtype}: {change.labels_changed} of {change.texts} labels change")
    """
    if model.dtype != torch.float32:
        raise ValueError(
            f"the model is in {model.dtype}: give it in torch.float32, which the others are compared with."
        )
    if not len(texts):
        raise ValueError("there are no texts, so there is nothing to compare.")
    for name in dtypes:
        if not (isinstance(dtype := getattr(torch, name, None), torch.dtype) and dtype.is_floating_point):
            raise ValueError(
                f"dtypes: {name!r} is no floating-point type of torch; bfloat16 and float16 are."
            )
    reference: list[dict[str, Any]] = []
    changes = []
    for name in ("float32", *dtypes):
        converted = copy.deepcopy(model).to(getattr(torch, name))
        start = time.perf_counter()
        results = list(score(converted, tokenizer, texts, **settings))
        seconds = time.perf_counter() - start
        reference = reference or results
        pairs = list(zip(results, reference, strict=True))
        same = [abs(one["score"] - other["score"]) for one, other in pairs if one["label"] == other["label"]]
        changes.append(
            PrecisionChange(
                dtype=name,
                texts=len(results),
                labels_changed=len(results) - len(same),
                exits_changed=sum(one["exit_layer"] != other["exit_layer"] for one, other in pairs),
                largest_score_change=max(same, default=0.0),
                cost=sum(one["exit_layer"] for one in results)
                / len(results)
                / model.config.num_hidden_layers,
                seconds=seconds,
            )
        )
    return changes
