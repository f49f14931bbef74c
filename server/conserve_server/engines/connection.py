"""One keep-alive HTTP/1.1 connection to an engine: one request at a time, its answer in pieces as it comes.

What a general client brings along (redirects, cookies, forms, a timer for each read) costs
more than the request itself; what is left is parsed by httptools (llhttp).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final, cast

import httptools

from conserve_server.core.errors import EngineFailed
from conserve_server.engines.reasons import why_hung_up, why_not_http

READ_AHEAD_BYTES: Final = 256 * 1024
"""What may lie here unread before the engine is held back."""
MAX_FRAMING_BYTES: Final = 256 * 1024
"""What may come without a byte of a body: headers, interim responses (1xx), sizes and extensions of chunks,
trailers. vLLM's own heads have less than a kilobyte."""
STALE_S: Final = 1.0
"""A reused connection that breaks this soon, and before any answer, had been closed while it was idle."""
_BODILESS: Final = (204, 304)


class StaleConnection(EngineFailed):
    """The engine had closed the idle connection before the request reached it."""


class Response:
    """An answer, its body still to be read."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        """Names in lower case."""
        self.has_begun = False
        self.has_head = False
        self.is_complete = False
        self.pieces: deque[bytes] = deque()
        self.unread_bytes = 0


class Connection(asyncio.Protocol):
    """Made by the loop; `on_close` is called once when it can't be used any more."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        engine: str,
        *,
        silence_timeout_s: float,
        on_close: Callable[[Connection], None],
    ) -> None:
        self._loop = loop
        self._engine = engine
        self._silence_timeout_s = silence_timeout_s
        self._on_close = on_close
        self._parser = httptools.HttpResponseParser(self)
        self._response: Response | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._error: EngineFailed | None = None
        self._heard_s = self._sent_s = 0.0
        self._is_paused = self._ends_with_connection = self._keeps_alive = self._has_surplus = False
        self._requests = self._framing_bytes = 0
        self.idle_since_s = 0.0
        """On the loop's clock."""

    @property
    def is_usable(self) -> bool:
        """Whether it can take a request."""
        return self._error is None and self._response is None and not self._transport.is_closing()

    # -- one request ---------------------------------------------------------------------------

    async def send(self, head: bytes, body: bytes) -> Response:
        """Send a request; its answer as soon as the answer's headers are there.

        Raises StaleConnection, or EngineFailed. Cancelled or failed, it is closed.
        """
        if not self.is_usable:
            raise self._error or lost(self._engine, "it hung up")
        response = self._response = Response()
        self._requests += 1
        self._framing_bytes = 0
        self._sent_s = self._heard_s = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._silence_timeout_s, self._check_silence)
        self._transport.writelines((head, body))
        try:
            while not response.has_head:
                await self._more()
        except BaseException:
            self.abort()
            raise
        return response

    async def pieces(self, response: Response) -> AsyncIterator[bytes]:
        """The body as it comes: all that has come since, joined. Raises EngineFailed."""
        while True:
            if response.pieces:
                yield self._take(response)
            elif response.is_complete:
                return
            else:
                await self._more()

    def done(self) -> bool:
        """The caller wants no more of the answer; whether the connection can take another request.

        An answer that was not read to its end closes it, which is how an engine learns of it.
        """
        response, self._response = self._response, None
        was_read = response is not None and response.is_complete and not response.pieces
        if not was_read or not self._keeps_alive or self._has_surplus or self._error is not None:
            self.abort()
            return False
        self.idle_since_s = self._loop.time()
        return True

    def abort(self) -> None:
        """Close it at once."""
        self._fail(lost(self._engine, "closed"))
        self._transport.abort()

    def _take(self, response: Response) -> bytes:
        taken = response.pieces[0] if len(response.pieces) == 1 else b"".join(response.pieces)
        response.pieces.clear()
        response.unread_bytes = 0
        if self._is_paused:
            self._is_paused = False
            self._heard_s = self._loop.time()
            self._transport.resume_reading()
        return taken

    async def _more(self) -> None:
        """Wait until something has come."""
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # -- what the loop tells -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:
            self.abort()  # nothing was asked for
            return
        if response.is_complete:
            self._has_surplus = True
            return
        response.has_begun = True
        self._framing_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._break_off(why_not_http(str(error), data))
        if self._framing_bytes > MAX_FRAMING_BYTES:
            self._break_off(
                f"it sends more than {MAX_FRAMING_BYTES} bytes of heads or framing without a body"
            )
        if response.unread_bytes > READ_AHEAD_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def _break_off(self, why: str) -> None:
        self._fail(lost(self._engine, why))
        self._transport.abort()

    def eof_received(self) -> bool:
        return False  # the transport closes itself

    def connection_lost(self, exc: Exception | None) -> None:
        response = self._response
        if response is not None and self._ends_with_connection and exc is None:
            response.is_complete = True
        is_stale = response is not None and not response.has_begun and self._requests > 1
        if is_stale and self._loop.time() - self._sent_s < STALE_S:
            self._fail(StaleConnection("closed while idle", code="engine_lost", engine=self._engine))
        has_spoken = self._requests > 1 or response is None or response.has_begun
        self._fail(lost(self._engine, why_hung_up(exc, has_spoken=has_spoken)))

    def _fail(self, error: EngineFailed) -> None:
        if self._error is not None:
            return
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()
        self._on_close(self)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _check_silence(self) -> None:
        """One timer for all waits: it looks when it rings whether anything came in between."""
        self._timer = None
        if self._response is None:
            return
        if self._waiter is None:
            self._heard_s = self._loop.time()  # the reader is what is slow
        left_s = self._heard_s + self._silence_timeout_s - self._loop.time()
        if left_s <= 0:
            self._fail(silent(self._engine))
            self._transport.abort()
        else:
            self._timer = self._loop.call_later(left_s, self._check_silence)

    # -- what the parser tells -----------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A second answer to one request is nobody's: nothing of it is taken, and nothing is asked again."""
        self._has_surplus = cast(Response, self._response).is_complete

    def on_header(self, name: bytes, value: bytes) -> None:
        response = cast(Response, self._response)
        if self._has_surplus:
            return
        response.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        response = cast(Response, self._response)
        if self._has_surplus:
            return
        response.status = self._parser.get_status_code()
        if response.status < 200:
            response.headers.clear()  # 1xx: the answer is still to come
            return
        response.has_head = True
        self._heard_s = self._loop.time()  # a head that trickles in is none before its end
        self._keeps_alive = self._parser.should_keep_alive()
        has_end = "content-length" in response.headers or "transfer-encoding" in response.headers
        self._ends_with_connection = not has_end and response.status not in _BODILESS

    def on_body(self, piece: bytes) -> None:
        response = cast(Response, self._response)
        if self._has_surplus:
            return
        self._heard_s = self._loop.time()
        self._framing_bytes = 0
        response.pieces.append(piece)
        response.unread_bytes += len(piece)

    def on_message_complete(self) -> None:
        response = cast(Response, self._response)
        response.is_complete = response.has_head


def lost(engine: str, why: str, *, was_asked: bool = True) -> EngineFailed:
    """It can't be reached, or broke off."""
    message = f"engine {engine} can't be reached or broke off: {why}"
    return EngineFailed(message, code="engine_lost", engine=engine, was_asked=was_asked)


def silent(engine: str) -> EngineFailed:
    """Nothing came for too long."""
    message = f"engine {engine} was silent for too long"
    return EngineFailed(message, code="engine_timeout", engine=engine, status=504)
