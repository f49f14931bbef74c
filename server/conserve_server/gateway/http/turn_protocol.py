"""uvicorn's HTTP protocol with a short cut: a turn goes from the parser to its endpoint, and back.

A connection's life, shutdown, and every other route are uvicorn's; how long a client is
waited for (`waits.py`) and how much it may send beside a body are the same for all routes. Left
out of a turn is what it does not use and what costs more than all the rest of it: the router and
its middlewares, a second task that watches for the client's end, checks of headers that are our own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, NoReturn, cast

import httptools
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from conserve_server.core.errors import InvalidRequest, NoCapacity, TurnError
from conserve_server.gateway.http.connections import (
    CHUNK_BYTES,
    CONNECTION_LIMITS,
    DRAIN_TIMEOUT_S,
    GRACE_S,
    HEAD_TIMEOUT_S,
    MAX_FRAMING_BYTES,
    MAX_HEAD_BYTES,
    MAX_PIPELINED,
    ConnectionLimits,
    head_too_large,
    malformed,
    refusal,
)
from conserve_server.gateway.http.plain_head import plain_head
from conserve_server.gateway.http.reply import CONNECTION
from conserve_server.gateway.http.turn_cycle import TurnCycle
from conserve_server.gateway.http.waits import MAX_DRAINED_BYTES, Bounds, Over, Waits

TURN_ROUTES: Final = "conserve_turn_routes"
"""In the lifespan's state: the endpoints of turns by path (bytes)."""
LOOK_S: Final = 60.0
"""Longest time between two looks at a connection's waits."""


