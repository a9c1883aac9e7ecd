"""Figures as a reader sees them: points of 100, intervals, sentences, Markdown tables."""

from math import isnan

import numpy as np

from study.bootstrap import Interval


def points(value: float | None, spread: float | None = None) -> str:
    """A share as points of 100; with a standard deviation where there is one.

    Example:
        >>> points(0.8123), points(0.8123, 0.004), points(None)
        ('81.2', '81.2 ± 0.4', '')
    """
    if value is None:
        return ""
    return f"{100 * value:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")


def interval(found: Interval | None) -> str:
    """
    Example:
        >>> interval(Interval(0.021, 0.012, 0.03, 3)), interval(Interval(0.001, -0.01, 0.012, 3))
        ('**+2.1** [+1.2, +3.0]', '+0.1 [-1.0, +1.2]')
        >>> interval(Interval(0.021, float("nan"), float("nan"), 1))
        '+2.1'
    """
    if found is None:
        return ""
    difference = f"{100 * found.difference:+.1f}"
    return f"{f'**{difference}**' if found.excludes_zero else difference} {bounds(found)}".rstrip()


def bounds(found: Interval) -> str:
    """
    Example:
        >>> bounds(Interval(0.021, 0.012, 0.03, 3)), bounds(Interval(0.021, float("nan"), float("nan"), 1))
        ('[+1.2, +3.0]', '')
    """
    return "" if isnan(found.low) else f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def in_words(found: Interval | None) -> str:
    """A difference as a sentence may tell it.

    Example:
        >>> in_words(Interval(0.021, 0.012, 0.03, 3))
        '2.1 points ahead [+1.2, +3.0]'
        >>> in_words(Interval(0.001, -0.01, 0.012, 1))
        'no difference shown, +0.1 [-1.0, +1.2]'
    """
    if found is None:
        return "not compared, as no seed has both"
    if not found.excludes_zero:
        return f"no difference shown, {interval(found)}"
    side = "ahead" if found.difference > 0 else "behind"
    return f"{100 * abs(found.difference):.1f} points {side} {bounds(found)}"


def short(rate: float) -> str:
    """A learning rate as one writes it.

    Example:
        >>> short(0.0001), short(2.5e-5)
        ('1e-4', '2.5e-5')
    """
    return np.format_float_scientific(rate, trim="-", exp_digits=1)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
