"""One turn and its answer on a connection: what the short cut has in place of uvicorn's own cycle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.types import ASGIApp, Message
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

from conserve_server.core.errors import TurnError, internal_error
from conserve_server.gateway.http.errors import NOSNIFF, api_of, error_document, error_headers
from conserve_server.serving.turns.draining import stopped

READ_AHEAD_BYTES: Final = 1024 * 1024
"""Of a body that nobody reads yet; then the client is held back."""
STATUS_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}

log = logging.getLogger(__name__)


class TurnCycle:
    """One turn and its answer: to uvicorn's protocol what its own `RequestResponseCycle` is."""

    def __init__(
        self,
        transport: asyncio.Transport,
        flow: FlowControl,
        server: ServerState,
        on_response: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._flow = flow
        self._server = server
        self._on_response = on_response
        self._path = ""
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._reader: asyncio.Future[None] | None = None
        self._head: bytes | None = None
        self._has_started = self._is_chunked = False
        self.task: asyncio.Task[None] | None = None
        # What uvicorn's protocol reads and sets:
        self.more_body = self.keep_alive = True
        self.disconnected = self.response_complete = False

    async def run(self, endpoint: ASGIApp, scope: MutableMapping[str, Any]) -> None:
        """Serve the turn to its end, whatever that is."""
        self._path = scope["path"]
        try:
            await endpoint(scope, self.receive, self.send)
        except asyncio.CancelledError:
            self._break_off(stopped())
        except Exception as error:
            log.exception("the gateway failed")
            self._break_off(internal_error(error))
        else:
            if not self.response_complete:
                self._break_off(TurnError("the gateway gave no answer", code="internal_error"))
        finally:
            self.task = None

    # -- what the endpoint may know -------------------------------------------------------------

    @property
    def has_whole_body(self) -> bool:
        return not self.more_body

    @property
    def is_writable(self) -> bool:
        return not self._flow.write_paused

    # -- the request ---------------------------------------------------------------------------

    @property
    def message_event(self) -> TurnCycle:
        """uvicorn sets it when there is something to receive."""
        return self

    def set(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def body_came(self, piece: bytes) -> None:
        if self.response_complete:
            return
        self._body.append(piece)
        self._body_bytes += len(piece)
        if self._body_bytes > READ_AHEAD_BYTES:
            self._flow.pause_reading()
        self.set()

    def client_went(self) -> None:
        """Nobody waits for this turn any more."""
        if self.task is not None:
            self.disconnected = True
            self.task.cancel()

    async def receive(self) -> Message:
        """The next part of the body; the end of a client cancels the turn instead of being told here."""
        while not self._body and self.more_body:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._body_bytes = 0
        self._flow.resume_reading()
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    # -- the answer ----------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """Take an ASGI message; the answer's head goes out with the first piece of its body."""
        if self._flow.write_paused:
            await self._flow.drain()
        if message["type"] == "http.response.start":
            self._head = self._head_of(message["status"], message["headers"])
            return
        piece, is_last = message.get("body", b""), not message.get("more_body", False)
        head, self._head = self._head or b"", None
        self._has_started = True
        if self._is_chunked:
            framed = b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""
            piece = framed + b"0\r\n\r\n" if is_last else framed
        self._transport.write(head + piece if head else piece)
        if is_last:
            self._finish()

    def _head_of(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        parts = [STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        for name, value in (*self._server.default_headers, *headers):
            parts += (name, b": ", value, b"\r\n")
        if b"".join(parts).count(b"\n") != len(parts) // 4 + 1:
            raise RuntimeError("a header of the answer has a line break")
        given = dict(headers)
        self._is_chunked = b"content-length" not in given
        if self._is_chunked:
            parts.append(b"transfer-encoding: chunked\r\n")
        if b"connection" in given:
            self.keep_alive = False  # the gateway names it to close it, and for nothing else
        elif not self.keep_alive:
            parts.append(b"connection: close\r\n")
        return b"".join((*parts, b"\r\n"))

    def _finish(self) -> None:
        self.response_complete = True
        self._body = []
        if not self.keep_alive:
            self._transport.close()
        self._on_response()

    def _break_off(self, error: TurnError) -> None:
        """End an answer that has no end: with an error, or in the middle where it has begun."""
        if self.disconnected or self.response_complete:
            return
        self.keep_alive = False
        if not self._has_started:
            body = msgspec.json.encode(error_document(error, api_of(self._path)))
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            given = {**error_headers(error), **NOSNIFF}
            headers += [(name.encode(), value.encode()) for name, value in given.items()]
            self._transport.write(self._head_of(error.status, headers) + body)
        self._finish()
