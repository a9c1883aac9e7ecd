"""Training: a `Trainer` whose objectives reach every exit, and what its steps are made of."""

from .arguments import RomeBertTrainingArguments
from .gradient_projection import project
from .objectives import OBJECTIVES
from .self_sampling import SelfSampling, SelfSamplingTrainer
from .trainer import RomeBertTrainer

__all__ = [
    "OBJECTIVES",
    "RomeBertTrainer",
    "RomeBertTrainingArguments",
    "SelfSampling",
    "SelfSamplingTrainer",
    "project",
]
