"""Weights learned from the meter: which work explains the joules that were metered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from conserve_server.energy.work import AMOUNTS, Weights, Work

_DECAY: Final = 0.995
"""How much of an interval's say is left after the next one: the last few hundred decide."""
_TRUST: Final = 0.05
"""Say of the timing model's relations against the observations'. What no interval tells apart,
such as prefill from decode where both always come together, stays as the model has it."""
_SWEEPS: Final = 30


class FittedWeights:
    """Least squares over past intervals, no weight negative, pulled towards a timing model's.

    What is fitted are factors on the model's weights; with all of them equal the split is the
    model's. A few microseconds an interval.
    """

    def __init__(self, model: Weights) -> None:
        self._model = model.vector
        self._factors = [1.0] * AMOUNTS
        self._squares = [[0.0] * AMOUNTS for _ in range(AMOUNTS)]
        self._products = [0.0] * AMOUNTS
        self.intervals = 0
        """Intervals that were learned from."""

    @property
    def weights(self) -> Weights:
        return Weights(*(w * f for w, f in zip(self._model, self._factors, strict=True)))

    def learn(self, dynamic_j: float, work: Sequence[Work]) -> None:
        """An interval in which this work was done cost so much beyond idle."""
        columns = zip(*(w.amounts for w in work), strict=True)
        seen = [w * sum(column) for w, column in zip(self._model, columns, strict=False)]
        if not any(seen):
            return
        for i, row in enumerate(self._squares):
            self._products[i] = _DECAY * self._products[i] + seen[i] * dynamic_j
            for j in range(AMOUNTS):
                row[j] = _DECAY * row[j] + seen[i] * seen[j]
        self.intervals += 1
        self._solve()

    def _solve(self) -> None:
        """Coordinate descent on (metered − predicted)² + trust · (factor − common factor)²."""
        pull = _TRUST * sum(self._squares[i][i] for i in range(AMOUNTS)) / AMOUNTS
        common = sum(self._products) / sum(map(sum, self._squares))
        if common <= 0:
            return  # nothing was metered beyond idle yet
        factors = self._factors
        for _ in range(_SWEEPS):
            for i, row in enumerate(self._squares):
                others = sum(row[j] * factors[j] for j in range(AMOUNTS) if j != i)
                factors[i] = max((self._products[i] - others + pull * common) / (row[i] + pull), 0.0)
