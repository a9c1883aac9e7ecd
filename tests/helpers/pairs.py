"""Fewer rows than a product of settings has, where settings do not depend on each other."""

import itertools
from typing import Any

import pytest


def pairwise(*choices: list) -> list[tuple]:
    """Rows of a value of each list, such that any two values of two lists are together in one of the rows.

    >>> pairwise([1, 2], "ab", "xy")
    [(1, 'a', 'x'), (1, 'b', 'y'), (2, 'a', 'y'), (2, 'b', 'x')]
    """

    def pairs(row):
        return set(itertools.combinations(enumerate(row), 2))

    product = list(itertools.product(*(range(len(values)) for values in choices)))
    left, rows = set().union(*map(pairs, product)), []
    while left:
        rows.append(max(product, key=lambda row: len(left & pairs(row))))
        left -= pairs(rows[-1])
    return [tuple(values[index] for values, index in zip(choices, row, strict=True)) for row in sorted(rows)]


def in_turn(*choices: list) -> list[tuple]:
    """As many rows as the longest list has values, of which the others take turns.

    >>> in_turn([1, 2, 3], "ab")
    [(1, 'a'), (2, 'b'), (3, 'a')]
    """
    longest = max(map(len, choices))
    return [tuple(values[index % len(values)] for values in choices) for index in range(longest)]


def others_slow(first: Any, *others: Any) -> list:
    """The first value at every edit, the others in the slow tests."""
    return [first, *(pytest.param(value, marks=pytest.mark.slow) for value in others)]


def short(value: Any) -> str:
    """A policy by its name, anything else as it is printed: for the names of tests."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return str(name or getattr(value, "__name__", value))
