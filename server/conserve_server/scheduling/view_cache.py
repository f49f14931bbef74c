"""The views of the engines that are up, made anew only for those that have changed since they were read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from math import inf

from conserve_server.scheduling.policy import EngineView

_UNREAD = EngineView(name="")


class ViewCache:
    """Views in the engines' order. `make` gives one, and when time alone will change it."""

    def __init__(self, make: Callable[[str, float], tuple[EngineView, float]]) -> None:
        self._make = make
        self._places: dict[str, int] = {}
        self._views: list[EngineView] = []
        self._changed: set[str] = set()
        self._expiries: list[tuple[float, str]] = []
        self._all: tuple[EngineView, ...] = ()

    def set_engines(self, names: Iterable[str]) -> None:
        """These engines are up now, in this order."""
        self._places = {name: place for place, name in enumerate(names)}
        self._views = [_UNREAD] * len(self._places)
        self._changed = set(self._places)
        self._all = ()

    def mark(self, name: str) -> None:
        """The engine's view is no longer what it was."""
        self._changed.add(name)

    def marker(self, name: str) -> Callable[[], None]:
        """`mark` for one engine."""
        return lambda: self._changed.add(name)

    def at(self, now_s: float) -> tuple[EngineView, ...]:
        """All views. Times never run backwards."""
        while self._expiries and self._expiries[0][0] <= now_s:
            self._changed.add(heappop(self._expiries)[1])
        if self._changed:
            self._renew(now_s)
        return self._all

    def _renew(self, now_s: float) -> None:
        for name in self._changed:
            place = self._places.get(name)
            if place is None:
                continue  # it went down
            self._views[place], changes_s = self._make(name, now_s)
            if changes_s < inf:
                heappush(self._expiries, (changes_s, name))
        self._changed.clear()
        self._all = tuple(self._views)
