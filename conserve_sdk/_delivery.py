"""Tool boundaries and releases on their way to gateways, in order, behind the agent's back.

One daemon thread, started with the first item and ended when idle, sends what a bounded
outbox holds; when the outbox is full, what comes is dropped and counted.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from conserve_sdk._control import (
    ControlCall,
    Gateway,
    control_client,
    events_call,
    release_call,
    retrying,
    send,
)
from conserve_sdk.protocol import ToolEvent

if TYPE_CHECKING:
    import httpx2

_log = logging.getLogger("conserve_sdk")

CAPACITY: Final = 2048
"""Items that wait at most: a few hundred bytes each."""
EXIT_WAIT_S: Final = 1.5
"""How long the interpreter's exit waits for what has not been sent."""
_IDLE_S: Final = 30.0
_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class Boundary:
    """A tool boundary to be sent; `at_s` is when it happened, on the monotonic clock."""

    gateway: Gateway
    conversation_id: str
    event: ToolEvent
    at_s: float


@dataclass(frozen=True, slots=True)
class Release:
    """The end of a conversation, to be told to a gateway that served it."""

    gateway: Gateway
    conversation_id: str


_Item = Boundary | Release | Future[None]


class Delivery:
    """The outbox and its thread. Everything here returns at once, except `close`."""

    def __init__(
        self,
        *,
        capacity: int = CAPACITY,
        open_client: Callable[[], httpx2.Client] = control_client,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capacity = capacity
        self._open_client = open_client
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Start empty: at first, and in a forked child, whose parent delivers what it held."""
        self._changed = threading.Condition()
        self._items: deque[_Item] = deque()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._dropped = 0
        self._is_failing = False
        self._refused_by: set[str] = set()

    @property
    def dropped(self) -> int:
        """How many items were given up so far: no room, or no gateway that took them."""
        return self._dropped

    def put(self, item: Boundary | Release) -> bool:
        """Take an item to be sent after those before it; False if it was dropped."""
        with self._changed:
            if self._closing.is_set():
                return self._drop(1, "the process is ending")
            if len(self._items) >= self._capacity:
                return self._drop(1, f"{self._capacity} of them wait already")
            return self._append(item) or self._drop(1, "no thread can be started to send them")

    def marker(self) -> Future[None]:
        """A future that is done once everything put before it was sent or given up."""
        future: Future[None] = Future()
        with self._changed:
            if self._thread is None or not self._append(future):
                _settle(future)
        return future

    def flushed(self) -> Future[None]:
        """The marker to wait for; done at once while no gateway takes anything: nobody waits in vain."""
        if not self._is_failing:
            return self.marker()
        future: Future[None] = Future()
        _settle(future)
        return future

    def close(self, timeout_s: float = EXIT_WAIT_S) -> None:
        """Wait for what is under way, at most `timeout_s`, then send nothing more."""
        marker = self.marker()
        try:
            marker.result(timeout_s)
        except TimeoutError:
            _log.debug("gave up on a gateway that takes no events")
        with self._changed:
            self._closing.set()
            self._changed.notify_all()

    def _append(self, item: _Item) -> bool:
        """Queue an item, with a thread to send it; False where the interpreter starts no more threads."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="conserve-delivery", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False
            self._thread = thread
        self._items.append(item)
        self._changed.notify_all()
        return True

    def _drop(self, count: int, why: str) -> bool:
        """Count what is given up, and say so once; always False."""
        if self._dropped == 0:
            _log.warning("tool events and releases are being dropped: %s; the agent is not affected", why)
        self._dropped += count
        return False

    def _run(self) -> None:
        """Send until idle or closed. The client lives as long as the thread."""
        try:
            with self._open_client() as client:
                while batch := self._take():
                    self._deliver(client, batch)
        finally:
            self._let_go()

    def _take(self) -> list[_Item]:
        """The next item, or a run of boundaries of one conversation; empty when the thread shall end."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closing.is_set(), timeout=_IDLE_S)
            if not self._items or self._closing.is_set():
                self._thread = None
                return []
            batch = [self._items.popleft()]
            while len(batch) < _BATCH and self._items and _belong_together(batch[0], self._items[0]):
                batch.append(self._items.popleft())
            return batch

    def _let_go(self) -> None:
        """Leave nobody waiting on a thread that is no more."""
        with self._changed:
            if self._thread is not threading.current_thread() and not self._closing.is_set():
                return
            self._thread = None
            left, self._items = self._items, deque()
        for item in left:
            if isinstance(item, Future):
                _settle(item)

    def _deliver(self, client: httpx2.Client, batch: list[_Item]) -> None:
        first = batch[0]
        if isinstance(first, Future):
            _settle(first)
            return
        try:
            self._send(client, batch)
        except Exception as error:  # noqa: BLE001 - whatever it was, the thread serves the others
            _log.debug("a control call failed", exc_info=True)
            self._is_failing = True
            with self._changed:
                self._drop(len(batch), repr(error))
        else:
            self._is_failing = False

    def _send(self, client: httpx2.Client, batch: list[_Item]) -> None:
        import tenacity

        rule = retrying(
            tenacity.stop_when_event_set(self._closing), sleep=tenacity.sleep_using_event(self._closing)
        )
        # The call is built anew for each attempt: a boundary ages while it waits.
        response = rule(lambda: send(client, self._call(batch)))
        if not response.is_success:
            self._note_refusal(batch[0], response)

    def _note_refusal(self, item: _Item, response: httpx2.Response) -> None:
        """Say once for each gateway that it refuses; that it has forgotten a conversation is no refusal."""
        root = "" if isinstance(item, Future) else item.gateway.root
        is_new = response.status_code != HTTPStatus.NOT_FOUND and root not in self._refused_by
        if is_new:
            self._refused_by.add(root)
        _log.log(
            logging.WARNING if is_new else logging.DEBUG,
            "%s answered %s to %s: tool events and releases are lost where something before the gateway "
            "refuses them; let it pass /v1/conversations as it does model calls",
            root,
            response.status_code,
            response.request.method,
        )

    def _call(self, batch: list[_Item]) -> ControlCall:
        first = batch[0]
        if isinstance(first, Release):
            return release_call(first.gateway, first.conversation_id)
        now_s = self._clock()
        boundaries = [item for item in batch if isinstance(item, Boundary)]
        events = tuple(replace(b.event, elapsed_s=max(0.0, now_s - b.at_s)) for b in boundaries)
        return events_call(boundaries[0].gateway, boundaries[0].conversation_id, events)


def _settle(marker: Future[None]) -> None:
    """Tell whoever waits; one who has stopped waiting has cancelled the marker."""
    if marker.set_running_or_notify_cancel():
        marker.set_result(None)


def _belong_together(first: _Item, other: _Item) -> bool:
    return (
        isinstance(first, Boundary)
        and isinstance(other, Boundary)
        and (first.gateway, first.conversation_id) == (other.gateway, other.conversation_id)
    )


@functools.cache
def process_delivery() -> Delivery:
    """The one delivery of this process: one thread, whose outbox is emptied at exit."""
    delivery = Delivery()
    atexit.register(delivery.close)
    os.register_at_fork(after_in_child=delivery.reset)
    return delivery
