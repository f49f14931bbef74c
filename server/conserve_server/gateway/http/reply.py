"""The answer to one client over ASGI: headers once, then bytes, then an end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, Final, Protocol

import msgspec
from starlette.types import Message, Receive, Send

from conserve_server.core.errors import TurnError
from conserve_server.engines.wire import Api
from conserve_server.gateway.http.errors import NOSNIFF, error_body, error_event, error_headers
from conserve_server.gateway.http.refusals import Refusals
from conserve_server.serving.answers.event_stream import is_between_events
from conserve_server.serving.client import REQUEST_ID, ClientStalled

CONNECTION: Final = "conserve_connection"
"""An extension in a scope: a `Connection`."""


class Connection(Protocol):
    """A server that cancels the request's task when the client goes, and tells what needs no wait."""

    @property
    def has_whole_body(self) -> bool:
        """Whether all of the request's body is here."""
        ...

    @property
    def is_writable(self) -> bool:
        """Whether the client has room for more of the answer."""
        ...


class Reply:
    """Writes one answer, errors in the words of `api`. A slow reader holds `write` back; nothing is
    gathered here.

    A client that takes nothing for `write_timeout_s` ends in ClientStalled.
    """

    def __init__(
        self,
        send: Send,
        *,
        api: Api,
        request_id: str,
        write_timeout_s: float,
        connection: Connection | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        self._to_client = send
        self._refusals = refusals
        self._connection = connection
        self._api = api
        self._request_id = request_id
        self._write_timeout_s = write_timeout_s
        self._is_event_stream = False
        self._last = b""
        self.has_started = False
        self.has_finished = False

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        self.has_started = True
        self._is_event_stream = headers.get("content-type", "").startswith("text/event-stream")
        named = {**headers, REQUEST_ID: self._request_id, **NOSNIFF}
        raw = [(name.encode(), value.encode(errors="replace")) for name, value in named.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, chunk: bytes) -> None:
        if chunk:
            self._last = chunk
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def finish(self, last: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": last, "more_body": False})
        self.has_finished = True

    async def _send(self, message: Message) -> None:
        if self._connection is not None and self._connection.is_writable:
            await self._to_client(message)
            return
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await self._to_client(message)
        except TimeoutError:
            raise ClientStalled(
                f"the client took nothing of its answer for {self._write_timeout_s:g} s "
                "(gateway.write_timeout_s)",
                code="client_stalled",
            ) from None

    async def document(self, status: int, document: object, headers: Mapping[str, str]) -> None:
        """A whole JSON answer."""
        await self._whole(status, msgspec.json.encode(document), headers)

    async def _whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        length = {"content-type": "application/json", "content-length": str(len(body))}
        await self.start(status, {**length, **headers})
        await self.finish(body)

    async def fail(self, error: TurnError, headers: Mapping[str, str]) -> None:
        """The error in the API's shape: as the answer, or as the last event of a stream that has begun."""
        if self._refusals is not None:
            self._refusals.note(error)
        if not self.has_started:
            body = error_body(error, self._api)
            await self._whole(error.status, body, {**headers, **error_headers(error)})
            return
        if self._is_event_stream:
            gap = b"" if is_between_events(self._last) else b"\n\n"
            await self.write(gap + error_event(error, self._api))
        await self.finish()

    @property
    def is_writable(self) -> bool:
        """Whether a short write would go out at once, as far as that is known."""
        return self._connection is None or self._connection.is_writable


def read_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """A request's headers by name (lower case, as ASGI gives them); of several the first one counts."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed([*raw])}


async def wait_disconnect(receive: Receive) -> None:
    """Return once the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(serve: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Run `serve` to its end, or cancel it as soon as the client has gone."""
    turn = asyncio.ensure_future(serve)
    gone = asyncio.ensure_future(wait_disconnect(receive))
    try:
        await asyncio.wait({turn, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        turn.cancel()  # nothing, if it is done
        await asyncio.gather(turn, gone, return_exceptions=True)
    if not turn.cancelled():
        turn.result()  # an error that is not a turn's belongs to the application


class ClientGone(Exception):
    """The client hung up before its request was read."""
