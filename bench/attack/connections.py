"""What a client can do with a connection before anybody knows who it is."""

from __future__ import annotations

import asyncio
from itertools import repeat

from bench.attack.case import cases, expect
from bench.attack.ground import KEYS, Ground, Setup
from bench.attack.raw import WAIT_S, Wire, ask, request, wire

WITH_KEYS = Setup(
    has_tenants=True,
    gateway={"body_timeout_s": 3.0, "write_timeout_s": 3.0},
)
WAITS_S = 90.0
"""More than any wait of a connection in this setup: one on which no request has begun waits 75 s."""
_CHUNKED = {"transfer-encoding": "chunked"}
_BODY = b'{"messages":[{"role":"user","content":"hello"}],"max_tokens":4}'
_KEY = {"authorization": f"Bearer {KEYS['alpha']}"}


async def trailers_without_end(ground: Ground) -> None:
    """A keyless request whose trailers never end: dropped within a bound, memory stays."""
    head = request("/v1/chat/completions", headers=_CHUNKED)
    async with wire(ground.port) as connection:
        await connection.say(head + b"1\r\n{\r\n0\r\n")
        said = await connection.say_until_hung_up(repeat(b"x-flood: " + b"a" * 8000 + b"\r\n"))
    expect(said < 8_000_000, f"{said:,} bytes of trailers were taken")


async def a_key_in_a_trailer(ground: Ground) -> None:
    """A key that comes after the body: it authenticates nobody."""
    trailer = f"authorization: Bearer {KEYS['alpha']}\r\n\r\n".encode()
    framed = b"%x\r\n%b\r\n0\r\n" % (len(_BODY), _BODY)
    answer = await ask(ground.port, request("/v1/chat/completions", headers=_CHUNKED) + framed + trailer)
    expect(answer.status == 401, f"answered with {answer.status}")


async def chunk_extensions_without_end(ground: Ground) -> None:
    """A chunk whose extension never ends."""
    head = request("/v1/chat/completions", headers=_CHUNKED)
    async with wire(ground.port) as connection:
        await connection.say(head + b"1;")
        said = await connection.say_until_hung_up(repeat(b"a" * 8000))
    expect(said < 8_000_000, f"{said:,} bytes of a chunk's extension were taken")


async def headers_without_end(ground: Ground) -> None:
    """A request head that never ends, in large lines and in small ones."""
    for piece in (b"x: " + b"a" * 8000 + b"\r\n", b"a:b\r\n" * 1000, b"a" * 8000):
        async with wire(ground.port) as connection:
            await connection.say(b"POST /v1/chat/completions HTTP/1.1\r\n")
            said = await connection.say_until_hung_up(repeat(piece))
        expect(said < 8_000_000, f"{said:,} bytes of headers were taken")


