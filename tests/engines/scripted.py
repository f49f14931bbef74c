"""An engine that plays scripts, and a client's connections to it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from conserve_server.engines.connections import Connections

WAIT_S = 10.0
HELLO = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\ncontent-length: 5\r\n\r\nhello"

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class ScriptedEngine:
    """A server that plays one script a request, the last one again and again."""

    scripts: Sequence[Script]
    url: str = ""
    accepted: int = 0
    requests: list[bytes] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                await self.scripts[min(len(self.requests), len(self.scripts)) - 1](reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.hung_up.set()
        finally:
            writer.close()


def says(*pieces: bytes, then_closes: bool = False) -> Script:
    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if then_closes:
            raise ConnectionAbortedError

    return script


async def is_silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(1)


@asynccontextmanager
async def engine(
    *scripts: Script, tls: ssl.SSLContext | None = None, prefix: str = "", silence_timeout_s: float = WAIT_S
) -> AsyncIterator[tuple[ScriptedEngine, Connections]]:
    scripted = ScriptedEngine(scripts)
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    url = f"{'https' if tls else 'http'}://localhost:{port}{prefix}"
    connections = Connections("decode-0", url, silence_timeout_s=silence_timeout_s)
    try:
        async with server, asyncio.timeout(WAIT_S):
            yield scripted, connections
            connections.close()
    finally:
        connections.close()


async def ask(connections: Connections, body: bytes = b"{}") -> bytes:
    async with connections.request("POST", "/v1/chat/completions", {}, body) as answer:
        return b"".join([chunk async for chunk in answer.chunks()])
