"""The HTTP server of `conserve serve`: told to stop, it drains first; told twice, it ends at once.

A gateway that can't go on by itself ends at once, too: whoever runs it starts it anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from conserve_server.serving.turns.draining import Draining

CUT_S = 1
"""Whole seconds that turns which were cut off have to send their error."""
log = logging.getLogger(__name__)


class GatewayServer(uvicorn.Server):
    """Goes on listening while it drains, so that live conversations go on and others hear why not."""

    def __init__(
        self,
        config: uvicorn.Config,
        draining: Draining,
        *,
        drain_timeout_s: float,
        problem: Callable[[], str | None],
    ) -> None:
        super().__init__(config)
        self._problem = problem
        self.has_failed = False
        """Whether it ended because the gateway can't go on."""
        self._draining = draining
        self._drain_timeout_s = drain_timeout_s
        self._stop_at_s: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        is_second = self._draining.has_begun
        super().handle_exit(sig, frame)
        self.should_exit = self.force_exit = is_second
        self._draining.begin()

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop serving now; asked ten times a second."""
        if await super().on_tick(counter):
            return True
        problem = self._problem()
        if problem is not None:
            return self._give_up(problem)
        if not self._draining.has_begun:
            return False
        now_s = time.monotonic()
        self._stop_at_s = self._stop_at_s or now_s + self._drain_timeout_s
        if self._draining.running_turns and now_s < self._stop_at_s:
            return False
        self._draining.cut()
        return True

    def _give_up(self, problem: str) -> bool:
        log.critical("%s: the gateway ends", problem)
        self.has_failed = True
        self._draining.cut()
        return True
