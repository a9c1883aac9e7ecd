"""Why no threshold could be certified, in a sentence with the number of examples that would help."""

from collections.abc import Callable

import numpy as np

from .fixed_sequence import Tested
from .risks import p_value_of

MOST = 1_000_000  # more examples than that are as good as none


def why_nothing(failed: Tested | None, *, risk: str, max_drop: float, confidence: float) -> str:
    """The first threshold, which failed -> the reason, as a sentence.

    Example:
        >>> few = Tested(0.0001, 1.0, np.zeros(100, int), np.zeros(100, np.int8), 0.4)
        >>> why_nothing(few, risk="harm", max_drop=0.01, confidence=0.9)[:67]
        '100 examples are too few for max_drop=0.01 at confidence=0.9: at le'
    """
    assert failed is not None  # a sequence has at least one threshold
    count, asked = len(failed.losses), f"max_drop={max_drop:g} at confidence={confidence:g}"

    def certifies(number: int, rate: float) -> bool:
        losses = np.zeros(number, dtype=failed.losses.dtype)
        losses[: round(max(rate, 0.0) * number)] = 1
        return p_value_of(risk, losses, confidence)(max_drop) <= 1 - confidence

    least = first(lambda number: certifies(number, 0.0), 1)
    if least is not None and count < least:
        return (
            f"{count:,} examples are too few for {asked}: at least {least:,} are needed. Unlabelled texts"
            ' will do with risk="disagreement".'
        )
    seen = f"the most careful threshold already shows a risk of {failed.observed:.4f} on {count:,} examples"
    enough = first(lambda number: certifies(number, failed.observed), count)
    if enough is None:
        return f"{seen}, too close to {asked}. Allow a larger max_drop, or train the model's exits longer."
    return f"{seen}; should that be the risk, about {enough:,} examples certify {asked}."


def first(holds: Callable[[int], bool], start: int) -> int | None:
    """The smallest number from `start` on for which something holds that holds for all larger ones; `None`
    above `MOST`.
    """
    high = start
    while not holds(high):
        high *= 2
        if high > MOST:
            return None
    low = max(start, high // 2)
    while high > low:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high
