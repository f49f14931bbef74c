"""A conversation's line to the gateways that serve it, and the bounded waits on it."""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Final

from conserve_sdk._control import Gateway
from conserve_sdk._delivery import Boundary, Delivery, Release
from conserve_sdk._errors import NoGatewaySeen
from conserve_sdk.protocol import ToolEvent

_log = logging.getLogger("conserve_sdk")

HELD_EVENTS: Final = 256
"""Tool boundaries kept until a gateway has answered a model call; the oldest go first."""


class Link:
    """Carries one conversation's events and release to each gateway that saw it."""

    def __init__(self, conversation_id: str, delivery: Delivery) -> None:
        self._conversation_id = conversation_id
        self._delivery = delivery
        self._lock = threading.RLock()
        self._gateways: dict[str, Gateway] = {}
        self._unreleased: set[str] = set()
        self._answering: set[str] = set()
        self._held: deque[tuple[ToolEvent, float]] = deque(maxlen=HELD_EVENTS)
        self._open_calls: dict[str, int] = {}

    @property
    def is_connected(self) -> bool:
        """Whether a gateway has seen the conversation."""
        return bool(self._gateways)

    def connect(self, gateway: Gateway) -> Callable[[], None] | None:
        """A request goes to `gateway`; call what comes back once it has answered, for the first time.

        Only then does the gateway know the conversation: events that overtake the request
        would be refused.
        """
        with self._lock:
            self._gateways.pop(gateway.root, None)
            self._gateways[gateway.root] = gateway
            self._unreleased.add(gateway.root)
            has_answered = gateway.root in self._answering
        return None if has_answered else partial(self._answered, gateway)

    def _answered(self, gateway: Gateway) -> None:
        """From now on events go there, those held so far first."""
        with self._lock:
            self._answering.add(gateway.root)
            while self._held:
                event, at_s = self._held.popleft()
                self._delivery.put(Boundary(gateway, self._conversation_id, event, at_s))

    def emit(self, event: ToolEvent, at_s: float) -> None:
        """Send a boundary that happened at `at_s` (monotonic), or hold it until a gateway has answered.

        A call that two of a framework's hooks report, one around the other, is told once.
        """
        with self._lock:
            if not self._is_outermost(event):
                return
            if not self._answering:
                self._held.append((event, at_s))
            for root in sorted(self._answering):
                self._delivery.put(Boundary(self._gateways[root], self._conversation_id, event, at_s))

    def _is_outermost(self, event: ToolEvent) -> bool:
        open_calls = self._open_calls.pop(event.call_id, 0)
        now_open = open_calls + (1 if event.kind == "start" else -1)
        if now_open > 0:
            self._open_calls[event.call_id] = now_open
        return open_calls + now_open <= 1

    def release(self) -> None:
        """Tell every gateway that saw the conversation since its last release that it has ended."""
        with self._lock:
            for root in sorted(self._unreleased):
                self._delivery.put(Release(self._gateways[root], self._conversation_id))
            self._unreleased.clear()

    def flushed(self) -> Future[None]:
        """Done once everything so far was sent or given up; at once while no gateway takes anything."""
        return self._delivery.flushed()

    def last_gateway(self) -> Gateway:
        """The gateway that served the latest request. Raises NoGatewaySeen."""
        with self._lock:
            if self._gateways:
                return next(reversed(self._gateways.values()))
        raise NoGatewaySeen(
            f"no request of conversation {self._conversation_id} went to a gateway: wrap the client with "
            "conserve_sdk.wrap() and make its calls inside the conversation's block"
        )


def is_on_event_loop() -> bool:
    """Whether an asyncio loop is running in this thread; one that nobody imported is not."""
    if "asyncio" not in sys.modules:
        return False
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def wait(sent: Future[None], timeout_s: float) -> None:
    """Wait a bounded time; what is late stays under way."""
    try:
        sent.result(timeout_s)
    except TimeoutError:
        sent.cancel()
        _log.debug("went on after %s s without the gateway's answer to control calls", timeout_s)


async def wait_async(sent: Future[None], timeout_s: float) -> None:
    """`wait` for asyncio."""
    import asyncio

    here = asyncio.wrap_future(sent)
    try:
        await asyncio.wait([here], timeout=timeout_s)
    finally:
        # Else the answer would be handed to a loop that may be closed by then.
        here.cancel()
