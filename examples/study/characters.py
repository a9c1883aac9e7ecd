"""Answers and labels as text, which keeps a result's file small: digits of base 36, one for a class, two for
a number. NumPy alone, so that the report loads no torch.
"""

import string

import numpy as np

DIGITS = string.digits + string.ascii_lowercase


def of_classes(classes: np.ndarray) -> str:
    """(N,) class ids below 36 -> N characters.

    Example:
        >>> of_classes(np.array([0, 1, 11]))
        '01b'
    """
    return "".join(DIGITS[one] for one in classes.tolist())


def of_numbers(numbers: np.ndarray) -> str:
    """(N,) numbers -> two characters each: where it lies between the least, 00, and the greatest, zz. That is
    enough for a correlation, to which scales are all alike.

    Example:
        >>> of_numbers(np.array([2.0, 3.0, 4.0]))
        '00i0zz'
    """
    span = float(np.ptp(numbers)) or 1.0
    levels = np.rint((numbers - numbers.min()) / span * (len(DIGITS) ** 2 - 1)).astype(int)
    return "".join(DIGITS[level // len(DIGITS)] + DIGITS[level % len(DIGITS)] for level in levels.tolist())


def read(text: str, rows: int) -> np.ndarray:
    """Text of so many rows -> (N,): class ids, or numbers between 0 and 36 ** 2 - 1.

    Example:
        >>> read("01b", rows=3).tolist(), read("00i0zz", rows=3).tolist()
        ([0.0, 1.0, 11.0], [0.0, 648.0, 1295.0])
    """
    codes = np.frombuffer(text.encode(), np.uint8).reshape(rows, -1).astype(float)
    digits = np.where(codes < ord("a"), codes - ord("0"), codes - ord("a") + 10)
    return digits @ float(len(DIGITS)) ** np.arange(digits.shape[1])[::-1]
