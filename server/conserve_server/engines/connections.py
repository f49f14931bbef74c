"""The keep-alive connections to one engine: as many as requests run at once, reused while they are fresh."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Final
from urllib.parse import urlsplit

from conserve_server.core.errors import EngineFailed
from conserve_server.engines.access import Access
from conserve_server.engines.connection import Connection, Response, StaleConnection, lost
from conserve_server.engines.reasons import why_unreachable

CONNECT_TIMEOUT_S: Final = 5.0
IDLE_S: Final = 4.0
"""A connection idle for longer is not used again: vLLM closes its own after 5 s."""


class Connections:
    """Connections to one base URL. Their number is bounded by the scheduler, not here."""

    def __init__(
        self, engine: str, url: str, *, silence_timeout_s: float, access: Access | None = None
    ) -> None:
        parts = urlsplit(url)
        self._engine = engine
        self._host = parts.hostname or ""
        is_tls = parts.scheme == "https"
        self._access = access or Access(tls=ssl.create_default_context() if is_tls else None)
        self._port = parts.port or (443 if is_tls else 80)
        self._prefix = parts.path.rstrip("/")
        self._host_header = parts.netloc.rpartition("@")[2]
        self._silence_timeout_s = silence_timeout_s
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()

    def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Request:
        """A request, sent when it is entered. Raises ValueError for a header with a line break."""
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if lines.count("\n") != len(headers) or "\n" in path:
            raise ValueError(f"a line break in the path or a header of a request to {self._host_header}")
        first = f"{method} {self._prefix}{path} HTTP/1.1\r\nhost: {self._host_header}\r\n"
        if self._access.authorization is not None:
            lines += f"authorization: {self._access.authorization}\r\n"
        return Request(self, f"{first}{lines}content-length: {len(body)}\r\n\r\n".encode(), body)

    def close(self) -> None:
        """Close all, also those in use."""
        for connection in tuple(self._open):
            connection.abort()

    async def begin(self, head: bytes, body: bytes) -> tuple[Connection, Response]:
        """Send the request, once more on a new connection if a reused one turns out to be stale."""
        connection = self._fresh()
        was_sent = connection is not None
        if connection is not None:
            try:
                return connection, await connection.send(head, body)
            except StaleConnection:
                pass  # or the engine ended at the request: then nobody answers now
        try:
            connection = await self._connect()
        except EngineFailed as error:
            error.was_asked = was_sent
            raise
        return connection, await connection.send(head, body)

    def give_back(self, connection: Connection) -> None:
        """The caller is done with its answer."""
        if connection.done():
            self._idle.append(connection)
            self._close_stale(connection.idle_since_s)

    def _fresh(self) -> Connection | None:
        """The one used last: it is the least likely to be closed."""
        self._close_stale(asyncio.get_running_loop().time())
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
        return None

    def _close_stale(self, now_s: float) -> None:
        while self._idle and now_s - self._idle[0].idle_since_s > IDLE_S:
            self._idle.popleft().abort()

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()

        def make() -> Connection:
            return Connection(
                loop, self._engine, silence_timeout_s=self._silence_timeout_s, on_close=self._open.discard
            )

        tls = self._access.tls
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(make, self._host, self._port, ssl=tls)
        except TimeoutError as error:
            raise lost(
                self._engine, f"no connection within {CONNECT_TIMEOUT_S:g} s", was_asked=False
            ) from error
        except OSError as error:
            why = why_unreachable(error, is_tls=tls is not None)
            raise lost(self._engine, why, was_asked=False) from error
        if connection.is_usable:
            self._open.add(connection)
        return connection


class Request:
    """`async with` sends it; leaving early, before the answer was read to its end, cancels it."""

    def __init__(self, connections: Connections, head: bytes, body: bytes) -> None:
        self._connections = connections
        self._head = head
        self._body = body

    async def __aenter__(self) -> Request:
        self._connection, self._response = await self._connections.begin(self._head, self._body)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connections.give_back(self._connection)

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Of the answer, names in lower case."""
        return self._response.headers

    def chunks(self) -> AsyncIterator[bytes]:
        """The answer's body as it arrives. Raises EngineFailed if the engine breaks off."""
        return self._connection.pieces(self._response)
