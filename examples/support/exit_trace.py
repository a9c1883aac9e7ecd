"""One text, exit by exit: what each exit says of it, where it leaves, and what that saves.

The loop is that of the library (early_exit.py) without a policy, so that exits behind the one where the text
leaves are seen too.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from modeling_romebert.early_exit import ActiveBatch, run_to_the_end
from modeling_romebert.exit_policies import ExitPolicy, FullDepth
from modeling_romebert.input_checks import vocabulary_size
from modeling_romebert.result_format import ResultFormat
from modeling_romebert.text_batcher import TextBatcher

ROUNDS = 5  # of each timing


class ExitSeen(NamedTuple):
    """An exit, and what it says of the text."""

    layer: int
    label: str
    confidence: float
    state: str  # "goes on", "leaves", or "not run" behind the exit where it left


class Times(NamedTuple):
    """Milliseconds of a text, tokenising aside: medians."""

    early: float
    full: float


def features_of(model: Any, tokenizer: Any, text: str) -> Any:
    """A text -> what the embeddings take.

    Raises:
        TypeError, ValueError: it is no text that the model can take.
    """
    window = TextBatcher(tokenizer, model.max_tokens, vocabulary_size(model), {})(0, [text])
    for error in window.errors.values():
        raise error
    return window.features[0]


@torch.no_grad()
def trace(model: Any, tokenizer: Any, text: str, policy: ExitPolicy) -> Iterator[ExitSeen]:
    """Run all layers, and tell of each exit as soon as it is reached.

    Raises:
        TypeError, ValueError: see `features_of`.
    """
    features = features_of(model, tokenizer, text)
    as_results = ResultFormat(model.config, None, "best")
    encoder = model.encoder(pad_token_id=tokenizer.pad_token_id)
    active = ActiveBatch(encoder, [0], None, None, texts=[features])
    asked = policy.start(len(model.exit_layers), model.problem_type, model.exit_layers)
    left = False
    for index, layer in enumerate(model.exit_layers):
        active.step()
        (result,) = as_results(torch.as_tensor(active.logits), torch.tensor([layer]))
        is_last = layer == model.exit_layers[-1]
        state = "not run" if left else "goes on"
        if not left and (is_last or (asked.asks(index) and bool(asked.leaves(index, active.logits)[0]))):
            state, left = "leaves", True
        yield ExitSeen(layer, result["label"], result["score"], state)


@torch.no_grad()
def times_of(
    model: Any, tokenizer: Any, text: str, policy: ExitPolicy, clock: Callable[[], float] = time.perf_counter
) -> Times:
    """Time a text with early exit and at full depth, in turns."""
    features = features_of(model, tokenizer, text)
    encoder = model.encoder(pad_token_id=tokenizer.pad_token_id)

    def seconds(asked: ExitPolicy) -> float:
        begin = clock()
        started = asked.start(len(model.exit_layers), model.problem_type, model.exit_layers)
        run_to_the_end(ActiveBatch(encoder, [0], None, started, texts=[features]))
        return clock() - begin

    rounds = [(seconds(policy), seconds(FullDepth())) for _ in range(ROUNDS)]
    return Times(*(1000 * statistics.median(side) for side in zip(*rounds, strict=True)))
