"""A client that says exactly the bytes that it is given, and waits for nothing without a bound."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass

WAIT_S = 20.0
"""Longest wait for anything that the gateway should do at once; generous, since machines are shared."""
_READ_BYTES = 1 << 16
_MOST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """A response as it came; the body with its chunks' frames taken off."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> Mapping[str, object]:
        """The error document's `error`; empty where the body is none."""
        with contextlib.suppress(ValueError, AttributeError):
            found = json.loads(self.body).get("error")
            return found if isinstance(found, dict) else {}
        return {}


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def say(self, data: bytes) -> None:
        """Send; raises ConnectionError where the gateway has hung up."""
        self._writer.write(data)
        async with asyncio.timeout(WAIT_S):
            await self._writer.drain()

    async def say_until_hung_up(self, pieces: Iterable[bytes]) -> int:
        """Send piece by piece until the gateway hangs up or answers; the bytes that were said."""
        said = 0
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                if self._reader.at_eof() or said > _MOST_BYTES:
                    break
                await self.say(piece)
                said += len(piece)
        return said

    async def read_answer(self) -> RawAnswer:
        """The next response. Raises EOFError where the connection ends before one, TimeoutError late."""
        async with asyncio.timeout(WAIT_S):
            while True:
                head = await self._reader.readuntil(b"\r\n\r\n")
                status = int(head.split(b" ", 2)[1])
                if status >= 200:
                    break
            headers = _headers(head)
            return RawAnswer(status, headers, await self._body(headers, status))

    async def _body(self, headers: Mapping[str, str], status: int) -> bytes:
        if status in (204, 304):
            return b""
        if "content-length" in headers:
            return await self._reader.readexactly(int(headers["content-length"]))
        if headers.get("transfer-encoding") != "chunked":
            return await self._reader.read()
        found = bytearray()
        while size := int((await self._reader.readline()).split(b";")[0], 16):
            found += await self._reader.readexactly(size)
            await self._reader.readline()
        await self._reader.readline()
        return bytes(found)

    async def read_until(self, marker: bytes) -> bytes:
        """What comes until the marker has come."""
        async with asyncio.timeout(WAIT_S):
            return await self._reader.readuntil(marker)

    async def is_hung_up(self, within_s: float) -> bool:
        """Whether the gateway ends the connection in time, whatever it says before."""
        try:
            async with asyncio.timeout(within_s):
                while await self._reader.read(_READ_BYTES):
                    pass
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return True

    def hang_up(self) -> None:
        """End the connection at once, as a program that dies does."""
        self._writer.transport.abort()


@contextlib.asynccontextmanager
async def wire(port: int) -> AsyncIterator[Wire]:
    """A connection to a port of this machine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


def request(
    path: str,
    body: bytes = b"",
    *,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    host: str = "127.0.0.1",
) -> bytes:
    """A request's bytes; its length is told unless the headers say how it is framed."""
    given = {name.lower(): value for name, value in (headers or {}).items()}
    found = {"host": host, "content-type": "application/json"}
    if "transfer-encoding" not in given and method == "POST":
        found["content-length"] = str(len(body))
    found |= given
    head = "".join(f"{name}: {value}\r\n" for name, value in found.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


async def ask(port: int, data: bytes) -> RawAnswer:
    """Say this on a connection of its own; the response."""
    async with wire(port) as connection:
        await connection.say(data)
        return await connection.read_answer()


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}
