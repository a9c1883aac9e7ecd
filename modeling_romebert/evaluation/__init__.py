"""Evaluation: the metric at every exit, what a policy saves, and thresholds that are chosen on data."""

from .calibration import calibrate
from .evaluate import ExitReport, evaluate_exits
from .precision import compare_precision

__all__ = ["ExitReport", "calibrate", "compare_precision", "evaluate_exits"]
