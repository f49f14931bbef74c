"""Connections to an engine: reused while fresh, closed to cancel, broken off in every way that peers do."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_server.core.errors import EngineFailed
from conserve_server.engines.connection import READ_AHEAD_BYTES, Connection
from tests.engines.scripted import HELLO, WAIT_S, ask, engine, is_silent, says


async def test_requests_one_after_the_other_share_a_connection() -> None:
    async with engine(says(HELLO)) as (scripted, connections):
        assert [await ask(connections) for _ in range(3)] == [b"hello"] * 3
        assert scripted.accepted == 1


async def test_requests_at_once_have_a_connection_each() -> None:
    async with engine(says(HELLO)) as (scripted, connections):
        assert await asyncio.gather(*(ask(connections) for _ in range(5))) == [b"hello"] * 5
        assert scripted.accepted == 5


async def test_the_request_is_sent_as_given_below_the_url_s_path() -> None:
    async with engine(says(HELLO), prefix="/engine/7") as (scripted, connections):
        request = connections.request("POST", "/v1/completions", {"x-session-id": "harbour"}, b"\xff\x00body")
        async with request as answer:
            assert (answer.status, answer.headers["content-type"]) == (200, "text/plain")
        head, _, body = scripted.requests[0].partition(b"\r\n\r\n")
        assert head.startswith(b"POST /engine/7/v1/completions HTTP/1.1\r\nhost: localhost:")
        assert b"\r\nx-session-id: harbour\r\n" in head
        assert body == b"\xff\x00body"


async def test_a_header_with_a_line_break_is_refused() -> None:
    async with engine(says(HELLO)) as (_, connections):
        with pytest.raises(ValueError, match="line break"):
            connections.request("POST", "/", {"x-session-id": "a\r\nx-admin: true"})


async def test_an_engine_that_says_close_is_asked_on_a_new_connection() -> None:
    closing = HELLO.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    async with engine(says(closing)) as (scripted, connections):
        assert [await ask(connections), await ask(connections)] == [b"hello"] * 2
        assert scripted.accepted == 2


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    async with engine(says(b"HTTP/1.1 200 OK\r\n\r\nall ", b"of it", then_closes=True)) as (_, connections):
        assert await ask(connections) == b"all of it"


async def test_a_stale_connection_costs_nothing_but_a_new_one() -> None:
    closes = says(then_closes=True)
    async with engine(says(HELLO), closes, says(HELLO)) as (scripted, connections):
        assert [await ask(connections), await ask(connections)] == [b"hello"] * 2
        assert (scripted.accepted, len(scripted.requests)) == (2, 3)


async def test_a_new_connection_that_breaks_is_not_tried_again() -> None:
    async with engine(says(then_closes=True)) as (scripted, connections):
        with pytest.raises(EngineFailed, match="decode-0 can't be reached or broke off") as failed:
            await ask(connections)
        assert failed.value.code == "engine_lost"
        assert len(scripted.requests) == 1


async def test_an_answer_that_has_begun_is_never_asked_for_again() -> None:
    async with engine(says(HELLO), says(HELLO[:20], then_closes=True)) as (scripted, connections):
        await ask(connections)
        with pytest.raises(EngineFailed):
            await ask(connections)
        assert len(scripted.requests) == 2


async def test_what_came_before_the_break_is_read_first() -> None:
    async with (
        engine(says(HELLO[:-2], then_closes=True)) as (_, connections),
        connections.request("POST", "/", {}) as answer,
    ):
        chunks = answer.chunks()
        assert await anext(chunks) == b"hel"
        with pytest.raises(EngineFailed, match="hung up"):
            await anext(chunks)


async def test_what_is_not_http_is_a_failure_of_the_engine() -> None:
    async with engine(says(b"SSH-2.0-OpenSSH_9.2\r\n")) as (_, connections):
        with pytest.raises(EngineFailed, match="not HTTP"):
            await ask(connections)


async def test_nobody_at_the_address_is_a_failure_of_the_engine() -> None:
    async with engine(says(HELLO)) as (_, connections):
        pass
    with pytest.raises(EngineFailed, match="decode-0 can't be reached") as failed:
        await ask(connections)
    assert failed.value.status == 502


@pytest.mark.parametrize("before", [b"", HELLO[:-2]], ids=["before the answer", "within the answer"])
async def test_silence_has_an_end(before: bytes) -> None:
    async def says_little(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(before)
        await reader.readexactly(1)

    async with engine(says_little, silence_timeout_s=0.05) as (scripted, connections):
        with pytest.raises(EngineFailed, match="silent for too long") as failed:
            await ask(connections)
        assert (failed.value.code, failed.value.status) == ("engine_timeout", 504)
        await scripted.hung_up.wait()


async def test_an_answer_that_keeps_coming_may_take_longer_than_the_silence() -> None:
    async def dawdles(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in (HELLO[:-5], b"h", b"e", b"l", b"l", b"o"):
            writer.write(piece)
            await asyncio.sleep(0.04)

    async with engine(dawdles, silence_timeout_s=0.12) as (_, connections):
        assert await ask(connections) == b"hello"


async def test_a_cancelled_request_hangs_up() -> None:
    async with engine(is_silent) as (scripted, connections):
        asking = asyncio.create_task(ask(connections))
        while not scripted.requests:  # noqa: ASYNC110 - seen in the server's task
            await asyncio.sleep(0)
        asking.cancel()
        await scripted.hung_up.wait()
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_an_answer_left_unread_hangs_up_and_the_next_request_is_served() -> None:
    endless = says(HELLO.replace(b"length: 5", b"length: 9"))
    async with engine(endless, says(HELLO)) as (scripted, connections):
        async with connections.request("POST", "/", {}) as answer:
            assert answer.status == 200
        await scripted.hung_up.wait()
        assert await ask(connections) == b"hello"


async def test_closing_breaks_off_what_still_runs() -> None:
    async with engine(is_silent) as (scripted, connections):
        asking = asyncio.create_task(ask(connections))
        while not scripted.requests:  # noqa: ASYNC110 - seen in the server's task
            await asyncio.sleep(0)
        connections.close()
        with pytest.raises(EngineFailed):
            await asking


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost and its key."""
    files = (folder / "cert.pem", folder / "key.pem")
    subprocess.run(
        (
            *("openssl", "req", "-x509", "-nodes", "-days", "1"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-out", str(files[0]), "-keyout", str(files[1])),
        ),
        check=True,
        capture_output=True,
        timeout=WAIT_S,
    )
    return files


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
async def test_an_engine_behind_tls_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = await asyncio.to_thread(certificate, tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*files)
    async with engine(says(HELLO), tls=tls) as (_, connections):
        with pytest.raises(EngineFailed, match="certificate"):
            await ask(connections)
    monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))
    async with engine(says(HELLO), tls=tls) as (_, connections):
        assert await ask(connections) == b"hello"


