"""What waits to be told to one engine's plugin: a short queue that no turn waits for."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

MAX_KEEPS: Final = 4_096
"""Keeps that wait at once; the oldest are dropped: what they asked for is soon over."""
MAX_RELEASES: Final = 100_000
"""Releases that wait at once, while the engine does not answer. They are a hundred bytes each."""
BATCH: Final = 256
_GRID: Final = 1.25


@dataclass(frozen=True, slots=True)
class Batch:
    """What is told next. Keeps by their time-out in seconds; one of 0 ends a keep."""

    releases: tuple[str, ...] = ()
    refreshes: tuple[str, ...] = ()
    keeps: Mapping[float, tuple[str, ...]] = field(default_factory=dict)


class KvLine:
    """One engine's waiting signals, the latest of each conversation.

    They are held while it is not known whether the engine has the plugin (`has_plugin` is
    None), and dropped where it has none. `generation` is the process that this is known of.
    """

    def __init__(self) -> None:
        self.has_plugin: bool | None = None
        self.generation: str | None = None
        self.cursor: int | None = None
        self.block_size = 1
        self._releases: OrderedDict[str, None] = OrderedDict()
        self._keeps: OrderedDict[str, float | None] = OrderedDict()
        self._work = asyncio.Event()

    # -- what the engine is ----------------------------------------------------------------------

    def found(self, generation: str, *, has_plugin: bool, block_size: int = 1) -> None:
        """A process answered. What waited for another one is void: its KV went with it."""
        if self.generation not in (None, generation):
            self._releases.clear()
            self._keeps.clear()
        self.generation, self.has_plugin, self.block_size = generation, has_plugin, block_size
        self.cursor = None
        if not has_plugin:
            self._releases.clear()
            self._keeps.clear()
        self._wake()

    # -- what it is to be told ---------------------------------------------------------------------

    def release(self, session: str) -> None:
        """The conversation is over; never dropped for another signal."""
        self._keeps.pop(session, None)
        if self.has_plugin is not False:
            self._releases[session] = None
            if len(self._releases) > MAX_RELEASES:
                self._releases.popitem(last=False)
            self._wake()

    def goes_on(self, session: str) -> None:
        """A turn came for a conversation that was over: a release that still waits is void."""
        self._releases.pop(session, None)

    def keep(self, session: str, timeout_s: float) -> None:
        """Keep it for so long; 0 ends a keep."""
        self._put(session, timeout_s)

    def refresh(self, session: str) -> None:
        """Make it the last to be evicted, without a promise."""
        self._put(session, None)

    # -- telling -----------------------------------------------------------------------------------

    async def next(self) -> Batch:
        """The next signals, once there are some and the engine takes them."""
        while not (self.has_plugin and (self._releases or self._keeps)):
            self._work.clear()
            await self._work.wait()
        return self._take()

    def put_back(self, batch: Batch) -> None:
        """The engine did not answer: its releases wait again, first. Keeps are asked for anew anyway."""
        for session in reversed(batch.releases):
            self._releases[session] = None
            self._releases.move_to_end(session, last=False)

    def _take(self) -> Batch:
        releases = tuple(
            self._releases.popitem(last=False)[0] for _ in range(min(BATCH, len(self._releases)))
        )
        refreshes: list[str] = []
        keeps: dict[float, list[str]] = {}
        for _ in range(min(BATCH, len(self._keeps))):
            session, timeout_s = self._keeps.popitem(last=False)
            if timeout_s is None:
                refreshes.append(session)
            else:
                keeps.setdefault(_rounded_up(timeout_s), []).append(session)
        by_timeout = {timeout_s: tuple(sessions) for timeout_s, sessions in keeps.items()}
        return Batch(releases, tuple(refreshes), by_timeout)

    def _put(self, session: str, timeout_s: float | None) -> None:
        if self.has_plugin is False or session in self._releases:
            return
        self._keeps[session] = timeout_s
        self._keeps.move_to_end(session)
        if len(self._keeps) > MAX_KEEPS:
            self._keeps.popitem(last=False)
        self._wake()

    def _wake(self) -> None:
        self._work.set()


def _rounded_up(timeout_s: float) -> float:
    """To a few values, so that one call carries many conversations: at most a quarter more."""
    if timeout_s <= 0:
        return 0.0
    return round(_GRID ** math.ceil(math.log(timeout_s, _GRID) - 1e-9), 3)
