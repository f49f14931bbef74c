"""A mock vLLM engine that answers at once: what is measured is what lies in front of it.

python bench/mock_engine.py PORT
"""

from __future__ import annotations

import json
import sys

import uvicorn
from starlette.types import Receive, Scope, Send

MODEL = "mock"
EVENTS = 32
USAGE = {"prompt_tokens": 1000, "completion_tokens": EVENTS, "prompt_tokens_details": {"cached_tokens": 960}}
ANSWER = json.dumps(
    {
        "id": "chatcmpl-mock",
        "object": "chat.completion",
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * EVENTS}}],
        "usage": USAGE,
    }
).encode()


def _event(document: dict[str, object]) -> bytes:
    head = {"id": "chatcmpl-mock", "object": "chat.completion.chunk", "model": MODEL}
    return b"data: " + json.dumps({**head, **document}).encode() + b"\n\n"


TOKEN = _event({"choices": [{"index": 0, "delta": {"content": "word "}}]})
STREAM = [TOKEN] * EVENTS
STREAM_END = b"data: [DONE]\n\n"
STREAM_USAGE = _event({"choices": [], "usage": USAGE})
PAGES = {
    "/health": b"",
    "/v1/models": json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode(),
    "/metrics": b'vllm:cache_config_info{block_size="16",num_gpu_blocks="100000000"} 1.0\n'
    b"process_start_time_seconds 1.0\n",
}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The whole engine."""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if scope["method"] == "GET":
        await _answer(send, b"application/json", PAGES.get(scope["path"], b"{}"))
    elif b'"stream": true' in body or b'"stream":true' in body:
        await _stream(send, b"include_usage" in body)
    else:
        await _answer(send, b"application/json", ANSWER)


async def _answer(send: Send, content_type: bytes, body: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _stream(send: Send, with_usage: bool) -> None:
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for event in STREAM:
        await send({"type": "http.response.body", "body": event, "more_body": True})
    tail = STREAM_USAGE + STREAM_END if with_usage else STREAM_END
    await send({"type": "http.response.body", "body": tail})


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