async def connections_that_say_nothing(ground: Ground) -> None:
    """Connections that stop in every state that one can be in: each is ended by the gateway."""
    chat = "/v1/chat/completions"
    told = {"content-length": "1000"}
    beginnings = {
        "nothing": b"",
        "half a head": b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n",
        "half a body without a key": request(chat, headers=told),
        "half a body": request(chat, headers={**told, **_KEY}) + b"{",
        "half a chunk": request(chat, headers={**_CHUNKED, **_KEY}) + b"5\r\n{",
        "half a trailer": request(chat, headers={**_CHUNKED, **_KEY}) + b"1\r\n{\r\n0\r\nx: y",
        "half a body to another route": request("/v1/conversations/x/events", headers={**told, **_KEY}),
        "half a body to no route": request("/nothing/here", headers=told) + b"{",
        "a body awaited": request(chat, headers={**told, **_KEY, "expect": "100-continue"}),
        "a body awaited without a key": request(chat, headers={**told, "expect": "100-continue"}),
        "an upgrade": request("/health", method="GET", headers={"connection": "upgrade", "upgrade": "h2c"}),
        "half a body of a get": request("/health", method="GET", headers=told) + b"{",
        "another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    }
    stayed = await asyncio.gather(*(_stays(ground, data) for data in beginnings.values()))
    left = [name for name, stays in zip(beginnings, stayed, strict=True) if stays]
    expect(not left, f"still open after {WAITS_S:g} s: {', '.join(left)}")


async def _stays(ground: Ground, data: bytes) -> bool:
    async with wire(ground.port) as connection:
        await connection.say(data)
        return not await connection.is_hung_up(WAITS_S)


async def a_body_drop_by_drop(ground: Ground) -> None:
    """A body that comes a byte at a time, for ever: ended within its time, counted from its beginning."""
    async with wire(ground.port) as connection:
        await connection.say(
            request("/v1/chat/completions", headers={"content-length": "100000", **_KEY}) + b"{"
        )
        dripping = asyncio.create_task(_drip(connection))
        try:
            expect(await connection.is_hung_up(WAITS_S), "still open")
        finally:
            dripping.cancel()


async def _drip(connection: Wire) -> None:
    for _ in range(100):
        await connection.say(b" ")
        await asyncio.sleep(0.3)


async def an_upgrade_to_h2c(ground: Ground) -> None:
    """A request that offers HTTP/2, as the JDK's, Ktor's and Spring's clients do: served as it is."""
    offers = {
        "connection": "Upgrade, HTTP2-Settings",
        "upgrade": "h2c",
        "http2-settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    }
    for attempt in range(2):
        answer = await ask(ground.port, ground.turn(f"h2c-{attempt}", headers=offers))
        expect(answer.status == 200, f"answered with {answer.status}: {answer.body[:200]!r}")
    websocket = {"connection": "Upgrade", "upgrade": "websocket"}
    answer = await ask(ground.port, ground.turn("websocket", headers=websocket))
    expect(answer.status in (200, 400, 426), f"a websocket's upgrade was answered with {answer.status}")


async def two_lengths(ground: Ground) -> None:
    """Bodies whose length is told twice, or in a wrong way: refused, and nothing after them is a request."""
    lengths = [
        "content-length: 3\r\ncontent-length: 4\r\n",
        "content-length: 3\r\ntransfer-encoding: chunked\r\n",
        "content-length: -1\r\n",
        "content-length: 3, 4\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: xchunked\r\n",
        "content-length: 0x3\r\n",
        "content-length : 3\r\n",
        "content-length: 99999999999999999999\r\n",
    ]
    hidden = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    for length in lengths:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n{length}\r\n".encode()
        async with wire(ground.port) as connection:
            await connection.say(head + b"{}\r\n" + hidden)
            try:
                status = (await connection.read_answer()).status
            except (EOFError, ConnectionError):
                continue  # hung up at once: that is a refusal, too
            expect(status in (400, 401, 411, 413, 501), f"{length!r} answered with {status}")
            expect(await connection.is_hung_up(WAITS_S), f"{length!r} left its connection open")


async def many_connections(ground: Ground) -> None:
    """Two thousand connections that say half a head: honest clients are still served."""
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        stop = asyncio.Event()
        ready = [group.create_task(_hold(ground, stop)) for _ in range(2000)]
        await asyncio.sleep(1.0)
        answer = await ground.ask("among-many")
        stop.set()
        expect(answer.status == 200, f"answered with {answer.status}")
        expect(len(ready) == 2000, "not all were opened")


async def _hold(ground: Ground, stop: asyncio.Event) -> None:
    try:
        async with wire(ground.port) as connection:
            await connection.say(b"POST /v1/chat/completions HTTP/1.1\r\n")
            async with asyncio.timeout(WAIT_S):
                await stop.wait()
    except (OSError, TimeoutError):
        return


async def a_reader_that_stops(ground: Ground) -> None:
    """A client that asks for a long page many times and reads nothing: its connection ends."""
    async with wire(ground.port) as connection:
        page = request("/openapi.json", method="GET")
        await connection.say(page * 300)
        await asyncio.sleep(10)
    answer = await ground.ask("after-a-stopped-reader")
    expect(answer.status == 200, f"answered with {answer.status}")


CASES = cases(
    WITH_KEYS,
    trailers_without_end,
    a_key_in_a_trailer,
    chunk_extensions_without_end,
    headers_without_end,
    connections_that_say_nothing,
    a_body_drop_by_drop,
    an_upgrade_to_h2c,
    two_lengths,
    many_connections,
    a_reader_that_stops,
    on_real=True,
)
