"""RomeBERT: text classifiers that stop thinking as soon as they are sure, for Hugging Face transformers.

Importing this package registers the model with `AutoConfig`, `AutoModel` and `AutoModelForSequenceClassification`, and the task
`"early-exit-classification"` with `pipeline`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers.pipelines import PIPELINE_REGISTRY

from .calibration import calibrate
from .configuration_romebert import RomeBertConfig
from .evaluation import ExitReport, evaluate_exits
from .losses import ExitLoss
from .modeling_romebert import RomeBertClassifierOutput, RomeBertForSequenceClassification, RomeBertModel
from .objectives import OBJECTIVES
from .pipeline_romebert import EarlyExitPipeline
from .policies import POLICIES, ExitPolicy, make_policy
from .precision import compare_precision
from .projection import project
from .scoring import score
from .trainer import RomeBertTrainer
from .training_args import RomeBertTrainingArguments

__all__ = [
    "OBJECTIVES",
    "POLICIES",
    "EarlyExitPipeline",
    "ExitLoss",
    "ExitPolicy",
    "ExitReport",
    "RomeBertClassifierOutput",
    "RomeBertConfig",
    "RomeBertForSequenceClassification",
    "RomeBertModel",
    "RomeBertTrainer",
    "RomeBertTrainingArguments",
    "calibrate",
    "compare_precision",
    "evaluate_exits",
    "make_policy",
    "project",
    "score",
]

AutoConfig.register(RomeBertConfig.model_type, RomeBertConfig)
AutoModel.register(RomeBertConfig, RomeBertModel)
AutoModelForSequenceClassification.register(RomeBertConfig, RomeBertForSequenceClassification)
PIPELINE_REGISTRY.register_pipeline(
    "early-exit-classification", pipeline_class=EarlyExitPipeline, pt_model=AutoModelForSequenceClassification, type="text"
)
# With this mark, `Pipeline.save_pretrained` lets the config name no task but ours. The model itself names it, beside a user's own.
del EarlyExitPipeline._registered_impl
