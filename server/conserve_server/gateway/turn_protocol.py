"""uvicorn's HTTP protocol with a short cut: a turn goes from the parser to its endpoint, and back.

A connection's life, keep-alive, shutdown, and every other route are uvicorn's. Left out is
what a turn does not use and what costs more than all the rest of it: the router and its
middlewares, a second task that watches for the client's end, checks of headers that are our own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, MutableMapping
from http import HTTPStatus
from typing import Any, Final, cast

import msgspec
from starlette.types import ASGIApp, Message
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from conserve_server.core.errors import TurnError
from conserve_server.gateway.draining import stopped
from conserve_server.gateway.errors import api_of, error_document, error_headers
from conserve_server.gateway.reply import CONNECTION

TURN_ROUTES: Final = "conserve_turn_routes"
"""In the lifespan's state: the endpoints of turns by path (bytes)."""
MAX_HEAD_BYTES: Final = 64 * 1024
"""Of a request's line and headers: four identifiers of the longest kind fit."""
HEAD_TIMEOUT_S: Final = 30.0
READ_AHEAD_BYTES: Final = 1024 * 1024
"""Of a body that nobody reads yet; then the client is held back."""
_STATUS_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}

log = logging.getLogger(__name__)


class TurnProtocol(HttpToolsProtocol):
    """One client connection."""

    head_timeout_s = HEAD_TIMEOUT_S
    _turn: TurnCycle | None = None
    _idle_since_s: float | None = None
    _head_since_s: float | None = None
    _head_bytes: int | None = None
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._rest()

    def data_received(self, data: bytes) -> None:
        is_of_a_head = self._head_since_s is not None or self._idle_since_s is not None
        before, self._idle_since_s = self.cycle, None
        super().data_received(data)
        if self._head_since_s is not None and not self.transport.is_closing():
            # What also ends another request is not all head.
            self._wait_for_head(len(data) if is_of_a_head and self.cycle is before else 0)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_since_s, self._head_bytes = self.loop.time(), None

    def on_response_complete(self) -> None:
        if self.pipeline or self._turn is None or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._rest()

    # -- what is not waited for ----------------------------------------------------------------

    def _rest(self) -> None:
        """Between requests, and before the first."""
        self._idle_since_s = self.loop.time()
        if self._timer is None:
            self._timer = self.loop.call_later(self.timeout_keep_alive, self._check)

    def _wait_for_head(self, size: int) -> None:
        """So many bytes of the request's head came, and it has not ended."""
        if self._head_bytes is None:
            self._head_bytes = 0
            if self._timer is not None:
                self._timer.cancel()  # its time is shorter than that of a rest
            self._timer = self.loop.call_later(self.head_timeout_s, self._check)
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            what = f"the request's line and headers are longer than {MAX_HEAD_BYTES} bytes"
            self._refuse(TurnError(f"{what}: send less in headers", code="headers_too_large", status=431))

    def _check(self) -> None:
        """One timer for all waits of the connection: it looks when it rings how long this one has lasted."""
        self._timer = None
        if self.transport.is_closing():
            return
        left_s = self._left_s()
        if left_s is None:
            return
        if left_s > 0 or self._is_answering:  # the answer before it must reach its end
            self._timer = self.loop.call_later(left_s if left_s > 0 else self.head_timeout_s, self._check)
        elif self._head_since_s is None:
            self.transport.close()
        else:
            what = f"the request's headers did not end within {self.head_timeout_s:g} s"
            self._refuse(TurnError(f"{what}: send them at once", code="headers_timeout", status=408))

    def _left_s(self) -> float | None:
        """Seconds that what the connection waits for may still take; None where it waits for nothing."""
        if self._head_since_s is not None:
            return self._head_since_s + self.head_timeout_s - self.loop.time()
        if self._idle_since_s is not None:
            return self._idle_since_s + self.timeout_keep_alive - self.loop.time()
        return None

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: TurnError) -> None:
        """Answer a request that has no end, and hang up; within another answer nothing can be said."""
        if self._is_answering:
            self.transport.close()
            return
        body = msgspec.json.encode(error_document(error, api_of(self.url.decode("latin-1"))))
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(
            body
        )
        self.transport.write(_STATUS_LINES[error.status] + head + body)
        self.transport.close()

    # -- the parser's reports --------------------------------------------------------------------

    def on_headers_complete(self) -> None:
        self._head_since_s = None
        endpoint = self._endpoint()
        if endpoint is None:
            super().on_headers_complete()
            return
        scope = cast(MutableMapping[str, Any], self.scope)
        cycle = TurnCycle(self.transport, self.flow, self.server_state, self.on_response_complete)
        path = {"path": self.url.decode("ascii"), "raw_path": self.url, "query_string": b""}
        scope.update({"method": "POST", **path, "extensions": {CONNECTION: cycle}})
        cycle.keep_alive = self.parser.should_keep_alive()
        self._turn = cycle
        self.cycle = cast(RequestResponseCycle, cycle)
        task = cycle.task = self.loop.create_task(cycle.run(endpoint, scope))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def on_body(self, body: bytes) -> None:
        cycle = cast(object, self.cycle)
        if isinstance(cycle, TurnCycle):
            cycle.body_came(body)
        else:
            super().on_body(body)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()
        if self._turn is not None:
            self._turn.client_went()

    def _endpoint(self) -> ASGIApp | None:
        """The turn's endpoint, if the request is a plain turn: what is special in any way is uvicorn's."""
        routes = cast(Mapping[bytes, ASGIApp], self.app_state.get(TURN_ROUTES, {}))
        endpoint = routes.get(self.url)
        if (
            endpoint is None
            or self._is_answering
            or self.expect_100_continue
            or self.limit_concurrency is not None
        ):
            return None
        parser = self.parser
        if parser.get_method() != b"POST" or parser.get_http_version() != "1.1" or parser.should_upgrade():
            return None
        # What a browser sends is for the application's middlewares.
        return None if b"origin" in dict(self.headers) else endpoint


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
            self._break_off(TurnError(f"the gateway failed: {type(error).__name__}", code="internal_error"))
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
        parts = [_STATUS_LINES[status]]
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
            headers += [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
            self._transport.write(self._head_of(error.status, headers) + body)
        self._finish()
