"""Engines kept in the orders that policies ask for, so that a choice among a thousand reads but a few."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sortedcontainers import SortedList

from conserve_server.scheduling.policy import EngineView, Order

_Entry = tuple[tuple[float, ...], int]


class OrderIndex:
    """The engines of one order, each under its place in the configuration, by which ties break."""

    def __init__(self, order: Order) -> None:
        self._order: Final = order
        self._keys: dict[int, tuple[float, ...]] = {}
        self._sorted: SortedList[_Entry] = SortedList()

    def put(self, place: int, view: EngineView) -> None:
        """The engine at this place looks like that now."""
        key = self._order.key(view) if self._order.takes(view) else None
        before = self._keys.get(place)
        if key == before:
            return
        if before is not None:
            self._sorted.remove((before, place))
        if key is None:
            del self._keys[place]
        else:
            self._keys[place] = key
            self._sorted.add((key, place))

    def places(self) -> Iterator[int]:
        """Places of the engines, the first in the order first."""
        return (place for _, place in self._sorted)
