"""What waits to be told to one engine's plugin: a short queue that no turn waits for."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

MAX_KEEPS: Final = 4_096
"""Keeps that wait at once; the oldest are dropped: what they asked for is soon over."""
MAX_RELEASES: Final = 100_000
"""Releases that wait at once, while the engine does not answer. They are a hundred bytes each."""
MAX_FETCHES: Final = 256
"""Fetches that wait at once; the oldest are dropped: their turns come anyway."""
BATCH: Final = 256
FETCH_BATCH: Final = 8
"""Conversations of one fetch, which ends when the last of them is back."""
_GRID: Final = 1.25


class Unkept(Enum):
    """What a conversation gets in place of a keep."""

    REFRESHED = auto()
    OFFLOADED = auto()


@dataclass(frozen=True, slots=True)
class Batch:
    """What is told next. Keeps by their time-out in seconds; one of 0 ends a keep."""

    releases: tuple[str, ...] = ()
    refreshes: tuple[str, ...] = ()
    offloads: tuple[str, ...] = ()
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
        self.calls: frozenset[str] = frozenset()
        self._releases: OrderedDict[str, None] = OrderedDict()
        self._keeps: OrderedDict[str, float | Unkept] = OrderedDict()
        self._fetches: OrderedDict[str, None] = OrderedDict()
        self._work = asyncio.Event()
        self._to_fetch = asyncio.Event()

    @property
    def has_host(self) -> bool:
        """Whether the engine has a host tier."""
        return "offload" in self.calls

    # -- what the engine is ----------------------------------------------------------------------

    def found(
        self, generation: str, *, has_plugin: bool, block_size: int = 1, calls: Collection[str] = ()
    ) -> None:
        """A process answered. What waited for another one is void: its KV went with it.

        `calls`: the plugin's, by name; `offload` and `fetch` are told only to one that has them.
        """
        if not has_plugin or self.generation not in (None, generation):
            for waiting in (self._releases, self._keeps, self._fetches):
                waiting.clear()
        self.generation, self.has_plugin, self.block_size = generation, has_plugin, block_size
        self.calls = frozenset(calls)
        self.cursor = None
        self._wake()

    # -- what it is to be told ---------------------------------------------------------------------

    def release(self, session: str) -> None:
        """The conversation is over; never dropped for another signal."""
        self._keeps.pop(session, None)
        self._fetches.pop(session, None)
        if self.has_plugin is not False:
            self._releases[session] = None
            if len(self._releases) > MAX_RELEASES:
                self._releases.popitem(last=False)
            self._wake()

    def goes_on(self, session: str) -> None:
        """A turn came: a release that still waits is void, and so is a fetch, which the turn does itself."""
        self._releases.pop(session, None)
        self._fetches.pop(session, None)

    def keep(self, session: str, timeout_s: float) -> None:
        """Keep it for so long; 0 ends a keep."""
        self._put(session, timeout_s)

    def refresh(self, session: str) -> None:
        """Make it the last to be evicted, without a promise."""
        self._put(session, Unkept.REFRESHED)

    def offload(self, session: str) -> None:
        """Let it be the next to be evicted, as far as the host has a copy; without a host, a refresh."""
        self._put(session, Unkept.OFFLOADED if self.has_host else Unkept.REFRESHED)

    def fetch(self, session: str) -> None:
        """Bring it back from the host, if the engine can."""
        if "fetch" not in self.calls or session in self._releases:
            return
        self._fetches[session] = None
        self._fetches.move_to_end(session)
        if len(self._fetches) > MAX_FETCHES:
            self._fetches.popitem(last=False)
        self._to_fetch.set()

    # -- telling -----------------------------------------------------------------------------------

    async def next(self) -> Batch:
        """The next signals, once there are some and the engine takes them."""
        while not (self.has_plugin and (self._releases or self._keeps)):
            self._work.clear()
            await self._work.wait()
        return self._take()

    async def next_fetches(self) -> tuple[str, ...]:
        """Those to bring back next, once there are some; what is fetched was asked for longest ago."""
        while not self._fetches:
            self._to_fetch.clear()
            await self._to_fetch.wait()
        count = min(FETCH_BATCH, len(self._fetches))
        return tuple(self._fetches.popitem(last=False)[0] for _ in range(count))

    def put_back(self, batch: Batch) -> None:
        """The engine did not answer: its releases wait again, first. Keeps are asked for anew anyway."""
        for session in reversed(batch.releases):
            self._releases[session] = None
            self._releases.move_to_end(session, last=False)

    def _take(self) -> Batch:
        releases = tuple(
            self._releases.popitem(last=False)[0] for _ in range(min(BATCH, len(self._releases)))
        )
        unkept: dict[Unkept, list[str]] = {each: [] for each in Unkept}
        keeps: dict[float, list[str]] = {}
        for _ in range(min(BATCH, len(self._keeps))):
            session, timeout_s = self._keeps.popitem(last=False)
            if isinstance(timeout_s, Unkept):
                unkept[timeout_s].append(session)
            else:
                keeps.setdefault(_rounded_up(timeout_s), []).append(session)
        by_timeout = {timeout_s: tuple(sessions) for timeout_s, sessions in keeps.items()}
        return Batch(releases, tuple(unkept[Unkept.REFRESHED]), tuple(unkept[Unkept.OFFLOADED]), by_timeout)

    def _put(self, session: str, timeout_s: float | Unkept) -> None:
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
