"""The views of the engines that are up, made anew only for those that have changed since they were read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from math import inf

from conserve_server.scheduling.orders import OrderIndex
from conserve_server.scheduling.policy import EngineView, Order

_UNREAD = EngineView(name="")


class ViewCache:
    """Views in the engines' order. `make` gives one, and when time alone will change it.

    Times never run backwards.
    """

    def __init__(self, make: Callable[[str, float], tuple[EngineView, float]]) -> None:
        self._make = make
        self._places: dict[str, int] = {}
        self._views: list[EngineView] = []
        self._changed: set[str] = set()
        self._unsorted: set[int] = set()
        """Places of views that were made anew since the orders were last brought up to date."""
        self._expiries: list[tuple[float, str]] = []
        self._expiring: set[str] = set()
        """Engines with an entry in `_expiries`: one each, at the latest when the view changes next."""
        self._all: tuple[EngineView, ...] | None = None
        self._indexes: dict[Order, OrderIndex] = {}

    def set_engines(self, names: Iterable[str]) -> None:
        """These engines are up now, in this order."""
        self._places = {name: place for place, name in enumerate(names)}
        self._views = [_UNREAD] * len(self._places)
        self._changed = set(self._places)
        self._unsorted.clear()
        self._all = None
        self._indexes.clear()

    def mark(self, name: str) -> None:
        """The engine's view is no longer what it was."""
        self._changed.add(name)

    def marker(self, name: str) -> Callable[[], None]:
        """`mark` for one engine."""
        return lambda: self._changed.add(name)

    def at(self, now_s: float) -> tuple[EngineView, ...]:
        """All views."""
        self._renew_all(now_s)
        if self._all is None:
            self._all = tuple(self._views)
        return self._all

    def find(self, name: str, now_s: float) -> EngineView | None:
        """One engine's view; None where no such engine is up."""
        place = self._places.get(name)
        if place is None:
            return None
        self._expire(now_s)
        if name in self._changed:
            self._changed.discard(name)
            self._renew(name, place, now_s)
        return self._views[place]

    def ordered(self, order: Order, now_s: float) -> Iterator[EngineView]:
        """The views of an order, which is kept from its first use on."""
        self._renew_all(now_s)
        for place in self._unsorted:
            for kept in self._indexes.values():
                kept.put(place, self._views[place])
        self._unsorted.clear()
        index = self._indexes.get(order)
        if index is None:
            index = self._indexes[order] = OrderIndex(order)
            for place, view in enumerate(self._views):
                index.put(place, view)
        return (self._views[place] for place in index.places())

    def _renew_all(self, now_s: float) -> None:
        self._expire(now_s)
        for name in self._changed:
            place = self._places.get(name)
            if place is not None:  # else it went down
                self._renew(name, place, now_s)
        self._changed.clear()

    def _expire(self, now_s: float) -> None:
        while self._expiries and self._expiries[0][0] <= now_s:
            _, name = heappop(self._expiries)
            self._expiring.discard(name)
            self._changed.add(name)

    def _renew(self, name: str, place: int, now_s: float) -> None:
        view, changes_s = self._make(name, now_s)
        self._views[place] = view
        self._unsorted.add(place)
        self._all = None
        if changes_s < inf and name not in self._expiring:
            self._expiring.add(name)
            heappush(self._expiries, (changes_s, name))
