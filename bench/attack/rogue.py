"""An engine that answers what it is told to: vLLM's health, models and metrics, and any bytes for a turn."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MODEL = "attacked"
_METRICS = """\
vllm:num_requests_running 0.0
vllm:num_requests_waiting 0.0
vllm:kv_cache_usage_perc 0.0
vllm:cache_config_info{block_size="32",num_gpu_blocks="100000"} 1.0
process_start_time_seconds 1.7e9
"""


@dataclass(frozen=True, slots=True)
class Heard:
    """A request that reached the engine."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


Act = Callable[[Heard, asyncio.StreamWriter], Awaitable[None]]


def chat_answer(text: str = "noon") -> dict[str, Any]:
    """A whole chat answer, as vLLM makes one."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
    return {"id": "c-1", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}


def chat_events(text: str = "noon") -> list[bytes]:
    """The events of a streamed chat answer: the opening, a token, the finish, the usage, the end."""
    chunk: dict[str, Any] = {"id": "c-1", "object": "chat.completion.chunk", "model": MODEL}
    deltas: list[tuple[dict[str, str], str | None]] = [
        ({"role": "assistant", "content": ""}, None),
        ({"content": text}, None),
        ({}, "stop"),
    ]
    events = [
        {**chunk, "choices": [{"index": 0, "delta": d, "finish_reason": reason}]} for d, reason in deltas
    ]
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
    events.append({**chunk, "choices": [], "usage": usage})
    return [*(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events), b"data: [DONE]\n\n"]


def whole(body: bytes, status: str = "200 OK", content_type: str = "application/json") -> bytes:
    """A response with a length."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM_END = b"0\r\n\r\n"


def chunk(piece: bytes) -> bytes:
    """A piece of a body in chunks."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def saying(*pieces: bytes) -> Act:
    """Answer a turn with exactly these bytes."""

    async def act(_heard: Heard, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    return act


async def honest(heard: Heard, writer: asyncio.StreamWriter) -> None:
    """Answer a turn as it should be: whole, or as a stream."""
    if heard.document.get("stream"):
        writer.write(STREAM_HEAD + b"".join(map(chunk, chat_events())) + STREAM_END)
    elif heard.path == "/v1/completions":
        choices = [{"index": 0, "text": "noon", "finish_reason": "stop"}]
        document = {**chat_answer(), "object": "text_completion", "choices": choices}
        writer.write(whole(json.dumps(document).encode()))
    else:
        writer.write(whole(json.dumps(chat_answer()).encode()))
    await writer.drain()


@dataclass
class Rogue:
    """A running engine; what it answers can be changed at any time."""

    port: int = 0
    metrics: bytes = _METRICS.encode()
    models: bytes = json.dumps({"object": "list", "data": [{"id": MODEL, "max_model_len": 40960}]}).encode()
    plugin: bytes | None = None
    """What every call under `/v1/conserve/` is answered with; None: 404, as vLLM without the plugin."""
    act: Act = honest
    heard: list[Heard] = field(default_factory=list)
    """The turns that reached it; the gateway's looks are not among them."""
    looks: int = 0

    def behave(self) -> None:
        """Be a good engine again."""
        fresh = Rogue()
        self.metrics, self.models, self.plugin, self.act = fresh.metrics, fresh.models, None, honest
        self.heard.clear()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Rogue]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 26)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled it is only when its loop ends, and asyncio's server takes a cancelled task for a fault.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                await self._answer(await _read(reader), writer)
        writer.transport.abort()

    async def _answer(self, heard: Heard, writer: asyncio.StreamWriter) -> None:
        path = heard.path.partition("?")[0]
        pages = {"/health": b"", "/metrics": self.metrics, "/v1/models": self.models}
        if path in pages:
            self.looks += path == "/health"
            writer.write(whole(pages[path]))
            await writer.drain()
        elif path.startswith("/v1/conserve/"):
            found = self.plugin
            writer.write(whole(b"{}", "404 Not Found") if found is None else whole(found))
            await writer.drain()
        else:
            self.heard.append(heard)
            await self.act(heard, writer)


async def _read(reader: asyncio.StreamReader) -> Heard:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Heard(first.split(" ")[1], headers, body)
