"""Reads a meter that can block in a thread of its own: a driver that hangs never stops the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence

from conserve_server.energy.meter import Meter, Reading

_JOIN_S = 2.0
log = logging.getLogger(__name__)


class Sampler:
    """One thread for one meter, so that readings that hang pile nothing up.

    It reads when it is asked, and in between as often as the meter needs it for its own sake.
    A daemon: a thread that hangs for ever does not keep the process.
    """

    def __init__(self, meter: Meter, now_s: Callable[[], float]) -> None:
        self._meter = meter
        self._now_s = now_s
        self._wake = threading.Event()
        self._is_stopped = False
        self._asked: tuple[asyncio.AbstractEventLoop, asyncio.Future[Sequence[Reading]]] | None = None
        self._thread = threading.Thread(target=self._run, name="energy meter", daemon=True)
        self._thread.start()

    async def read(self, timeout_s: float) -> Sequence[Reading]:
        """Every device now; nothing if the meter does not answer in time. One call at a time."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Sequence[Reading]] = loop.create_future()
        self._asked = loop, future
        self._wake.set()
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            return ()

    async def stop(self) -> None:
        """End the thread and close the meter; one that hangs is left to itself."""
        self._is_stopped = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join, _JOIN_S)
        if self._thread.is_alive():
            log.warning("an energy meter did not answer within %g s and is left", _JOIN_S)

    def _run(self) -> None:
        try:
            while not self._is_stopped:
                self._wake.wait(self._meter.interval_s)
                self._wake.clear()
                if not self._is_stopped:
                    self._answer(self._read())
        finally:
            self._meter.close()

    def _read(self) -> Sequence[Reading]:
        """Nothing where the meter breaks its promise not to raise: the thread must live on."""
        try:
            return self._meter.read(self._now_s())
        except Exception:
            log.exception("an energy meter failed")
            return ()

    def _answer(self, readings: Sequence[Reading]) -> None:
        asked, self._asked = self._asked, None
        if asked is None:
            return
        loop, future = asked
        with contextlib.suppress(RuntimeError):  # the loop was closed while the meter hung
            loop.call_soon_threadsafe(_resolve, future, readings)


def _resolve(future: asyncio.Future[Sequence[Reading]], readings: Sequence[Reading]) -> None:
    if not future.done():
        future.set_result(readings)
