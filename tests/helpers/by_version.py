"""What newer versions of transformers call by another name."""

from transformers import PreTrainedModel, TrainingArguments

CHECKPOINTING = (
    "activation_checkpointing"
    if hasattr(TrainingArguments, "activation_checkpointing")
    else "gradient_checkpointing"
)


def checkpointing_arguments(use_reentrant: bool) -> dict:
    """Settings of `TrainingArguments` with which activations are computed anew in the backward pass."""
    return {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": use_reentrant}}


def enable_checkpointing(model: PreTrainedModel, use_reentrant: bool) -> None:
    """The same for a model."""
    getattr(model, f"{CHECKPOINTING}_enable")({"use_reentrant": use_reentrant})
