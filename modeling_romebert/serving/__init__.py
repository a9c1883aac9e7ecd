"""Texts that come one at a time, from many callers: they join the layers that run, and leave when sure."""

from .continuous_batching import ContinuousBatcher
from .mixed_policy import MixedPolicy

__all__ = ["ContinuousBatcher", "MixedPolicy"]
