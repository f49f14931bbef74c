"""The gateway's loops: each goes on after whatever goes wrong in it, and everybody can see that it did.

A loop that fails is logged, counted, and begun again after a short while; it ends when it is told to.
The one fault that is left is that a loop, or all of them, have ended without being told: then the
gateway is blind (nothing looks at engines, nothing expires), and `problem` says so until it is
restarted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from conserve_server.core.clock import Clock

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
"""Between two beginnings of a loop that fails again and again."""
WELL_AFTER_S: Final = 60.0
"""A loop that ran for so long begins anew without a longer pause."""
MAX_REASON: Final = 300
"""Characters of a failure that are kept."""

log = logging.getLogger(__name__)

Work = Callable[[], Awaitable[None]]


@dataclass(slots=True, eq=False)
class Loop:
    """One loop: what it does, for which engine, and how it has fared."""

    name: str
    engine: str | None
    failures: int = 0
    last_failure: str | None = None
    is_told_to_stop: bool = False
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.name if self.engine is None else f"{self.name} of {self.engine}"

    @property
    def runs(self) -> bool:
        return self.task is not None and not self.task.done()

    def stop(self) -> None:
        """End it."""
        self.is_told_to_stop = True
        if self.task is not None:
            self.task.cancel()

    def describe(self) -> dict[str, Any]:
        """The loop as JSON."""
        return {
            "loop": self.name,
            "engine": self.engine,
            "runs": self.runs,
            "failures": self.failures,
            "last_failure": self.last_failure,
        }


class Background:
    """All loops of one gateway."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._count: Callable[[str], None] = _count_nothing
        self._group: asyncio.TaskGroup | None = None
        self._loops: list[Loop] = []
        self.problem: str | None = None
        """Why the gateway must not go on; None while all that was begun runs."""

    @asynccontextmanager
    async def running(self, count: Callable[[str], None]) -> AsyncIterator[None]:
        """Loops can be kept inside; leaving it ends them all.

        `count` hears the name of a loop that failed, once a failure.
        """
        self._count = count
        async with asyncio.TaskGroup() as self._group:
            try:
                yield
            except BaseException:
                self._note("the gateway's background work has ended")
                raise
            finally:
                self._group = None
                for loop in tuple(self._loops):
                    loop.stop()

    def keep(self, name: str, work: Work, *, engine: str | None = None) -> Loop:
        """Carry out `work`, which goes on for ever, until the loop is told to stop."""
        if self._group is None:
            raise RuntimeError("loops are kept once the gateway's background work has begun")
        loop = Loop(name, engine)
        self._loops.append(loop)
        loop.task = self._group.create_task(self._guard(loop, work), name=str(loop))
        loop.task.add_done_callback(lambda _task: self._ended(loop))
        return loop

    def describe(self) -> list[dict[str, Any]]:
        """Every loop as JSON."""
        return [loop.describe() for loop in self._loops]

    async def _guard(self, loop: Loop, work: Work) -> None:
        pause_s = FIRST_PAUSE_S
        while not loop.is_told_to_stop:
            begun_s = self._clock.now_s()
            try:
                await work()
                raise RuntimeError("it ended by itself")
            except asyncio.CancelledError as error:
                if _is_cancelled():
                    raise
                self._failed(loop, error)  # something that it waited for was cancelled
            except Exception as error:  # noqa: BLE001 - whatever it is, the loop goes on
                self._failed(loop, error)
            if self._clock.now_s() - begun_s >= WELL_AFTER_S:
                pause_s = FIRST_PAUSE_S
            await self._clock.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _failed(self, loop: Loop, error: BaseException) -> None:
        loop.failures += 1
        loop.last_failure = f"{type(error).__name__}: {error}"[:MAX_REASON]
        log.error("%s failed and goes on: %s", loop, loop.last_failure, exc_info=error)
        self._count(loop.name)

    def _ended(self, loop: Loop) -> None:
        if loop.is_told_to_stop:
            self._loops.remove(loop)
        else:
            self._note(f"a loop has ended: {loop}")

    def _note(self, problem: str) -> None:
        if self.problem is None:
            self.problem = problem
            log.critical("%s: this gateway must be restarted", problem)


def _is_cancelled() -> bool:
    """Whether this task itself was told to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _count_nothing(_loop: str) -> None:
    """Until somebody counts."""
