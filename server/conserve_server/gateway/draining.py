"""The end of the gateway: nothing new is begun, what runs may end, what is left is told so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from conserve_server.core.errors import NoCapacity

RETRY_AFTER_S = 5.0
"""What a balancer needs to see `/health` and send the client elsewhere."""


class Draining:
    """Which turns run, and whether the gateway was told to stop."""

    def __init__(self) -> None:
        self._turns: set[asyncio.Timeout] = set()
        self.has_begun = False

    @property
    def running_turns(self) -> int:
        """Turns that run or wait."""
        return len(self._turns)

    def begin(self) -> None:
        """From now on no conversation begins; live ones go on."""
        self.has_begun = True

    def check_new(self) -> None:
        """Raises NoCapacity (503) for a conversation that would begin now."""
        if self.has_begun:
            raise NoCapacity(
                "this gateway is stopping and begins no conversation: try again, another one answers then",
                code="gateway_draining",
                retry_after_s=RETRY_AFTER_S,
            )

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One turn. Raises NoCapacity in the block when it has been cut off."""
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._turns.add(limit)
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise NoCapacity(
                "the gateway was stopped before this turn had ended: send it again",
                code="gateway_stopped",
                retry_after_s=RETRY_AFTER_S,
            ) from error
        finally:
            self._turns.discard(limit)

    def cut(self) -> None:
        """The time is over: every turn that still runs fails, and its client is told."""
        now_s = asyncio.get_running_loop().time()
        for limit in self._turns:
            limit.reschedule(now_s)
