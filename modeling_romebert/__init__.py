"""RomeBERT: text classifiers that stop thinking as soon as they are sure, for Hugging Face transformers.

Importing this package registers the models with `AutoConfig`, `AutoModel`,
`AutoModelForSequenceClassification` and `AutoModelForTokenClassification`, and the tasks
`"early-exit-classification"` and `"early-exit-token-classification"` with `pipeline`. What trains, what
evaluates and what runs on ONNX Runtime is imported when its name is first used. Without torch and
transformers a bundle of ONNX still runs.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

_ABSENT = [name for name in ("torch", "transformers") if find_spec(name) is None]

if TYPE_CHECKING or not _ABSENT:
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )
    from transformers.pipelines import PIPELINE_REGISTRY

    from .configuration_romebert import VERSION as __version__
    from .configuration_romebert import RomeBertConfig
    from .exit_policies import POLICIES, ExitPolicy, make_policy
    from .losses import ExitLoss
    from .modeling_romebert import (
        RomeBertClassifierOutput,
        RomeBertForSequenceClassification,
        RomeBertForTokenClassification,
        RomeBertModel,
        RomeBertTokenClassifierOutput,
    )
    from .monitor import ExitMonitor
    from .pipeline_romebert import EarlyExitPipeline
    from .scoring import score
    from .token_pipeline import EarlyExitTokenPipeline, score_tokens

    AutoConfig.register(RomeBertConfig.model_type, RomeBertConfig)
    AutoModel.register(RomeBertConfig, RomeBertModel)
    AutoModelForSequenceClassification.register(RomeBertConfig, RomeBertForSequenceClassification)
    AutoModelForTokenClassification.register(RomeBertConfig, RomeBertForTokenClassification)
    PIPELINE_REGISTRY.register_pipeline(
        "early-exit-classification",
        pipeline_class=EarlyExitPipeline,
        pt_model=AutoModelForSequenceClassification,
        type="text",
    )
    PIPELINE_REGISTRY.register_pipeline(
        "early-exit-token-classification",
        pipeline_class=EarlyExitTokenPipeline,
        pt_model=AutoModelForTokenClassification,
        type="text",
    )
    # With this mark, `Pipeline.save_pretrained` lets the config name no task but ours. The model itself names
    # it, beside a user's own.
    del EarlyExitPipeline._registered_impl, EarlyExitTokenPipeline._registered_impl

if TYPE_CHECKING:
    from .evaluation import (
        Calibration,
        ExitReport,
        calibrate,
        calibrate_from_logits,
        compare_precision,
        evaluate_exits,
    )
    from .onnx import OnnxRomeBertForSequenceClassification, export_onnx
    from .serving import ContinuousBatcher
    from .training import (
        OBJECTIVES,
        RomeBertTrainer,
        RomeBertTrainingArguments,
        SelfSampling,
        SelfSamplingTrainer,
        project,
    )

__all__ = [
    "OBJECTIVES",
    "POLICIES",
    "Calibration",
    "ContinuousBatcher",
    "EarlyExitPipeline",
    "EarlyExitTokenPipeline",
    "ExitLoss",
    "ExitMonitor",
    "ExitPolicy",
    "ExitReport",
    "OnnxRomeBertForSequenceClassification",
    "RomeBertClassifierOutput",
    "RomeBertConfig",
    "RomeBertForSequenceClassification",
    "RomeBertForTokenClassification",
    "RomeBertModel",
    "RomeBertTokenClassifierOutput",
    "RomeBertTrainer",
    "RomeBertTrainingArguments",
    "SelfSampling",
    "SelfSamplingTrainer",
    "__version__",
    "calibrate",
    "calibrate_from_logits",
    "compare_precision",
    "evaluate_exits",
    "export_onnx",
    "make_policy",
    "project",
    "score",
    "score_tokens",
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
    "onnx": ("OnnxRomeBertForSequenceClassification", "export_onnx"),
    "serving": ("ContinuousBatcher",),
    "training": (
        "OBJECTIVES",
        "RomeBertTrainer",
        "RomeBertTrainingArguments",
        "SelfSampling",
        "SelfSamplingTrainer",
        "project",
    ),
}


def __getattr__(name: str) -> Any:
    for room, names in _IMPORTED_WHEN_USED.items():
        if name in names and (not _ABSENT or name.startswith("Onnx")):
            return getattr(import_module(f".{room}", __name__), name)
    if _ABSENT and name in __all__:
        raise ImportError(
            f"modeling_romebert.{name} needs {' and '.join(_ABSENT)}, not installed here: pip install"
            " romebert. OnnxRomeBertForSequenceClassification, which runs an exported model, does without."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
