"""Means of what the steps measure, between one log and the next: summed on the device, read once."""

from collections.abc import Callable

import torch
from torch import Tensor


class RunningMeans:
    """Means of named numbers over the steps since they were last read.

    Adding waits for nothing; reading is one transfer. Values that are not finite are left out of the mean,
    not taken as zero.

    Example:
        >>> means = RunningMeans()
        >>> means.add(("loss",), torch.tensor([1.0]))
        >>> means.add(("loss",), torch.tensor([2.0]))
        >>> means.read()
        {'loss': 1.5}
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}  # names (K,) -> (2, K): sums, and of how many

    def add(self, names: tuple[str, ...], values: Tensor) -> None:
        """values (K,), one for each name."""
        finite = values.isfinite()
        now = torch.stack([values.where(finite, 0), finite.to(values.dtype)])  # (2, K)
        earlier = self._sums.get(names)
        self._sums[names] = now if earlier is None else earlier + now

    def read(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """The means, which start anew; a name without any finite value is left out.

        Args:
            reduce: adds up a tensor over all processes, in which the same names were added; `None` where
                there is one process.
        """
        if not self._sums:
            return {}
        names = [name for group in self._sums for name in group]
        totals = torch.cat(list(self._sums.values()), dim=1)  # (2, K)
        self._sums.clear()
        sums, counts = (totals if reduce is None else reduce(totals)).tolist()
        return {name: total / count for name, total, count in zip(names, sums, counts, strict=True) if count}
