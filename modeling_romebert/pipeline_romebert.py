"""`pipeline("early-exit-classification")`: text -> label, score, exit_layer.

The stock text-classification pipeline with an exit policy handed to the model and the exit told in the results. Batches are the
stock ones; rows leave inside the model, whose linear layers are packed (packing.py) on a CPU.
"""

from collections.abc import Sequence
from typing import Any

from transformers import TextClassificationPipeline
from transformers.utils import logging

from .packing import pack_linears
from .policies import as_policy

logger = logging.get_logger(__name__)


class EarlyExitPipeline(TextClassificationPipeline):
    """Classify texts with a RomeBERT model, each as deep as it needs.

    The policy is `config.exit_policy`, which `calibrate` writes; without one every layer runs, and a warning says so.

    Args (of the constructor or of each call, besides those of `TextClassificationPipeline`):
        exit_policy: a policy or its settings, instead of the config's; `False` runs every layer.
        exit_threshold: the policy's threshold, a number for all exits or a list with one per exit. Without a policy it is
            the threshold of normalised entropy.

    Returns:
        For each text a dict `{"label", "score", "exit_layer"}` (one per label with `top_k`, as in the stock pipeline);
        `exit_layer` is the number of layers that the text ran.

    Raises:
        ValueError, TypeError: a policy that has no meaning for the model, or an input that is not text.

    Example:
        >>> from transformers import pipeline
        >>> classify = pipeline("early-exit-classification", model="runs/quickstart/model")  # doctest: +SKIP
        >>> classify(["A delight.", "Not quite."], exit_threshold=0.3)  # doctest: +SKIP
        [{'label': 'positive', 'score': 0.98, 'exit_layer': 2}, {'label': 'negative', 'score': 0.74, 'exit_layer': 6}]
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.device.type == "cpu":
            pack_linears(self.model.backbone)

    def _sanitize_parameters(self, exit_policy: Any = None, exit_threshold: Any = None, **kwargs: Any) -> tuple[dict, dict, dict]:
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if exit_policy is not None or exit_threshold is not None:
            forward["exit_policy"] = self._policy(exit_policy, exit_threshold)
        return preprocess, forward, postprocess

    def _policy(self, exit_policy: Any, exit_threshold: Any) -> Any:
        """The call's arguments and the config -> a policy, or False for none."""
        if exit_policy is False:
            return False
        if exit_threshold is None:
            return as_policy(exit_policy)
        settings = exit_policy or self.model.config.exit_policy or {"name": "entropy"}
        settings = as_policy(settings).to_dict() if not isinstance(settings, dict) else dict(settings)
        replaced = ("threshold", "thresholds", "patience") if settings["name"] == "patience" else ("threshold", "thresholds")
        settings = {key: value for key, value in settings.items() if key not in replaced}
        settings["thresholds" if isinstance(exit_threshold, Sequence) else "threshold"] = exit_threshold
        return as_policy(settings)

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        if isinstance(inputs, (list, tuple)) and not inputs:
            return []
        return super().__call__(inputs, **kwargs)

    def preprocess(self, inputs: Any, **tokenizer_kwargs: Any) -> Any:
        texts = (inputs.get("text"), inputs.get("text_pair", "")) if isinstance(inputs, dict) else (inputs,)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError(
                f"cannot classify {inputs!r} of type {type(inputs).__name__}: give a string, or for a pair of texts"
                ' {"text": ..., "text_pair": ...}, or a list of either.'
            )
        return super().preprocess(inputs, **tokenizer_kwargs)

    def _forward(self, model_inputs: Any, exit_policy: Any = None) -> Any:
        if exit_policy is None:
            exit_policy = self.model.config.exit_policy
            if exit_policy is None:
                logger.warning_once(
                    "The model has no calibrated exit policy, so every text runs every layer. Call"
                    " modeling_romebert.calibrate and save the model, or pass exit_threshold."
                )
        outputs = self.model(**model_inputs, exit_policy=exit_policy or None)
        return {"logits": outputs.logits, "exit_layer": outputs.exit_layer}

    def postprocess(self, model_outputs: Any, **kwargs: Any) -> Any:
        results = super().postprocess(model_outputs, **kwargs)
        exit_layer = model_outputs["exit_layer"].item()
        if isinstance(results, dict):
            return {**results, "exit_layer": exit_layer}
        return [{**result, "exit_layer": exit_layer} for result in results]
