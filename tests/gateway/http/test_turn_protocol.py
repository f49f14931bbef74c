"""The short cut of turns through the server: what HTTP asks of it, byte by byte over a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from conserve_server.gateway.http.connections import MAX_HEAD_BYTES
from conserve_server.gateway.http.reply import CONNECTION
from conserve_server.gateway.http.turn_protocol import TURN_ROUTES, TurnProtocol
from tests.gateway.conftest import MODEL, WAIT_S, Serve, serve_app

PATH = "/v1/chat/completions"
BODY = json.dumps(
    {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
).encode()


class Client:
    """A socket, and as much HTTP as the tests need to read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer, which has a length."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:-2])
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return int(head[0].split()[1]), headers, body

    async def rest(self) -> bytes:
        """All that comes until the server hangs up."""
        return await self._reader.read()

    async def hang_up(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Client]:
    parts = urlsplit(url)
    async with asyncio.timeout(WAIT_S):
        client = Client(*await asyncio.open_connection(parts.hostname, parts.port))
        try:
            yield client
        finally:
            await client.hang_up()


def request(*headers: str, body: bytes = BODY, version: str = "1.1", path: str = PATH) -> bytes:
    lines = [f"POST {path} HTTP/{version}", "host: gateway", f"content-length: {len(body)}", *headers]
    return "\r\n".join((*lines, "", "")).encode() + body


@pytest.mark.parametrize("size", [1, 7, 60, 4096])
async def test_a_turn_is_served_however_its_request_arrives(serve: Serve, size: int) -> None:
    async with serve() as gateway, connected(gateway.url) as client:
        data = request("x-conserve-conversation-id: harbour")
        for start in range(0, len(data), size):
            client.send(data[start : start + size])
            await asyncio.sleep(0)
        status, headers, body = await client.answer()
        assert (status, headers["x-conserve-conversation-id"]) == (200, "harbour")
        assert json.loads(body)["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("path", [PATH, "/v1/models"])
async def test_headers_without_an_end_are_a_431(serve: Serve, path: str) -> None:
    async with serve() as gateway, connected(gateway.url) as client:
        client.send(f"POST {path} HTTP/1.1\r\nhost: gateway\r\n".encode())
        for number in range(65):
            client.send(f"x-{number}: {'a' * 1000}\r\n".encode())
        status, headers, body = await client.answer()
        assert (status, headers["connection"]) == (431, "close")
        assert json.loads(body)["error"]["code"] == "headers_too_large"


async def test_one_header_without_an_end_is_a_431(serve: Serve) -> None:
    async with serve() as gateway, connected(gateway.url) as client:
        client.send(f"POST {PATH} HTTP/1.1\r\nhost: gateway\r\nx-long: ".encode() + b"a" * MAX_HEAD_BYTES)
        assert (await client.answer())[0] == 431


async def test_headers_that_stop_coming_are_a_408(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TurnProtocol, "head_timeout_s", 0.05)
    async with serve() as gateway, connected(gateway.url) as client:
        client.send(request() + f"POST {PATH} HTTP/1.1\r\nhost:".encode())
        assert (await client.answer())[0] == 200
        status, headers, body = await client.answer()
        assert (status, headers["connection"]) == (408, "close")
        assert json.loads(body)["error"]["code"] == "headers_timeout"


async def test_a_connection_that_never_asks_is_closed() -> None:
    async with serve_app(Starlette(), keep_alive_s=0) as url, connected(url) as client:
        assert await client.rest() == b""


async def test_turns_follow_each_other_on_a_connection(serve: Serve) -> None:
    async with serve() as gateway, connected(gateway.url) as client:
        turns = []
        for _ in range(3):
            client.send(request("x-conserve-conversation-id: harbour"))
            turns.append((await client.answer())[1]["x-conserve-turn"])
        assert turns == ["1", "2", "3"]


async def test_pipelined_turns_are_answered_in_their_order(serve: Serve) -> None:
    async with serve() as gateway, connected(gateway.url) as client:
        client.send(b"".join(request(f"x-conserve-conversation-id: c{n}") for n in range(3)))
        ids = [(await client.answer())[1]["x-conserve-conversation-id"] for _ in range(3)]
        assert ids == ["c0", "c1", "c2"]


@pytest.mark.parametrize(
    "special",
    [
        request("expect: 100-continue"),
        request("origin: http://localhost"),
        request(path=PATH + "?api-version=1"),
        request()
        .replace(b"content-length: %d" % len(BODY), b"transfer-encoding: chunked")
        .replace(BODY, b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)),
    ],
    ids=["expects 100", "from a browser", "with a query", "chunked"],
)
async def test_special_requests_are_served_all_the_same(serve: Serve, special: bytes) -> None:
    async with serve() as gateway, connected(gateway.url) as client:
        client.send(special)
        status, _, body = await client.answer()
        if status == 100:
            status, _, body = await client.answer()
        assert status == 200
        assert json.loads(body)["object"] == "chat.completion"


