"""The user's own HTTP client as the way of control calls.

What lets its model calls through (a proxy, a client certificate, a socket, an auth flow, a hook)
lets these through as well. It is borrowed and never kept alive: where it can't be used any more,
control calls go by a client of the SDK's own.
"""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio

    import httpx2

HTTP_PACKAGES: Final = ("httpx2", "httpx")
"""httpx2 is httpx's continuation: clients, requests, answers and hooks are alike."""
CONNECT_TIMEOUT_S: Final = 1.0
REQUEST_TIMEOUT_S: Final = 3.0
_TIMEOUT: Final = (CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S, REQUEST_TIMEOUT_S, CONNECT_TIMEOUT_S)
"""To connect, read, write, and get a connection of the pool: a form that httpx2 and httpx take."""


class CannotCarry(Exception):
    """The client is closed or gone, or its event loop can't be reached from here."""


class Carrier:
    """A client that made a model call. All raise CannotCarry, or what the client raises."""

    def send(self, method: str, url: str, **options: Any) -> httpx2.Response:
        """One request, from any thread but that of the client's own event loop."""
        raise NotImplementedError

    async def asend(self, method: str, url: str, **options: Any) -> httpx2.Response:
        """`send` for asyncio."""
        raise NotImplementedError

    def sync_client(self) -> httpx2.Client:
        """The client, to stream with."""
        raise CannotCarry("the client is an asynchronous one")

    def async_client(self) -> httpx2.AsyncClient:
        """The client, to stream with on the loop that runs here."""
        raise CannotCarry("the client is a synchronous one")


class SyncCarrier(Carrier):
    """An `httpx2.Client`, which any thread may use."""

    def __init__(self, client: Any) -> None:
        self._client = weakref.ref(client)

    def send(self, method: str, url: str, **options: Any) -> httpx2.Response:
        return self.sync_client().request(method, url, timeout=_TIMEOUT, **options)

    async def asend(self, method: str, url: str, **options: Any) -> httpx2.Response:
        import asyncio

        return await asyncio.to_thread(self.send, method, url, **options)

    def sync_client(self) -> httpx2.Client:
        client: httpx2.Client = _open(self._client())
        return client


class AsyncCarrier(Carrier):
    """An `httpx2.AsyncClient`, which only the loop that made the model call may use."""

    def __init__(self, client: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._client = weakref.ref(client)
        self._loop = weakref.ref(loop)

    def send(self, method: str, url: str, **options: Any) -> httpx2.Response:
        import asyncio

        client, loop = _open(self._client()), self._loop()
        if loop is None or not loop.is_running() or loop is _running_loop():
            raise CannotCarry("the client's event loop can't be waited for from here")
        sent = asyncio.run_coroutine_threadsafe(_request(client, method, url, options), loop)
        try:
            return sent.result(REQUEST_TIMEOUT_S)
        finally:
            sent.cancel()  # nothing for one that is done

    async def asend(self, method: str, url: str, **options: Any) -> httpx2.Response:
        return await _request(self.async_client(), method, url, options)

    def async_client(self) -> httpx2.AsyncClient:
        if self._loop() is not _running_loop():
            raise CannotCarry("the client belongs to another event loop")
        client: httpx2.AsyncClient = _open(self._client())
        return client

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


async def _request(client: Any, method: str, url: str, options: dict[str, Any]) -> httpx2.Response:
    import asyncio

    # A loop that is closed while this is under way would complain of it in the user's log.
    task: Any = asyncio.current_task()
    task._log_destroy_pending = False  # noqa: SLF001 - as asyncio's own gather does
    response: httpx2.Response = await client.request(method, url, timeout=_TIMEOUT, **options)
    return response


def _open(client: Any) -> Any:
    """The client. Raises CannotCarry for one that is gone or closed."""
    if client is None or client.is_closed:
        raise CannotCarry("the client was closed")
    return client


def _running_loop() -> asyncio.AbstractEventLoop | None:
    import asyncio

    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
