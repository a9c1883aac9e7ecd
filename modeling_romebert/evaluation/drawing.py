"""A figure of matplotlib to draw on, or a word on how to get one."""

from typing import Any


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """Inches -> a figure and its axes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'romebert[plot]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()
