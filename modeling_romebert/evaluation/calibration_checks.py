"""What a calibration refuses or warns of, each with the way out."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from ..configuration_romebert import ProblemType
from ..data.fingerprint import TOO_MUCH, overlap, rows_seen
from ..losses import IGNORED_LABEL
from .risks import RISKS

logger = logging.get_logger(__name__)


def checked_arguments(
    max_drop: Any, confidence: Any, risk: Any, policy: Any, cost: Any, speedup: Any
) -> float | None:
    """-> the budget as a cost, or `None` where a promise is asked for.

    Raises:
        ValueError: a value out of range, or two that exclude each other.
    """
    _check_share("max_drop", max_drop, "what may be lost, as a share: 0.01 is one point")
    _check_share("confidence", confidence, "the chance that the promise is kept: 0.95")
    if risk not in RISKS:
        raise ValueError(f"risk={risk!r} is unknown; choose from {', '.join(RISKS)}.")
    if not isinstance(policy, (str, dict)):
        raise ValueError(
            f"policy={policy!r}: give a policy's name or its settings without the threshold, such as"
            ' "entropy"; the threshold is what is chosen.'
        )
    if cost is not None and speedup is not None:
        raise ValueError(f"cost={cost} and speedup={speedup}: give one of them; cost is 1 / speedup.")
    if speedup is not None:
        if not _is_number(speedup) or not speedup >= 1:
            raise ValueError(f"speedup={speedup!r}: give a number from 1, as in layers / layers run.")
        return 1 / speedup
    if cost is not None and (not _is_number(cost) or not 0 < cost <= 1):
        raise ValueError(f"cost={cost!r} is not in (0, 1]: give the fraction of the layers that may run.")
    return None if cost is None else float(cost)


def _check_share(name: str, value: Any, meaning: str) -> None:
    if not _is_number(value) or not 0 < value < 1:
        raise ValueError(f"{name}={value!r} is not between 0 and 1: it is {meaning}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def refuse_training_data(model: Any, hashes: Sequence[str]) -> None:
    """Refuse rows that the model was trained on, where its record tells: its exits look too good there.

    Raises:
        ValueError: more than a tenth of the rows, as far as a sample of the training data tells.
    """
    share = overlap(rows_seen(model), hashes)
    if share > TOO_MUCH:
        raise ValueError(
            f"the model was trained on about {share:.0%} of these {len(hashes):,} rows, on which its exits"
            " look better than they are. Calibrate on rows that training did not see;"
            ' risk="disagreement" takes unlabelled ones.'
        )


def warn_of_adapters(model: Any) -> None:
    """Say that a calibration of a model with adapters does not travel: they are saved without the config."""
    if hasattr(model, "peft_config"):
        logger.warning(
            "The model has adapters (peft), which are saved without its config: exit policy and certificate"
            " would stay behind. Merge them first, model = model.merge_and_unload(), and calibrate that."
        )


def checked_rows(
    exit_logits: Tensor | np.ndarray, labels: Any, exit_layers: Sequence[int], problem_type: str
) -> tuple[Tensor, np.ndarray | None]:
    """-> exit_logits (N, E, C) in fp32 on the CPU and labels, without the rows labelled -100.

    Raises:
        ValueError: shapes that do not fit, no rows, an unknown problem type, or rows whose logits at full
            depth are not finite. At other exits such rows never leave, which is no error.
    """
    kinds = (ProblemType.SINGLE_LABEL, ProblemType.MULTI_LABEL, ProblemType.REGRESSION)
    if problem_type not in kinds:
        raise ValueError(f"problem_type={problem_type!r} is unknown; choose from {', '.join(kinds)}.")
    logits = torch.as_tensor(exit_logits).detach().float().cpu()
    if logits.ndim != 3 or logits.shape[1] != len(exit_layers):
        raise ValueError(
            f"exit_logits has shape {tuple(logits.shape)}: give (N, E, C), with E = {len(exit_layers)} for"
            f" exit_layers={list(exit_layers)}."
        )
    if problem_type == ProblemType.SINGLE_LABEL and logits.shape[2] < 2:
        raise ValueError(
            "exit_logits has one class, of which every exit is sure: give two or more, or"
            ' problem_type="multi_label_classification" for one yes-or-no answer.'
        )
    targets = None if labels is None else np.asarray(labels)
    if targets is not None:
        if len(targets) != len(logits):
            raise ValueError(
                f"labels has {len(targets)} rows, and exit_logits {len(logits)}: give one for each."
            )
        if problem_type == ProblemType.SINGLE_LABEL:
            labelled = targets.reshape(len(logits), -1)[:, 0] != IGNORED_LABEL
            logits, targets = logits[torch.from_numpy(labelled)], targets.reshape(-1)[labelled]
    if not len(logits):
        raise ValueError("exit_logits has no rows with a label: there is nothing to calibrate on.")
    broken = int((~logits[:, -1].isfinite().all(dim=-1)).sum())
    if broken:
        raise ValueError(
            f"exit_logits: the answers at full depth of {broken} of {len(logits)} rows are not finite. Leave"
            " these rows out, or run the model in fp32, where its numbers do not overflow."
        )
    return logits, targets


def checked_tolerance(tolerance: Any, settings: dict[str, Any], problem_type: str) -> float | None:
    """The tolerance of regression: the argument, or that of the policy.

    Raises:
        ValueError: there is none, or it is negative.
    """
    if problem_type != ProblemType.REGRESSION:
        return None
    tolerance = settings.get("tolerance") if tolerance is None else tolerance
    if not _is_number(tolerance) or not tolerance >= 0:
        raise ValueError(
            f"tolerance={tolerance!r}: give how far a number may be off and still count as right, in units of"
            " the label, such as 0.5."
        )
    return float(tolerance)
