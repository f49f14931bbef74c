"""What an engine sends behind an answer, before one, or instead of one."""

from __future__ import annotations

import asyncio

import pytest

from conserve_server.core.errors import EngineFailed
from conserve_server.engines.connection import MAX_FRAMING_BYTES
from conserve_server.engines.connections import Connections
from tests.engines.scripted import HELLO, WAIT_S, ask, engine, says

SECOND = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"


@pytest.mark.parametrize("first", [HELLO, CHUNKED])
@pytest.mark.parametrize("surplus", [SECOND, SECOND[:20], b"junk", b"\r\nHTTP/1.1 500 no\r\n\r\n"])
async def test_what_follows_an_answer_is_no_part_of_it_and_of_no_other(first: bytes, surplus: bytes) -> None:
    """The connection is not used again, whatever the engine sent behind its answer."""
    async with engine(says(first + surplus), says(HELLO)) as (scripted, connections):
        assert [await ask(connections) for _ in range(2)] == [b"hello", b"hello"]
        assert scripted.accepted == 2


async def test_an_engine_that_ends_at_a_request_was_asked_though_its_connection_looked_stale() -> None:
    async def ends(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        raise ConnectionAbortedError

    async with engine(says(HELLO), ends) as (_, connections):
        assert await ask(connections) == b"hello"
        with pytest.raises(EngineFailed) as raised:
            await ask(connections)
        assert raised.value.was_asked


async def test_an_engine_that_cannot_be_reached_was_not_asked() -> None:
    async with engine(says(HELLO)) as (scripted, _):
        url = scripted.url
    connections = Connections("decode-0", url or "http://127.0.0.1:9", silence_timeout_s=WAIT_S)
    with pytest.raises(EngineFailed) as raised:
        await ask(connections)
    assert not raised.value.was_asked


FLOODS = {
    "interim responses": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"x-flood: " + b"a" * 1000 + b"\r\n"),
    "one header": (b"HTTP/1.1 200 OK\r\nx: ", b"a" * 1000),
    "a status line": (b"HTTP/1.1 200 ", b"a" * 1000),
    "a chunk's extension": (CHUNKED[:47] + b"5;", b"a" * 1000),
    "trailers": (CHUNKED[:-2], b"x: " + b"a" * 1000 + b"\r\n"),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_without_a_body_is_broken_off(name: str) -> None:
    beginning, piece = FLOODS[name]
    said = 0

    async def floods(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal said
        writer.write(beginning)
        while said < 64 * MAX_FRAMING_BYTES:
            writer.write(piece)
            await writer.drain()
            said += len(piece)

    async with engine(floods) as (_, connections):
        with pytest.raises(EngineFailed):
            await ask(connections)
    assert said < 32 * MAX_FRAMING_BYTES


async def test_a_head_that_trickles_in_is_silence() -> None:
    async def trickles(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1000:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.02)

    async with engine(trickles, silence_timeout_s=0.2) as (_, connections):
        with pytest.raises(EngineFailed, match="silent"):
            await ask(connections)
