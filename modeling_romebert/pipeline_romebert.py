"""`pipeline("early-exit-classification")`: text -> label, score, exit_layer.

The stock text-classification pipeline with an exit policy handed to the model and the exit told in the
results. One text takes the stock path; lists, datasets and generators are scored in bulk (scoring.py). The
model stays as it is.
"""

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import TextClassificationPipeline
from transformers.utils import logging

from .exit_policies import FullDepth
from .input_checks import vocabulary_size
from .monitor import ExitMonitor, as_monitor, exit_indices
from .pipeline_arguments import ExitArguments
from .pretrained import forward_of
from .result_format import ResultFormat
from .scoring import policy_for, score
from .text_batcher import TextBatcher
from .text_items import each

logger = logging.get_logger(__name__)


class EarlyExitPipeline(ExitArguments, TextClassificationPipeline):
    """Classify texts with a RomeBERT model, each as deep as it needs.

    The policy is `config.exit_policy`, which `calibrate` writes; without one every layer runs, and a warning
    says so.

    Args (of the constructor or of each call, besides those of `TextClassificationPipeline`):
        exit_policy: a policy, its settings, or its name, which needs `exit_threshold`; instead of the
            config's. `False` runs every layer.
        exit_threshold: the policy's threshold, a number for all exits or a list with one per exit. Without a
            policy it is the threshold of normalised entropy.
        ask_every, ask_exits: ask at every so many-th exit only, or at the exits after these layers; the last
            is always asked. Exits that are not asked are not computed. What a call gives is added to what the
            constructor was given, or takes
            its place: a policy of the call that has no threshold or exits to ask of its own takes those of
                the constructor.
        text_pair: the second text of every pair, or a list with one for each text.
        batch_tokens, batch_size, window, on_error, progress, rebatching: of bulk scoring, see `score`.
            `num_workers` has no effect there: one thread tokenises ahead of the model.
        monitor: share of the texts, such as 0.01, to run to full depth as well, or an `ExitMonitor`: says
            once when what was promised at calibration no longer holds, or texts leave at other exits.
            Results stay what they are. `classify.monitor` is the constructor's; `False` does without it.

    Texts that are longer than the positions of the model are cut, and a warning says so; `truncation=False`
    makes it an error.

    Returns:
        For each text a dict `{"label", "score", "exit_layer"}` (one per label with `top_k`, as in the
        stock pipeline); `exit_layer` is the number of layers that the text ran. Generators and torch datasets
        give an iterator, in order; lists and what else has a length, such as a column of a dataset, give a
        list.

    Raises:
        ValueError, TypeError: a policy that has no meaning for the model, or an input that is not text.

    Example:
        >>> from transformers import pipeline
        >>> classify = pipeline("early-exit-classification", model="runs/quickstart/model")  # doctest: +SKIP
        >>> classify(["A delight.", "Not quite."], exit_threshold=0.3)  # doctest: +SKIP
        [{'label': 'positive', 'score': 0.98, 'exit_layer': 2}, {'label': 'negative', 'score': 0.74,
        'exit_layer': 6}]
    """

    def _sanitize_parameters(  # type: ignore[override]
        self, monitor: Any = None, **kwargs: Any
    ) -> tuple[dict, dict, dict]:
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if monitor is not None:  # `False` takes the constructor's away
            forward["monitor"] = as_monitor(monitor, self.model.config)
        return preprocess, forward, postprocess

    def __call__(
        self, inputs: Any, batch_size: int | None = None, num_workers: int | None = None, **kwargs: Any
    ) -> Any:
        is_dataset = isinstance(inputs, Dataset)
        if isinstance(inputs, (str, bytes, dict)) or not (is_dataset or hasattr(inputs, "__iter__")):
            return super().__call__(inputs, **kwargs)
        preprocess, forward, postprocess = self._sanitize_parameters(**kwargs)
        preprocess = {**self._preprocess_params, **preprocess}
        texts = inputs
        if (seconds := preprocess.pop("text_pair", None)) is not None:
            texts = Pairs(inputs, seconds) if isinstance(inputs, Sized) else each_pair(inputs, seconds)
        postprocess = {"top_k": "best", **self._postprocess_params, **postprocess}
        results = score(
            self.model,
            self.tokenizer,
            texts,
            batch_size=self._batch_size if batch_size is None else batch_size,
            top_k=postprocess["top_k"],
            function_to_apply=postprocess.get("function_to_apply"),
            **{**self._forward_params, **forward},
            **preprocess,
        )
        streams = is_dataset or isinstance(inputs, Iterator) or not isinstance(inputs, Sized)
        return results if streams else list(results)

    def preprocess(self, inputs: Any, text_pair: str | None = None, **tokenizer_kwargs: Any) -> Any:
        item = inputs if text_pair is None else as_pair(inputs, text_pair)
        batcher = TextBatcher(
            self.tokenizer, self.model.max_tokens, vocabulary_size(self.model), tokenizer_kwargs
        )
        window = batcher(0, [item])
        if (error := window.errors.get(0)) is not None:
            raise type(error)(f"the text: {error}")
        if window.cut:
            logger.warning_once(
                f"A text was longer than {batcher.settings['max_length']} tokens and was cut. This is said"
                " once."
            )
        inputs = {name: torch.tensor([values]) for name, values in window.features[0].items()}
        return {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}

    @property
    def monitor(self) -> ExitMonitor | None:
        """What the constructor was given as `monitor` made."""
        return self._forward_params.get("monitor")

    def _forward(
        self, model_inputs: Any, exit_policy: Any = None, monitor: Any = None, **_of_bulk_scoring: Any
    ) -> Any:
        if self.model.training:  # as for a list, whatever was done to the model since the pipeline was made
            self.model.eval()
        policy = policy_for(self.model, exit_policy)
        outputs = forward_of(self.model)(**model_inputs, exit_policy=policy)
        if monitor is not None and monitor.watches(policy):
            self._watch(monitor, model_inputs, outputs)
        return {"logits": outputs.logits, "exit_layer": outputs.exit_layer}

    def _watch(self, monitor: ExitMonitor, model_inputs: Any, outputs: Any) -> None:
        """Tell a monitor where a text left, and by chance its answer at full depth."""
        monitor.count_exits(exit_indices(outputs.exit_layer, self.model.exit_layers))
        if monitor.choose(1):
            deep = forward_of(self.model)(**model_inputs, exit_policy=FullDepth())
            monitor.compare(outputs.logits, deep.logits, self.model.problem_type)
        monitor.speak()

    def postprocess(
        self, model_outputs: Any, function_to_apply: Any = None, top_k: Any = 1, _legacy: bool = True
    ) -> Any:
        as_results = ResultFormat(
            self.model.config, function_to_apply, "best" if _legacy and top_k == 1 else top_k
        )
        return as_results(model_outputs["logits"], model_outputs["exit_layer"])[0]