class TurnProtocol(HttpToolsProtocol):
    """One client connection."""

    head_timeout_s = HEAD_TIMEOUT_S
    drain_timeout_s = DRAIN_TIMEOUT_S
    grace_s = GRACE_S
    url = b""
    _turn: TurnCycle | None = None
    _timer: asyncio.TimerHandle | None = None
    _rings_at_s = 0.0
    _waits: Waits
    _limits: ConnectionLimits
    _refusal: TurnError | None = None
    _upgrade: tuple[bytes, str] | None = None
    """Method and version of a request that asks for another protocol, which it does not get."""
    _messages = _body_bytes = _chunks = 0
    """Seen so far on the connection."""
    _segment_bytes = _head_bytes = _framing_bytes = _drained_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._limits = limits = self.app_state.get(CONNECTION_LIMITS) or ConnectionLimits()
        bounds = Bounds(
            idle_s=self.timeout_keep_alive,
            head_s=self.head_timeout_s,
            body_s=limits.body_timeout_s + self.grace_s,
            drain_s=self.drain_timeout_s,
            write_s=limits.write_timeout_s + self.grace_s,
        )
        self._waits = Waits(bounds, self.loop.time())
        self._watch(self._waits.due_s())
        if len(self.connections) > limits.max_connections:
            what = f"{limits.max_connections} connections are open already (gateway.max_connections)"
            self._refuse(NoCapacity(f"{what}: try again later", code="too_many_connections"))

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        before, was_body = self._seen, self._waits.is_reading_body
        self._segment_bytes = len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._refuse(self._refusal or malformed(error))
            return
        if self._waits.is_reading_head:
            begun = self._messages - before[0]
            # What also ends another request is not all head.
            self._head_goes_on(len(data) if begun == 0 or (begun == 1 and not was_body) else 0)
        elif self._waits.is_reading_body:
            self._body_goes_on(len(data), before)

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade() + data[upgrade.args[0] :]
            else:
                return

    def _without_upgrade(self) -> bytes:
        """The head that asked for another protocol as one that does not, for a new parser."""
        (method, version), self._upgrade = self._upgrade or (b"", ""), None
        if method == b"CONNECT":
            wrong = "CONNECT is not served: this gateway is no proxy"
            self._stop(InvalidRequest(wrong, code="no_such_route", status=405))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        return plain_head(method, self.url, version, self.headers)

    # -- what is not waited for ----------------------------------------------------------------

    def _watch(self, due_s: float) -> None:
        """Look at `due_s` at the latest. One timer for all waits, which are looked at when it rings."""
        if self._timer is not None:
            if self._rings_at_s <= due_s:
                return
            self._timer.cancel()
        self._rings_at_s = due_s
        self._timer = self.loop.call_at(due_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now_s, transport = self.loop.time(), self.transport
        size, is_held = transport.get_write_buffer_size(), self.flow.write_paused
        over = self._waits.over(size, is_held=is_held, is_closing=transport.is_closing(), now_s=now_s)
        if over is Over.WRITING:
            transport.abort()
            return
        if over is not None:
            self._end(over)
        self._watch(self._waits.look_at_s(now_s + LOOK_S, is_closing=transport.is_closing()))

    def _end(self, over: Over) -> None:
        if over is Over.HEAD:
            what = f"the request's headers did not end within {self.head_timeout_s:g} s"
            self._refuse(TurnError(f"{what}: send them at once", code="headers_timeout", status=408))
        else:
            self.transport.close()

    def _head_goes_on(self, size: int) -> None:
        """So many bytes of the request's head came, and it has not ended."""
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(head_too_large())
        else:
            self._watch(self._waits.due_s())

    def _body_goes_on(self, size: int, before: tuple[int, int, int]) -> None:
        """So many bytes came since `before`, and the body has not ended."""
        messages, body, chunks = self._seen
        if messages == before[0]:
            framing = size - (body - before[1]) - CHUNK_BYTES * (chunks - before[2])
            self._framing_bytes += max(0, framing)
        if self._framing_bytes > MAX_FRAMING_BYTES:
            what = f"chunk extensions and trailers are longer than {MAX_FRAMING_BYTES} bytes"
            self._refuse(TurnError(f"{what}: leave them out", code="trailers_too_large", status=431))
        elif not self._waits.owes and self._drained_bytes > MAX_DRAINED_BYTES:
            self.transport.close()
        else:
            self._watch(self._waits.due_s())

    @property
    def _seen(self) -> tuple[int, int, int]:
        return self._messages, self._body_bytes, self._chunks

    def _stop(self, error: TurnError) -> NoReturn:
        """Refuse what is being parsed: the parser stops where its callback raises."""
        self._refusal = error
        raise httptools.HttpParserCallbackError from error

    def _refuse(self, error: TurnError) -> None:
        """Answer a request that has no end, and hang up; within another answer nothing can be said."""
        self._limits.refused(error)
        if self._waits.owes:
            self.transport.close()
            return
        self.transport.write(refusal(error, self.url, self.server_state.default_headers))
        self.transport.close()

    # -- the parser's reports --------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._messages += 1
        self._head_bytes = self._framing_bytes = self._drained_bytes = 0
        self._waits.head_begins(self.loop.time())

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._waits.is_reading_head:  # else it is a trailer, which says nothing here
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._head_bytes + self._segment_bytes > MAX_HEAD_BYTES:
            self._check_head()
        if self.parser.should_upgrade():
            self._upgrade = self.parser.get_method(), self.parser.get_http_version()
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            what = f"{MAX_PIPELINED} requests wait for the answer before theirs already"
            self._stop(TurnError(f"{what}: read the answers first", code="too_many_pipelined", status=400))
        endpoint = self._endpoint()
        if endpoint is None:
            super().on_headers_complete()
        else:
            self._begin_turn(endpoint)
        self._waits.head_ends(self.loop.time())

    def _check_head(self) -> None:
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD_BYTES:
            self._stop(head_too_large())

    def _begin_turn(self, endpoint: ASGIApp) -> None:
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

    def on_chunk_header(self) -> None:
        self._chunks += 1

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if not self._waits.owes:
            self._drained_bytes += len(body)
            return
        cycle = cast(object, self.cycle)
        if isinstance(cycle, TurnCycle):
            cycle.body_came(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrade is not None:
            return
        self._waits.body_ends(self.loop.time())
        super().on_message_complete()

    # -- answers ---------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._waits.answered(self.loop.time())
        if self.transport.is_closing():
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        if not self.pipeline:
            self.flow.resume_reading()
        self._watch(self._waits.due_s())

    def pause_writing(self) -> None:
        super().pause_writing()
        now_s = self.loop.time()
        self._watch(self._waits.unsent(self.transport.get_write_buffer_size(), is_held=True, now_s=now_s))

    def resume_writing(self) -> None:
        super().resume_writing()
        self._waits.unsent(0, is_held=False, now_s=0.0)

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
            or self._waits.owes
            or self.expect_100_continue
            or self.limit_concurrency is not None
        ):
            return None
        if self.parser.get_method() != b"POST" or self.parser.get_http_version() != "1.1":
            return None
        # What a browser sends is for the application's middlewares, and so is another's name.
        headers, hosts = dict(self.headers), self._limits.hosts
        is_ours = hosts is None or (
            len(headers) == len(self.headers)  # no name is there twice
            and hosts.allows(headers.get(b"host", b"").decode("latin-1"))
        )
        return endpoint if is_ours and b"origin" not in headers else None
