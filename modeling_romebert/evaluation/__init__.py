"""Evaluation: the metric at every exit, what a policy saves, and thresholds that are chosen on data."""

from .calibrated import Calibration
from .calibration import calibrate, calibrate_from_logits
from .evaluate import evaluate_exits
from .precision import compare_precision
from .report import ExitReport

__all__ = [
    "Calibration",
    "ExitReport",
    "calibrate",
    "calibrate_from_logits",
    "compare_precision",
    "evaluate_exits",
]