class Pairs:
    """Texts, each with its second: one of a list, or the same for all. As long as the texts are."""

    def __init__(self, texts: Any, seconds: Any):
        if (
            not isinstance(seconds, (str, bytes))
            and isinstance(seconds, Sized)
            and len(seconds) != len(texts)
        ):
            raise ValueError(
                f"text_pair has {len(seconds)} texts for {len(texts)} first ones: give one for each, or one"
                " for all."
            )
        self.texts, self.seconds = texts, seconds

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return each_pair(self.texts, self.seconds)


def each_pair(texts: Any, seconds: Any) -> Iterator[dict[str, Any]]:
    """Texts, and a second one for each or for all -> the pairs, in order."""
    if isinstance(seconds, (str, bytes)):
        return (as_pair(text, seconds) for text in each(texts))
    return (as_pair(text, second) for text, second in zip(each(texts), each(seconds), strict=True))


def as_pair(item: Any, second: Any) -> dict[str, Any]:
    """A text, alone or as `{"text"}`, and its second -> `{"text", "text_pair"}`."""
    parts = item if isinstance(item, dict) else {"text": item}
    if parts.get("text_pair") is not None:
        raise ValueError(f"text_pair is given twice: in {item!r}, and as the argument {second!r}.")
    return {**parts, "text_pair": second}