# -- without a network ----------------------------------------------------------------------------


class Wire(asyncio.Transport):
    """What a connection does to its transport."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.is_aborted = False

    def writelines(self, list_of_data: object) -> None:
        pass

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


def connected(closed: list[Connection]) -> tuple[Connection, Wire]:
    connection = Connection(
        asyncio.get_running_loop(), "decode-0", silence_timeout_s=WAIT_S, on_close=closed.append
    )
    wire = Wire()
    connection.connection_made(wire)
    return connection, wire


async def test_a_slow_reader_holds_the_engine_back() -> None:
    closed: list[Connection] = []
    connection, wire = connected(closed)
    sending = asyncio.create_task(connection.send(b"", b""))
    await asyncio.sleep(0)
    connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 10000000\r\n\r\n")
    response = await sending
    block = b"x" * 65536
    blocks = READ_AHEAD_BYTES // len(block)
    for _ in range(blocks):
        connection.data_received(block)
    assert wire.calls == []
    connection.data_received(block)
    assert wire.calls == ["pause"]
    assert len(await anext(connection.pieces(response))) == (blocks + 1) * len(block)
    assert wire.calls == ["pause", "resume"]
    assert not connection.done()
    assert closed == [connection]


async def test_an_answer_that_nobody_asked_for_closes_the_connection() -> None:
    closed: list[Connection] = []
    connection, wire = connected(closed)
    connection.data_received(HELLO)
    assert wire.is_aborted
    assert closed == [connection]


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    is_chunked=st.booleans(),
    has_interim=st.booleans(),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_an_answer_reads_the_same_however_it_is_split(
    chunks: list[bytes], is_chunked: bool, has_interim: bool, cuts: list[int]
) -> None:
    body = b"".join(chunks)
    interim = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" if has_interim else b""
    if is_chunked:
        encoded = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
        head = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\nX-Id: a b\r\n\r\n"
    else:
        encoded, head = body, b"HTTP/1.1 201 Created\r\ncontent-length: %d\r\nX-Id: a b\r\n\r\n" % len(body)
    data = interim + head + encoded
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    parts = [data[a:b] for a, b in itertools.pairwise(edges)]
    status, x_id, read, is_reusable = asyncio.run(read_split(parts))
    assert (status, x_id, read, is_reusable) == (201, "a b", body, True)


async def read_split(parts: list[bytes]) -> tuple[int, str, bytes, bool]:
    connection, _ = connected([])
    sending = asyncio.create_task(connection.send(b"", b""))
    await asyncio.sleep(0)
    read: list[bytes] = []

    async def read_all() -> int:
        response = await sending
        read.extend([piece async for piece in connection.pieces(response)])
        assert "link" not in response.headers
        read.append(response.headers["x-id"].encode())
        return response.status

    reading = asyncio.create_task(read_all())
    for part in parts:
        connection.data_received(part)
        await asyncio.sleep(0)
    status = await asyncio.wait_for(reading, WAIT_S)
    return status, read.pop().decode(), b"".join(read), connection.done()
