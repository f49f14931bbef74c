"""Means and rates of what was observed: over a window of time, or smoothed over the last few."""

from __future__ import annotations

from collections import deque
from math import inf


class Window:
    """Amounts of the last `span_s` seconds, with the weights that they were observed with."""

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._seen: deque[tuple[float, float, float]] = deque()
        self._amount = 0.0
        self._weight = 0.0

    def add(self, now_s: float, amount: float, weight: float = 1.0) -> None:
        self._seen.append((now_s, amount, weight))
        self._amount += amount
        self._weight += weight
        self._forget(now_s)

    def mean(self, now_s: float) -> float | None:
        """Amount per weight; None where nothing was observed in the window."""
        self._forget(now_s)
        return self._amount / self._weight if self._weight > 0 else None

    def rate_per_s(self, now_s: float) -> float:
        """Amount per second of the window."""
        self._forget(now_s)
        return self._amount / self._span_s

    @property
    def changes_s(self) -> float:
        """When the next observation leaves the window, if none comes before; never (infinity) without any."""
        return self._seen[0][0] + self._span_s if self._seen else inf

    def _forget(self, now_s: float) -> None:
        seen = self._seen
        while seen and seen[0][0] <= now_s - self._span_s:
            _, amount, weight = seen.popleft()
            self._amount -= amount
            self._weight -= weight
        if not seen:
            self._amount = self._weight = 0.0  # whatever rounding has left


class Smoothed:
    """A value that follows its observations; `start` until there is one."""

    def __init__(self, start: float, newest_weight: float) -> None:
        self._newest_weight = newest_weight
        self._has_any = False
        self.value = start

    def add(self, observed: float) -> None:
        """The first observation replaces the start, later ones are weighed in."""
        weight = self._newest_weight if self._has_any else 1.0
        self.value += weight * (observed - self.value)
        self._has_any = True


class RunningMean:
    """The mean of all observations; `start` until there is one."""

    def __init__(self, start: float) -> None:
        self._count = 0
        self.value = start

    def add(self, observed: float) -> None:
        self._count += 1
        self.value = observed if self._count == 1 else self.value + (observed - self.value) / self._count
