"""What a client may cost before anybody knows who it is: every wait ends, and nothing grows."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from conserve_server.gateway.http.connections import MAX_FRAMING_BYTES, MAX_PIPELINED
from conserve_server.gateway.http.turn_protocol import TurnProtocol
from tests.gateway.conftest import WAIT_S, Serve, Served, served
from tests.gateway.http.test_turn_protocol import BODY, PATH, Client, connected, request

KEYS = {"research": {"api_keys": ["sk-research"]}}
HEAD = f"POST {PATH} HTTP/1.1\r\nhost: gateway\r\n".encode()
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"


@asynccontextmanager
async def impatient(monkeypatch: pytest.MonkeyPatch, **gateway: object) -> AsyncIterator[Served]:
    """A gateway whose waits are short, and that asks for a key."""
    for name in ("head_timeout_s", "drain_timeout_s", "grace_s"):
        monkeypatch.setattr(TurnProtocol, name, 0.1)
    limits = {"tenants": KEYS, "body_timeout_s": 0.1, "write_timeout_s": 0.1, **gateway}
    async with served(keep_alive_s=0.1, **limits) as found:  # type: ignore[arg-type]
        yield found


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\r\n",
        b"\r\n" * 20,
        b"POST",
        HEAD,
        HEAD + b"content-length: 10\r\n\r\n",
        HEAD + b"content-length: 10\r\n\r\n{",
        HEAD + CHUNKED,
        HEAD + CHUNKED + b"1\r\n{\r\n",
        HEAD + CHUNKED + b"0\r\n",
        HEAD + CHUNKED + b"0\r\nx-trailer: ",
        HEAD + CHUNKED + b"1;extension=",
        HEAD + b"expect: 100-continue\r\ncontent-length: 10\r\n\r\n",
        HEAD + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 10\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: gateway\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: gateway\r\ncontent-length: 10\r\n\r\n",
        b"HEAD /health HTTP/1.1\r\nhost: gateway\r\n\r\n",
        b"POST /nowhere HTTP/1.1\r\nhost: gateway\r\ncontent-length: 10\r\n\r\n",
        b"POST /v1/reload HTTP/1.1\r\nhost: gateway\r\ncontent-length: 10\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: gateway\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: gateway\r\n\r\nGET /health",
        b"GET /health HTTP/1.1\r\nhost: gateway\r\n\r\n" * 3 + HEAD,
        request(),
        request() * 2,
    ],
)
async def test_a_client_that_says_no_more_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    async with impatient(monkeypatch) as gateway, connected(gateway.url) as client:
        client.send(said)
        await client.rest()


@pytest.mark.parametrize(
    "piece",
    [b"\r\n", b"a", b"x: y\r\n", b"1\r\na\r\n"],
    ids=["empty lines", "a byte", "a header", "a chunk"],
)
@pytest.mark.parametrize(
    "said",
    [b"", HEAD, HEAD + b"content-length: 100000\r\n\r\n", HEAD + CHUNKED],
    ids=["", "head", "body", "chunks"],
)
async def test_what_trickles_in_makes_no_wait_longer(
    monkeypatch: pytest.MonkeyPatch, said: bytes, piece: bytes
) -> None:
    async with impatient(monkeypatch) as gateway, connected(gateway.url) as client:
        client.send(said)
        ended = asyncio.ensure_future(client.rest())
        while not ended.done():
            client.send(piece)
            await asyncio.sleep(0.02)
        ended.exception()  # a reset is an end too


async def test_a_reader_of_any_route_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async with impatient(monkeypatch) as gateway:
        with pytest.raises(ConnectionError):
            await _ask_and_never_read(gateway.url)


async def _ask_and_never_read(url: str) -> None:
    """Requests for as long as they are taken; more are sent than the kernel keeps."""
    host, port = url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        async with asyncio.timeout(WAIT_S):
            await loop.sock_connect(client, (host, int(port)))
            while True:
                await loop.sock_sendall(client, b"GET /openapi.json HTTP/1.1\r\nhost: gateway\r\n\r\n")
                await asyncio.sleep(0.001)


# -- what is sent beside a body --------------------------------------------------------------


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
async def test_a_key_in_a_trailer_opens_nothing(serve: Serve, name: str) -> None:
    value = "Bearer sk-research" if name == "authorization" else "sk-research"
    chunk = b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
    async with serve(tenants=KEYS) as gateway, connected(gateway.url) as client:
        client.send(HEAD + CHUNKED + chunk + f"{name}: {value}\r\n\r\n".encode())
        assert (await client.answer())[0] == 401


async def test_trailers_name_no_conversation(serve: Serve) -> None:
    chunk = b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
    async with serve() as gateway, connected(gateway.url) as client:
        client.send(HEAD + CHUNKED + chunk + b"x-conserve-conversation-id: harbour\r\n\r\n")
        status, headers, _ = await client.answer()
        assert status == 200
        assert headers["x-conserve-conversation-id"].startswith("anonymous-")


@pytest.mark.parametrize(
    "flood",
    [b"x-trailer: aaaaaaaaaaaaaaaaaaaa\r\n", b"a", b"x: y\r\n"],
    ids=["trailers", "one long trailer", "short trailers"],
)
async def test_trailers_are_taken_up_to_a_limit(serve: Serve, flood: bytes) -> None:
    head = HEAD + CHUNKED + b"1\r\n{\r\n0\r\nx-first: "
    async with serve() as gateway, connected(gateway.url) as client:
        client.send(head)
        await asyncio.sleep(0.02)
        await _flood(client, flood)


async def test_chunk_extensions_are_taken_up_to_a_limit(serve: Serve) -> None:
    async with serve() as gateway, connected(gateway.url) as client:
        client.send(HEAD + CHUNKED + b"1;a=")
        await asyncio.sleep(0.02)
        await _flood(client, b"b" * 30)


async def _flood(client: Client, piece: bytes) -> None:
    """Sent for as long as it is taken: the end must come near the limit."""
    block, sent = piece * (2048 // len(piece)), 0
    ended = asyncio.ensure_future(client.rest())
    while not ended.done():
        client.send(block)
        sent += len(block)
        await asyncio.sleep(0.001)
        assert sent < 50 * MAX_FRAMING_BYTES
    ended.exception()


async def test_a_body_in_the_smallest_chunks_is_no_flood(serve: Serve) -> None:
    async with serve() as gateway, connected(gateway.url) as client:
        body = json.dumps({**json.loads(BODY), "user": "u" * 20_000}).encode()
        pieces = b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in body)
        client.send(HEAD + CHUNKED)
        for start in range(0, len(pieces), 10_000):
            client.send(pieces[start : start + 10_000])
            await asyncio.sleep(0)
        client.send(b"0\r\n\r\n")
        assert (await client.answer())[0] == 200


async def test_requests_sent_ahead_are_taken_up_to_a_limit(serve: Serve) -> None:
    async with serve() as gateway, connected(gateway.url) as client:
        client.send(b"GET /v1/events HTTP/1.1\r\nhost: gateway\r\n\r\n" * (MAX_PIPELINED + 2))
        await client.rest()


async def test_connections_beyond_the_limit_are_told_so_and_counted(serve: Serve) -> None:
    async with serve(max_connections=3) as gateway, connected(gateway.url) as first, connected(gateway.url):
        first.send(request())
        assert (await first.answer())[0] == 200
        async with connected(gateway.url) as beyond:
            status, headers, body = await beyond.answer()
            assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "1")
            assert json.loads(body)["error"]["code"] == "too_many_connections"
            assert await beyond.rest() == b""
        line = 'conserve_refused_total{reason="too_many_connections"}'
        assert await gateway.metric(line) == 1.0


# -- other protocols -------------------------------------------------------------------------

H2C = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAoAAAAAIAAAAA")


@pytest.mark.parametrize("size", [1, 50, 100_000])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_wish_for_http_2_is_ignored_and_the_body_is_read(
    serve: Serve, size: int, is_chunked: bool
) -> None:
    asked = request(*H2C, "x-conserve-conversation-id: harbour")
    if is_chunked:
        asked = asked.replace(b"content-length: %d" % len(BODY), b"transfer-encoding: chunked")
        asked = asked.replace(BODY, b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
    asked += request(*H2C, "x-conserve-conversation-id: harbour")
    async with serve() as gateway, connected(gateway.url) as client:
        for start in range(0, len(asked), size):
            client.send(asked[start : start + size])
            await asyncio.sleep(0)
        for turn in ("1", "2"):
            status, headers, _ = await client.answer()
            assert (status, headers["x-conserve-turn"]) == (200, turn)
            assert headers.get("connection", "keep-alive") == "keep-alive"


@pytest.mark.parametrize("path", ["/health", "/v1/events", PATH])
async def test_a_web_socket_is_an_ordinary_request(serve: Serve, path: str) -> None:
    async with serve() as gateway, connected(gateway.url) as client:
        key = "host: gateway\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13"
        wish = "connection: upgrade\r\nupgrade: websocket"
        client.send(f"GET {path} HTTP/1.1\r\n{key}\r\n{wish}\r\n\r\n".encode())
        assert (await client.answer())[0] == (405 if path == PATH else 200)


async def test_a_wish_to_close_beside_an_upgrade_is_heard(serve: Serve) -> None:
    async with serve() as gateway, connected(gateway.url) as client:
        client.send(request("connection: close, upgrade", "upgrade: h2c"))
        assert (await client.answer())[0] == 200
        assert await client.rest() == b""


async def test_a_gateway_is_no_proxy(serve: Serve) -> None:
    async with serve() as gateway, connected(gateway.url) as client:
        client.send(b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\n\r\n")
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (405, "close")


@pytest.mark.parametrize("said", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n"])
async def test_what_is_no_http_is_a_400_that_says_so(serve: Serve, said: bytes) -> None:
    async with serve() as gateway, connected(gateway.url) as client:
        client.send(said)
        status, headers, body = await client.answer()
        assert (status, headers["connection"]) == (400, "close")
        assert json.loads(body)["error"]["code"] == "malformed_request"


@pytest.mark.parametrize("path", [PATH, "/health", "/nowhere", "/ui", "/openapi.json"])
async def test_no_answer_may_be_taken_for_another_type_than_it_says(serve: Serve, path: str) -> None:
    async with serve() as gateway:
        method = "POST" if path == PATH else "GET"
        answer = await gateway.client.request(method, path, content=BODY)
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
