"""Heads of streams whose first token is long in coming, so that nobody between gives up.

Clients and proxies wait for the first byte of an answer, some not for long. A streamed turn that
still waits for room, its prefill or its first token after a while gets its head, and comments after
it, which readers of server-sent events skip (WHATWG HTML, 9.2.6).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from conserve_server.core.clock import Clock
from conserve_server.serving.client import Client
from conserve_server.serving.turns.live import LiveTurn

COMMENT: Final = b": the answer is on its way\n\n"
_LOOKS: Final = 4
"""How often turns are looked at within the time after which they get a sign of life."""


@dataclass(slots=True)
class _Waiting:
    live: LiveTurn
    client: Client
    said_s: float


class StreamHeads:
    """One loop for all turns that wait: a timer for each would cost every turn what few need."""

    def __init__(self, clock: Clock, after_s: float) -> None:
        self._clock = clock
        self._after_s = after_s
        self._waiting: dict[int, _Waiting] = {}

    @contextmanager
    def waiting(self, live: LiveTurn, client: Client) -> Iterator[None]:
        """While the block runs the turn may be long in coming; nothing for one that is not streamed."""
        if not live.request.is_streamed:
            yield
            return
        self._waiting[live.turn.id] = _Waiting(live, client, live.arrived_s)
        try:
            yield
        finally:
            del self._waiting[live.turn.id]

    async def run(self) -> None:
        """Give signs of life for ever."""
        while True:
            await self._clock.sleep(self._after_s / _LOOKS)
            await self.look(self._clock.now_s())

    async def look(self, now_s: float) -> None:
        """Write to those whose client has heard nothing for long, and can hear something."""
        for turn_id, each in tuple(self._waiting.items()):
            # A write may have taken a while, and this turn has gone on meanwhile.
            if turn_id in self._waiting and self._is_due(each, now_s):
                await self._say(each, now_s)

    async def _say(self, each: _Waiting, now_s: float) -> None:
        each.said_s = now_s
        if not each.client.has_started:
            await each.client.start(200, _headers(each.live))
        await each.client.write(COMMENT)

    def _is_due(self, each: _Waiting, now_s: float) -> bool:
        is_silent = not each.live.is_passed_on and now_s - each.said_s >= self._after_s
        return is_silent and each.client.is_writable and not each.client.has_finished


def _headers(live: LiveTurn) -> dict[str, str]:
    return {"content-type": "text/event-stream", "cache-control": "no-store", **live.receipt()}
