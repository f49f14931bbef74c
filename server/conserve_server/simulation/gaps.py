"""Gaps between output tokens, counted in classes one percent wide: millions of them in little memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import exp, floor, log

_WIDTH = log(1.01)
_SHORTEST_S = 1e-9


class Gaps:
    """Counts of gaps by class, the class being the logarithm of the length."""

    def __init__(self) -> None:
        self.counts: defaultdict[int, int] = defaultdict(int)

    def add(self, gap_s: float, count: int = 1) -> None:
        """`count` gaps of so many seconds."""
        self.counts[floor(log(gap_s if gap_s > _SHORTEST_S else _SHORTEST_S) / _WIDTH)] += count

    def merge(self, others: Iterable[Gaps]) -> Gaps:
        """Add all counts of the others; itself."""
        for other in others:
            for of_class, count in other.counts.items():
                self.counts[of_class] += count
        return self

    def __len__(self) -> int:
        return sum(self.counts.values())

    def quantile_s(self, share: float) -> float | None:
        """The gap that so large a share of all does not exceed, to one percent; None without gaps."""
        left = share * len(self)
        for of_class in sorted(self.counts):
            left -= self.counts[of_class]
            if left <= 0:
                return exp((of_class + 0.5) * _WIDTH)
        return None
