"""The user's own HTTP client as the way of control calls.

What lets its model calls through (a proxy, a client certificate, a socket, an auth flow, a hook)
lets these through as well. It is borrowed and never kept alive: where it can't be used any more,
control calls go by a client of the SDK's own.
"""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    import asyncio

    import httpx2

ClientT = TypeVar("ClientT")

HTTP_PACKAGES: Final = ("httpx2", "httpx")
"""httpx2 is httpx's continuation: clients, requests, answers and hooks are alike."""
CONNECT_TIMEOUT_S: Final = 1.0
REQUEST_TIMEOUT_S: Final = 3.0
_TIMEOUT: Final = (CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S, REQUEST_TIMEOUT_S, CONNECT_TIMEOUT_S)
"""To connect, read, write, and get a connection of the pool: a form that httpx2 and httpx take."""


class CannotCarry(Exception):
    """The client is closed or gone, or its event loop can't be reached from here."""


class Carrier:
    """A client that made a model call."""

    def send(self, method: str, url: str, **options: Any) -> httpx2.Response:
        """One request, from any thread but that of the client's own event loop.

        Raises CannotCarry, or what the client raises.
        """
        raise NotImplementedError

    async def asend(self, method: str, url: str, **options: Any) -> httpx2.Response:
        """`send` for asyncio."""
        raise NotImplementedError

    def sync_client(self) -> httpx2.Client | None:
        """The client, if it is a synchronous one and open."""
        return None

    def async_client(self) -> httpx2.AsyncClient | None:
        """The client, if it is open and of the loop that runs here."""
        return None


class SyncCarrier(Carrier):
    """An `httpx2.Client`, which any thread may use."""

    def __init__(self, client: Any) -> None:
        self._client = weakref.ref(client)

    def send(self, method: str, url: str, **options: Any) -> httpx2.Response:
        return _there(self.sync_client()).request(method, url, timeout=_TIMEOUT, **options)

    async def asend(self, method: str, url: str, **options: Any) -> httpx2.Response:
        import asyncio

        return await asyncio.to_thread(self.send, method, url, **options)

    def sync_client(self) -> httpx2.Client | None:
        return _open(self._client())


class AsyncCarrier(Carrier):
    """An `httpx2.AsyncClient`, which only the loop that made the model call may use."""

    def __init__(self, client: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._client = weakref.ref(client)
        self._loop = weakref.ref(loop)

    def send(self, method: str, url: str, **options: Any) -> httpx2.Response:
        import asyncio

        client, loop = _there(_open(self._client())), self._loop()
        if loop is None or not loop.is_running() or loop is _running_loop():
            raise CannotCarry("the client's event loop can't be waited for from here")
        request = _quietly(client, method, url, **options)
        try:
            sent = asyncio.run_coroutine_threadsafe(request, loop)
        except RuntimeError as error:  # the loop was closed meanwhile
            request.close()
            raise CannotCarry("the client's event loop was closed") from error
        try:
            return sent.result(REQUEST_TIMEOUT_S)
        finally:
            sent.cancel()  # nothing for one that is done

    async def asend(self, method: str, url: str, **options: Any) -> httpx2.Response:
        return await _there(self.async_client()).request(method, url, timeout=_TIMEOUT, **options)

    def async_client(self) -> httpx2.AsyncClient | None:
        return _open(self._client()) if self._loop() is _running_loop() else None

    def is_of(self, client: Any) -> bool:
        """Whether it stands for this client on the loop that runs here."""
        return self._client() is client and self._loop() is _running_loop()


def async_carrier(client: Any, known: AsyncCarrier | None) -> AsyncCarrier | None:
    """The client's carrier here, `known` if it is that; None where no asyncio loop runs (but trio's)."""
    if known is not None and known.is_of(client):
        return known
    loop = _running_loop()
    return None if loop is None else AsyncCarrier(client, loop)


def http_errors() -> tuple[type[Exception], ...]:
    """What a client of the packages that are loaded raises where there is no answer."""
    loaded = [sys.modules[name] for name in HTTP_PACKAGES if name in sys.modules]
    return tuple(module.HTTPError for module in loaded)


async def _quietly(client: httpx2.AsyncClient, method: str, url: str, **options: Any) -> httpx2.Response:
    """One request as a task of its own. A loop that ends meanwhile says nothing of it in the user's log."""
    import asyncio

    task: Any = asyncio.current_task()
    task._log_destroy_pending = False  # noqa: SLF001 - as asyncio's own gather does
    return await client.request(method, url, timeout=_TIMEOUT, **options)


def _open(client: ClientT | None) -> ClientT | None:
    """The client, unless it is gone or closed."""
    untyped: Any = client
    return None if client is None or untyped.is_closed else client


def _there(client: ClientT | None) -> ClientT:
    if client is None:
        raise CannotCarry("the client was closed, or belongs to another event loop")
    return client


def _running_loop() -> asyncio.AbstractEventLoop | None:
    import asyncio

    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
