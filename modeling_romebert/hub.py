"""What travels to the Hub with the weights, so that a model loads where only transformers is installed.

transformers copies the model's file and what it imports from beside it, here and again when such a model is saved anew. This file
says what that comes to, and how the config points into it; the tests hold it against what is written. The weights are safetensors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Flat siblings that import torch, transformers and each other, and nothing else.
CLOSURE = (
    "attention.py",
    "backbones.py",
    "batching.py",
    "confidence.py",
    "configuration_romebert.py",
    "exits.py",
    "host_memory.py",
    "hub.py",
    "layouts.py",
    "loading.py",
    "losses.py",
    "model_card.py",
    "modeling_romebert.py",
    "packing.py",
    "pipeline_romebert.py",
    "policies.py",
    "pools.py",
    "records.py",
    "scoring.py",
    "streams.py",
    "walk.py",
)

AUTO_MAP = {
    "AutoConfig": "configuration_romebert.RomeBertConfig",
    "AutoModel": "modeling_romebert.RomeBertModel",
    "AutoModelForSequenceClassification": "modeling_romebert.RomeBertForSequenceClassification",
}

CUSTOM_PIPELINES = {
    "early-exit-classification": {
        "impl": "pipeline_romebert.EarlyExitPipeline",
        "pt": ["AutoModelForSequenceClassification"],
        "type": "text",
    }
}


@contextmanager
def safetensors_only(name: Any) -> Iterator[None]:
    """Around a load with `use_safetensors=True`: when there are none, say so, and how to get them from a pickle."""
    try:
        yield
    except OSError as error:
        if "safetensors" not in str(error):
            raise
        raise OSError(
            f"{name} holds no weights as safetensors, and pickled ones (pytorch_model.bin) are not loaded: a pickle can run code."
            " Convert them once, in their folder: weights = torch.load('pytorch_model.bin', weights_only=True);"
            " safetensors.torch.save_file({key: weight.contiguous().clone() for key, weight in weights.items()},"
            " 'model.safetensors', {'format': 'pt'})"
        ) from error
