"""`pipeline("early-exit-classification")`: text -> label, score, exit_layer.

The stock text-classification pipeline with an exit policy handed to the model and the exit told in the results. One text takes the
stock path; lists, datasets and generators are scored in bulk (scoring.py). The model stays as it is.
"""

from collections.abc import Iterator, Sequence, Sized
from typing import Any

from torch.utils.data import Dataset
from transformers import TextClassificationPipeline
from transformers.utils import logging

from .policies import as_policy
from .scoring import ResultFormat, policy_for, score
from .text_batcher import text_and_pair, was_cut, with_truncation

logger = logging.get_logger(__name__)


class EarlyExitPipeline(TextClassificationPipeline):
    """Classify texts with a RomeBERT model, each as deep as it needs.

    The policy is `config.exit_policy`, which `calibrate` writes; without one every layer runs, and a warning says so.

    Args (of the constructor or of each call, besides those of `TextClassificationPipeline`):
        exit_policy: a policy or its settings, instead of the config's; `False` runs every layer.
        exit_threshold: the policy's threshold, a number for all exits or a list with one per exit. Without a policy it is
            the threshold of normalised entropy.
        ask_every, ask_exits: ask at every so many-th exit only, or at the exits after these layers; the last is always asked.
            Exits that are not asked are not computed.
        batch_tokens, batch_size, window, on_error, progress, rebatching: of bulk scoring, see `score`. `num_workers` has no
            effect there: one thread tokenises ahead of the model.

    Texts that are longer than the positions of the model are cut, and a warning says so; `truncation=False` makes it an error.

    Returns:
        For each text a dict `{"label", "score", "exit_layer"}` (one per label with `top_k`, as in the stock pipeline);
        `exit_layer` is the number of layers that the text ran. Generators and torch datasets give an iterator, in order; lists
        and what else has a length, such as a column of a dataset, give a list.

    Raises:
        ValueError, TypeError: a policy that has no meaning for the model, or an input that is not text.

    Example:
        >>> from transformers import pipeline
        >>> classify = pipeline("early-exit-classification", model="runs/quickstart/model")  # doctest: +SKIP
        >>> classify(["A delight.", "Not quite."], exit_threshold=0.3)  # doctest: +SKIP
        [{'label': 'positive', 'score': 0.98, 'exit_layer': 2}, {'label': 'negative', 'score': 0.74, 'exit_layer': 6}]
    """

    def _sanitize_parameters(
        self,
        exit_policy: Any = None,
        exit_threshold: Any = None,
        ask_every: int | None = None,
        ask_exits: Sequence[int] | None = None,
        batch_tokens: int | None = None,
        window: int | None = None,
        on_error: str | None = None,
        progress: bool | None = None,
        rebatching: bool | None = None,
        **kwargs: Any,
    ) -> tuple[dict, dict, dict]:
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        bulk = {"batch_tokens": batch_tokens, "window": window, "on_error": on_error}
        bulk.update(progress=progress, rebatching=rebatching)
        forward.update({name: value for name, value in bulk.items() if value is not None})
        if any(given is not None for given in (exit_policy, exit_threshold, ask_every, ask_exits)):
            forward["exit_policy"] = self._policy(exit_policy, exit_threshold, ask_every, ask_exits)
        return preprocess, forward, postprocess

    def _policy(self, exit_policy: Any, exit_threshold: Any, ask_every: int | None, ask_exits: Sequence[int] | None) -> Any:
        """The call's arguments and the config -> a policy, or False for none."""
        if exit_policy is False:
            return False
        policy = exit_policy or self.model.config.exit_policy or {"name": "entropy"}
        if exit_threshold is not None:
            settings = dict(policy) if isinstance(policy, dict) else as_policy(policy).to_dict()
            replaced = ("threshold", "thresholds", "patience") if settings["name"] == "patience" else ("threshold", "thresholds")
            settings = {key: value for key, value in settings.items() if key not in replaced}
            settings["thresholds" if isinstance(exit_threshold, Sequence) else "threshold"] = exit_threshold
            policy = settings
        policy = as_policy(policy)
        return policy if ask_every is None and ask_exits is None else policy.asking(ask_every, ask_exits)

    def __call__(self, inputs: Any, batch_size: int | None = None, num_workers: int | None = None, **kwargs: Any) -> Any:
        is_dataset = isinstance(inputs, Dataset)
        if isinstance(inputs, (str, bytes, dict)) or not (is_dataset or hasattr(inputs, "__iter__")):
            return super().__call__(inputs, **kwargs)
        preprocess, forward, postprocess = self._sanitize_parameters(**kwargs)
        postprocess = {"top_k": "best", **self._postprocess_params, **postprocess}
        results = score(
            self.model,
            self.tokenizer,
            inputs,
            batch_size=self._batch_size if batch_size is None else batch_size,
            top_k=postprocess["top_k"],
            function_to_apply=postprocess.get("function_to_apply"),
            **{**self._forward_params, **forward},
            **{**self._preprocess_params, **preprocess},
        )
        streams = is_dataset or isinstance(inputs, Iterator) or not isinstance(inputs, Sized)
        return results if streams else list(results)

    def preprocess(self, inputs: Any, **tokenizer_kwargs: Any) -> Any:
        text, pair = text_and_pair(inputs)
        settings = with_truncation(self.tokenizer, self.model.max_tokens, tokenizer_kwargs)
        encoded = self.tokenizer(text, pair, return_tensors="pt", **settings)
        if was_cut(self.tokenizer, encoded, 0, text, pair, settings):
            logger.warning_once(f"A text was longer than {settings['max_length']} tokens and was cut. This is said once.")
        return encoded

    def _forward(self, model_inputs: Any, exit_policy: Any = None, **_of_bulk_scoring: Any) -> Any:
        self.model.eval()  # as for a list, whatever was done to the model since the pipeline was made
        outputs = self.model(**model_inputs, exit_policy=policy_for(self.model, exit_policy))
        return {"logits": outputs.logits, "exit_layer": outputs.exit_layer}

    def postprocess(self, model_outputs: Any, function_to_apply: Any = None, top_k: Any = 1, _legacy: bool = True) -> Any:
        as_results = ResultFormat(self.model.config, function_to_apply, "best" if _legacy and top_k == 1 else top_k)
        return as_results(model_outputs["logits"], model_outputs["exit_layer"])[0]
