"""What a domain draws with nothing to do: as configured, else learned while nothing ran."""

from __future__ import annotations

from typing import Final

_NEWEST: Final = 0.2


class IdleWatts:
    """Watts, and how they are known (`how`).

    A resident model keeps a GPU's clocks up, so what was published for the bare GPU gives way
    to the first idle interval. Without either, the least that was ever seen bounds it.
    """

    def __init__(self, configured_w: float | None, published_w: float | None) -> None:
        self._configured_w = configured_w
        self._published_w = published_w
        self._learned_w: float | None = None
        self._least_w: float | None = None

    @property
    def how(self) -> str:
        if self._configured_w is not None:
            return "configured"
        if self._learned_w is not None:
            return "learned while nothing ran"
        return "published" if self._published_w is not None else "the least that was seen"

    @property
    def watts(self) -> float:
        for known in (self._configured_w, self._learned_w, self._published_w, self._least_w):
            if known is not None:
                return known
        return 0.0

    def observe(self, watts: float, *, was_idle: bool) -> None:
        """An interval's mean watts."""
        self._least_w = watts if self._least_w is None else min(self._least_w, watts)
        if was_idle:
            before_w = watts if self._learned_w is None else self._learned_w
            self._learned_w = before_w + _NEWEST * (watts - before_w)