@pytest.mark.parametrize("asks", [request("connection: close"), request(version="1.0")], ids=["close", "1.0"])
async def test_a_client_that_wants_no_more_is_hung_up_on(serve: Serve, asks: bytes) -> None:
    async with serve() as gateway, connected(gateway.url) as client:
        client.send(asks)
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await client.rest() == b""


async def test_a_body_beyond_the_limit_is_refused_and_the_connection_goes_on(serve: Serve) -> None:
    async with serve(max_body_bytes=1000) as gateway, connected(gateway.url) as client:
        client.send(request(body=b"x" * 100_000))
        status, _, body = await client.answer()
        assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")
        client.send(request())
        assert (await client.answer())[0] == 200


# -- an endpoint of our own -----------------------------------------------------------------------


class Endpoint:
    """Waits for the whole body, then does what a test wants."""

    def __init__(self, *sends: dict[str, object] | Exception, waits: bool = False) -> None:
        self._sends = sends
        self._waits = waits
        self.has_begun = asyncio.Event()
        self.was_cancelled = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert CONNECTION in scope["extensions"]
        try:
            while (await receive())["more_body"]:
                pass
            for message in self._sends:
                if isinstance(message, Exception):
                    raise message
                await send(message)
            self.has_begun.set()
            if self._waits:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.was_cancelled.set()
            raise


START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
PIECE = {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}


@asynccontextmanager
async def serving(endpoint: Endpoint) -> AsyncIterator[Client]:
    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, object]]:
        yield {TURN_ROUTES: {PATH.encode(): endpoint}}

    async with serve_app(Starlette(lifespan=lifespan)) as url, connected(url) as client:
        yield client


async def test_headers_that_stop_coming_leave_the_answer_before_them_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TurnProtocol, "head_timeout_s", 0.01)
    endpoint = Endpoint(START, PIECE, waits=True)
    async with serving(endpoint) as client:
        client.send(request() + b"POST / HTTP/1.1\r\nhost:")
        await endpoint.has_begun.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await endpoint.was_cancelled.wait()


async def test_a_client_that_hangs_up_cancels_its_turn() -> None:
    endpoint = Endpoint(START, PIECE, waits=True)
    async with serving(endpoint) as client:
        client.send(request())
        await endpoint.has_begun.wait()
        await client.hang_up()
        await endpoint.was_cancelled.wait()


async def test_a_client_that_hangs_up_within_its_request_cancels_it() -> None:
    endpoint = Endpoint()
    async with serving(endpoint) as client:
        client.send(request()[:-1])
        await asyncio.sleep(0.01)
        await client.hang_up()
        await endpoint.was_cancelled.wait()


async def test_a_bug_is_an_error_document(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Endpoint(KeyError("secret"))) as client:
        client.send(request())
        status, _, body = await client.answer()
        assert (status, json.loads(body)["error"]["code"]) == (500, "internal_error")
        assert b"secret" not in body
        assert await client.rest() == b""
        assert "the gateway failed" in caplog.text


async def test_a_bug_within_a_stream_breaks_it_off_without_an_end(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Endpoint(START, PIECE, KeyError())) as client:
        client.send(request())
        assert (await client.answer())[1]["transfer-encoding"] == "chunked"
        assert await client.rest() == b"9\r\ndata: 1\n\n\r\n"


async def test_an_endpoint_without_an_answer_is_an_error_document() -> None:
    async with serving(Endpoint()) as client:
        client.send(request())
        assert (await client.answer())[0] == 500


async def test_a_header_with_a_line_break_is_never_sent(caplog: pytest.LogCaptureFixture) -> None:
    start = {**START, "headers": [(b"x-id", b"a\r\nset-cookie: b")]}
    async with serving(Endpoint(start)) as client:
        client.send(request())
        status, headers, _ = await client.answer()
        assert status == 500
        assert "set-cookie" not in headers
