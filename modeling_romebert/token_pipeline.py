"""`pipeline("early-exit-token-classification")`: text -> entities or tags, each with its exit_layer.

The stock token-classification pipeline makes entities of logits; here texts are scored in bulk, one text
too, and each entity is told how deep its tokens went. The model stays as it is.
"""

import copy
from collections.abc import Iterable, Iterator, Sized
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from transformers import TokenClassificationPipeline
from transformers.pipelines.token_classification import AggregationStrategy
from transformers.utils import logging

from .input_checks import vocabulary_size
from .pipeline_arguments import ExitArguments
from .result_format import error_at
from .scoring import WINDOW, Scorer, check_bulk_settings, policy_for
from .text_batcher import Results, in_windows
from .text_items import refuse_one_text
from .token_batcher import ChunkBatcher, ChunkWindow


class EarlyExitTokenPipeline(ExitArguments, TokenClassificationPipeline):
    """Find entities, or tag tokens, with a RomeBERT token classifier, each text as deep as it needs.

    The policy is `config.exit_policy`, which `calibrate` writes; without one every layer runs, and a warning
    says so.

    Args (of the constructor or of each call, besides those of `TokenClassificationPipeline`:
        `aggregation_strategy`, `ignore_labels`, `stride`, `is_split_into_words`, `delimiter`,
        `offset_mapping`):
        exit_policy: a policy, its settings, or its name, which needs `exit_threshold`; instead of the
            config's. With `unit="token"` single tokens halt, else whole texts leave. `False` runs every
            layer.
        exit_threshold: the policy's threshold, a number for all exits or a list with one per exit. Without a
            policy it is the threshold of normalised entropy.
        ask_every, ask_exits: see `EarlyExitPipeline`.
        batch_tokens, batch_size, window, on_error, progress, rebatching: of bulk scoring, see `score`.
            `window` is texts that are sorted together, not that of a policy.

    Texts that are longer than the positions of the model are cut, and a warning says so, unless `stride` is
    given, which scores them in chunks.

    Returns:
        For each text a list of dicts as the stock pipeline has them, with `exit_layer`: the layers that the
        deepest token of the entity ran. Generators and torch datasets give an iterator, in order; lists and
        what else has a length give a list.

    Raises:
        ValueError, TypeError: a policy that has no meaning for the model, or an input that is not text.

    Example:
        >>> from transformers import pipeline
        >>> find = pipeline("early-exit-token-classification", model="runs/conll")  # doctest: +SKIP
        >>> find("Ann lives in Rome.", aggregation_strategy="first")  # doctest: +SKIP
        [{'entity_group': 'PER', 'score': 0.99, 'word': 'Ann', 'start': 0, 'end': 3, 'exit_layer': 4}, ...]
    """

    _layers: Any = None  # of each token of the chunk that entities are being made of

    def _sanitize_parameters(  # type: ignore[override]
        self, stride: int | None = None, aggregation_strategy: Any = None, **kwargs: Any
    ) -> tuple[dict, dict, dict]:
        if stride is not None and aggregation_strategy is None:  # a call may give one of them alone
            before = getattr(self, "_postprocess_params", {}).get("aggregation_strategy")
            aggregation_strategy = before or AggregationStrategy.NONE
        preprocess, forward, postprocess = super()._sanitize_parameters(
            stride=stride, aggregation_strategy=aggregation_strategy, **kwargs
        )
        if stride is not None:
            preprocess["stride"] = stride
        preprocess.pop("tokenizer_params", None)  # which are of one text at a time
        return preprocess, forward, postprocess

    def __call__(
        self, inputs: Any, batch_size: int | None = None, num_workers: int | None = None, **kwargs: Any
    ) -> Any:
        is_dataset = isinstance(inputs, Dataset)
        if isinstance(inputs, (str, bytes)) or not (is_dataset or hasattr(inputs, "__iter__")):
            return next(self.stream([inputs], batch_size, **kwargs))
        # As in the stock pipeline, one list of words gives a list with its result.
        if isinstance(inputs, (list, tuple)) and any(isinstance(one, str) for one in inputs):
            of_words = kwargs.get("is_split_into_words", self._preprocess_params.get("is_split_into_words"))
            inputs = [list(inputs)] if of_words else inputs
        results = self.stream(inputs, batch_size, **kwargs)
        streams = is_dataset or isinstance(inputs, Iterator) or not isinstance(inputs, Sized)
        return results if streams else list(results)

    def stream(self, texts: Iterable[Any], batch_size: int | None = None, **kwargs: Any) -> Results:
        """As calling it with a generator: an iterator over the results of texts, in order."""
        refuse_one_text(texts)
        preprocess, forward, postprocess = self._sanitize_parameters(**kwargs)
        if "is_split_into_words" not in kwargs:
            preprocess = {name: value for name, value in preprocess.items() if name != "is_split_into_words"}
        preprocess = {**self._preprocess_params, **preprocess}
        if not preprocess.pop("is_split_into_words"):
            preprocess.pop("delimiter", None)
        return self._score(
            texts,
            batch_size=self._batch_size if batch_size is None else batch_size,
            of_chunks={**self._postprocess_params, **postprocess},
            **{**self._forward_params, **forward},
            **preprocess,
        )

    def _score(
        self,
        texts: Iterable[Any],
        *,
        of_chunks: dict[str, Any],
        exit_policy: Any = None,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        window: int = WINDOW,
        on_error: str = "raise",
        progress: bool = False,
        rebatching: bool | None = None,
        stride: int | None = None,
        delimiter: str | None = None,
        offset_mapping: Any = None,
    ) -> Results:
        """Results for many texts, see the class; `of_chunks` are the arguments of `postprocess`."""
        check_bulk_settings(on_error, batch_tokens=batch_tokens, batch_size=batch_size, window=window)
        policy = policy_for(self.model, exit_policy)
        settings = (policy, batch_tokens, batch_size, rebatching, on_error == "skip")
        if offset_mapping is not None and isinstance(offset_mapping[0], tuple):
            offset_mapping = [offset_mapping]
        length = len(texts) if isinstance(texts, Sized) else None
        if offset_mapping is not None and length is not None and len(offset_mapping) != length:
            raise ValueError("offset_mapping should have the same batch size as the input")
        batcher = ChunkBatcher(
            *(self.tokenizer, self.model.max_tokens, vocabulary_size(self.model)),
            *(stride, delimiter, offset_mapping),
        )
        window = 1 if batch_size == 1 else window

        scorer = Scorer(self.model, self.tokenizer.pad_token_id, *settings)

        def of_window(here: ChunkWindow, bar: Any) -> Iterator[Any]:
            found = {
                row: (logits, layers)
                for exited in scorer.exited(here, logging.EmptyTqdm())  # the bar counts texts, not chunks
                for row, logits, layers in exited.per_row()  # type: ignore[attr-defined]
            }
            yield from self._entities(here, found, of_chunks)
            bar.update(here.texts)

        advice = " Give stride, with an aggregation_strategy, to score all of each."
        return in_windows(texts, batcher, of_window, window, progress, "tagging", advice)

    def _entities(
        self, window: ChunkWindow, found: dict[int, tuple[Tensor, Tensor]], of_chunks: dict[str, Any]
    ) -> Iterator[list[dict[str, Any]]]:
        """Logits (t, C) and layers (t,) of each row -> the results of each text."""
        rows_of: list[list[int]] = [[] for _ in range(window.texts)]
        for row, number in enumerate(window.text_of):
            rows_of[number].append(row)
        maker = copy.copy(self)  # which holds the layers of one chunk, as others may be at work on this one
        strategy = of_chunks.get("aggregation_strategy", AggregationStrategy.NONE)
        key = "entity" if strategy == AggregationStrategy.NONE else "entity_group"
        for rows in rows_of:
            if errors := [window.errors[row] for row in rows if row in window.errors]:
                reason = str(error_at(window.position(rows[0]), errors[0]))
                yield [{key: None, "score": None, "word": None, "exit_layer": None, "error": reason}]
                continue
            entities = []
            for row in rows:
                logits, layers = found[row]
                maker._layers = layers.tolist()
                chunk = {**window.chunks[row], "logits": logits.float().cpu().unsqueeze(0)}
                entities += maker.postprocess([chunk], **of_chunks)
            yield self.aggregate_overlapping_entities(entities) if len(rows) > 1 else entities

    # ---- how deep the tokens of an entity went

    def aggregate(self, pre_entities: Any, aggregation_strategy: Any) -> Any:
        entities = super().aggregate(pre_entities, aggregation_strategy)
        if aggregation_strategy == AggregationStrategy.NONE:
            for entity in entities:
                entity["exit_layer"] = self._layers[entity["index"]]
        return entities

    def aggregate_word(self, entities: Any, aggregation_strategy: Any) -> Any:
        word = super().aggregate_word(entities, aggregation_strategy)
        return {**word, "exit_layer": self._deepest(entities)}

    def group_sub_entities(self, entities: Any) -> Any:
        return {**super().group_sub_entities(entities), "exit_layer": self._deepest(entities)}

    def _deepest(self, entities: Any) -> int:
        """Of tokens or of words."""
        return max(
            entity["exit_layer"] if "exit_layer" in entity else self._layers[entity["index"]]
            for entity in entities
        )


def score_tokens(
    model: Any, tokenizer: Any, texts: Iterable[Any], batch_size: int | None = None, **settings: Any
) -> Results:
    """Tag the tokens of many texts, each as deep as it needs: what the pipeline does with generators.

    Args:
        model: a `RomeBertForTokenClassification`; it is put in evaluation mode.
        tokenizer: of the model.
        texts: strings, or with `is_split_into_words=True` lists of words; any iterable.
        batch_size, **settings: those of a call of `EarlyExitTokenPipeline`.

    Returns:
        An iterator over one list of entities or tags per text, in order.

    Raises:
        ValueError, TypeError: see `EarlyExitTokenPipeline`.

    Example:
        >>> for entities in score_tokens(model, tokenizer, ["Ann lives in Rome."],
        ...                              aggregation_strategy="first"):  # doctest: +SKIP
        ...     print([(entity["word"], entity["entity_group"]) for entity in entities])
        [('Ann', 'PER'), ('Rome', 'LOC')]
    """
    find = EarlyExitTokenPipeline(model=model, tokenizer=tokenizer, device=model.device)
    return find.stream(texts, batch_size, **settings)
