"""A mock vLLM engine that answers at once: what is measured is what lies in front of it.

    python bench/mock_engine.py PORT

Not an HTTP server: it reads just as much of a request as its answer depends on, so that it
takes about 10 µs of a core for one. A stream is written in several pieces, as an engine's is.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import cast

import uvloop

MODEL = "mock"
EVENTS = 32
PIECES = 8
"""Socket writes that a stream's events are spread over."""
USAGE = {"prompt_tokens": 1000, "completion_tokens": EVENTS, "prompt_tokens_details": {"cached_tokens": 960}}
_ENDS = 512
"""Bytes at each end of a body in which `stream` and `include_usage` are looked for; not in the prompt."""


def _event(document: dict[str, object]) -> bytes:
    head = {"id": "chatcmpl-mock", "object": "chat.completion.chunk", "model": MODEL}
    return b"data: " + json.dumps({**head, **document}).encode() + b"\n\n"


def _whole(body: bytes, content_type: str = "application/json") -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


TOKEN = _event({"choices": [{"index": 0, "delta": {"content": "word "}}]})
PIECE = b"".join([_chunk(TOKEN)] * (EVENTS // PIECES))
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM_USAGE = _chunk(_event({"choices": [], "usage": USAGE}))
STREAM_END = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
ANSWER = _whole(
    json.dumps(
        {
            "id": "chatcmpl-mock",
            "object": "chat.completion",
            "model": MODEL,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * EVENTS}}],
            "usage": USAGE,
        }
    ).encode()
)
PAGES = {
    b"/health": _whole(b""),
    b"/v1/models": _whole(
        json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()
    ),
    b"/metrics": _whole(
        b'vllm:cache_config_info{block_size="16",num_gpu_blocks="100000000"} 1.0\n'
        b"process_start_time_seconds 1.0\n",
        "text/plain",
    ),
}


class MockEngine(asyncio.Protocol):
    """One connection: requests one after the other, each with a content length or without a body."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's derives from nothing
        self._head = b""
        self._body: list[bytes] = []
        self._missing = 0

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._take(data)
            return
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end:
            return
        self._head = head
        if head.startswith(b"GET"):
            self._answer(PAGES.get(head.split(b" ", 2)[1], PAGES[b"/health"]))
            return
        self._missing = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        self._take(rest)

    def _take(self, data: bytes) -> None:
        self._body.append(data)
        self._missing -= len(data)
        if self._missing:
            return
        ends = self._body[0][:_ENDS] + b"".join(self._body[-2:])[-_ENDS:]
        if b'"stream":true' in ends or b'"stream": true' in ends:
            self._transport.write(STREAM_HEAD)
            self._stream(PIECES, STREAM_USAGE + STREAM_END if b"include_usage" in ends else STREAM_END)
        else:
            self._answer(ANSWER)

    def _stream(self, pieces: int, end: bytes) -> None:
        if self._transport.is_closing():
            return
        if not pieces:
            self._answer(end)
            return
        self._transport.write(PIECE)
        asyncio.get_running_loop().call_soon(self._stream, pieces - 1, end)

    def _answer(self, last: bytes) -> None:
        self._head = b""
        self._body = []
        self._transport.write(last)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(MockEngine, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
