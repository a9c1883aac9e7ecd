"""RomeBERT: text classifiers that stop thinking as soon as they are sure, for Hugging Face transformers.

Importing this package registers the model with `AutoConfig`, `AutoModel` and
`AutoModelForSequenceClassification`, and the task `"early-exit-classification"` with `pipeline`. What trains
and what evaluates is imported when its name is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_romebert import VERSION as __version__
from .configuration_romebert import RomeBertConfig
from .exit_policies import POLICIES, ExitPolicy, make_policy
from .losses import ExitLoss
from .modeling_romebert import RomeBertClassifierOutput, RomeBertForSequenceClassification, RomeBertModel
from .monitor import ExitMonitor
from .pipeline_romebert import EarlyExitPipeline
from .scoring import score

if TYPE_CHECKING:
    from .evaluation import (
        Calibration,
        ExitReport,
        calibrate,
        calibrate_from_logits,
        compare_precision,
        evaluate_exits,
    )
    from .training import OBJECTIVES, RomeBertTrainer, RomeBertTrainingArguments, project

__all__ = [
    "OBJECTIVES",
    "POLICIES",
    "Calibration",
    "EarlyExitPipeline",
    "ExitLoss",
    "ExitMonitor",
    "ExitPolicy",
    "ExitReport",
    "RomeBertClassifierOutput",
    "RomeBertConfig",
    "RomeBertForSequenceClassification",
    "RomeBertModel",
    "RomeBertTrainer",
    "RomeBertTrainingArguments",
    "__version__",
    "calibrate",
    "calibrate_from_logits",
    "compare_precision",
    "evaluate_exits",
    "make_policy",
    "project",
    "score",
]

_IMPORTED_WHEN_USED = {
    "evaluation": (
        "Calibration",
        "ExitReport",
        "calibrate",
        "calibrate_from_logits",
        "compare_precision",
        "evaluate_exits",
    ),
    "training": ("OBJECTIVES", "RomeBertTrainer", "RomeBertTrainingArguments", "project"),
}


def __getattr__(name: str) -> Any:
    for room, names in _IMPORTED_WHEN_USED.items():
        if name in names:
            return getattr(import_module(f".{room}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


AutoConfig.register(RomeBertConfig.model_type, RomeBertConfig)
AutoModel.register(RomeBertConfig, RomeBertModel)
AutoModelForSequenceClassification.register(RomeBertConfig, RomeBertForSequenceClassification)
PIPELINE_REGISTRY.register_pipeline(
    "early-exit-classification",
    pipeline_class=EarlyExitPipeline,
    pt_model=AutoModelForSequenceClassification,
    type="text",
)
# With this mark, `Pipeline.save_pretrained` lets the config name no task but ours. The model itself names it,
# beside a user's own.
del EarlyExitPipeline._registered_impl
