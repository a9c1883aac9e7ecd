"""One batch, several exit policies: each row leaves by its own. For callers who choose their threshold."""

from collections.abc import Sequence

from ..arrays import Array, whole_numbers
from ..confidence import all_finite
from ..policy_base import ExitPolicy

# A policy as it was given -> the same, started, and its rows: indices into the batch, ascending.
Groups = dict[ExitPolicy, tuple[ExitPolicy, list[int]]]


class MixedPolicy(ExitPolicy):
    """Rows of a batch, each under the policy that it was given. Rows that were given the same object are
    decided together.

    Args:
        groups: see `of`.
    """

    name = "mixed"
    reads_regression = True  # its policies say what they read

    def __init__(self, groups: Groups):
        self._groups = groups

    @classmethod
    def of(
        cls, policies: Sequence[ExitPolicy], problem_type: str, exit_layers: Sequence[int]
    ) -> "MixedPolicy":
        """A policy for each row -> one for all of them, started.

        Example:
            >>> from modeling_romebert import make_policy
            >>> policies = [make_policy("confidence", threshold=threshold) for threshold in (0.99, 0.6)]
            >>> mixed = MixedPolicy.of(policies, "single_label_classification", [1, 2])
            >>> mixed.leaves(0, torch.tensor([[0.0, 2.0], [0.0, 2.0]]))  # 0.88 sure, both
            tensor([False,  True])
        """
        groups: Groups = {}
        for row, policy in enumerate(policies):
            if policy not in groups:
                groups[policy] = policy.start(len(exit_layers), problem_type, exit_layers), []
            groups[policy][1].append(row)
        return cls(groups)

    def asks(self, exit_index: int) -> bool:
        """Whether any row is asked there."""
        return any(started.asks(exit_index) for started, _ in self._groups.values())

    def leaves(self, exit_index: int, logits: Array) -> Array:
        """logits (B, C) -> (B,)"""
        if len(self._groups) == 1:
            ((started, _),) = self._groups.values()
            return started.leaves(exit_index, logits)
        leaving = all_finite(logits) & False  # (B,)
        for started, rows in self._groups.values():
            if started.asks(exit_index):
                indices = whole_numbers(rows, logits)
                leaving[indices] = started.leaves(exit_index, logits[indices])
        return leaving

    def keep(self, rows: Array | slice) -> None:
        size = sum(len(of_group) for _, of_group in self._groups.values())
        kept = range(size)[rows] if isinstance(rows, slice) else rows.tolist()
        becomes = {old: new for new, old in enumerate(kept)}
        left: Groups = {}
        for policy, (started, of_group) in self._groups.items():
            stay = [index for index, row in enumerate(of_group) if row in becomes]
            if stay:
                started.keep(slice(0, len(of_group)) if len(stay) == len(of_group) else _like(stay, rows))
                left[policy] = started, [becomes[of_group[index]] for index in stay]
        self._groups = left

    def merge(self, policies: Sequence[ExitPolicy]) -> "MixedPolicy":
        parts: dict[ExitPolicy, list[ExitPolicy]] = {}
        rows: dict[ExitPolicy, list[int]] = {}
        begin = 0
        for mixed in policies:
            assert isinstance(mixed, MixedPolicy)
            for policy, (started, of_group) in mixed._groups.items():
                parts.setdefault(policy, []).append(started)
                rows.setdefault(policy, []).extend(begin + row for row in of_group)
            begin += sum(len(of_group) for _, of_group in mixed._groups.values())
        return MixedPolicy(
            {policy: (started[0].merge(started), rows[policy]) for policy, started in parts.items()}
        )


def _like(numbers: list[int], rows: Array | slice) -> Array | slice:
    """Indices in the form in which `keep` was given its own; a slice keeps neighbours."""
    if isinstance(rows, slice):
        return slice(numbers[0], numbers[-1] + 1)
    return whole_numbers(numbers, rows)
