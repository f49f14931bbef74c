"""The HTTP server of `conserve serve`: told to stop, it drains first; told twice, it ends at once."""

from __future__ import annotations

import time
from types import FrameType

import uvicorn

from conserve_server.gateway.draining import Draining

CUT_S = 1
"""Whole seconds that turns which were cut off have for their last words."""


class GatewayServer(uvicorn.Server):
    """Goes on listening while it drains, so that live conversations go on and others hear why not."""

    def __init__(self, config: uvicorn.Config, draining: Draining, *, drain_timeout_s: float) -> None:
        super().__init__(config)
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
        if not self._draining.has_begun:
            return False
        now_s = time.monotonic()
        self._stop_at_s = self._stop_at_s or now_s + self._drain_timeout_s
        if self._draining.running_turns and now_s < self._stop_at_s:
            return False
        self._draining.cut()
        return True
