"""One side of the SDK's bench: a process that makes model calls as it is told, and says how long each took.

python bench/sdk_worker.py off|tagged|official|traced, then a command a line: `calls N`, `tools N`, `memory N`
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import httpx2
from openai import OpenAI

import conserve_sdk as conserve

URL = "http://127.0.0.1:9/v1"
"""Nothing listens there: model calls are answered in process, control calls never."""
MESSAGES: Any = [{"role": "user", "content": "1 + 2?"}]
CALLS_OF_A_CONVERSATION = 10


def main() -> None:
    side = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        calls = Calls(side, pathlib.Path(folder))
        commands = {"calls": calls.time_calls, "tools": calls.time_tools, "memory": calls.memory}
        for line in sys.stdin:
            name, count = line.split()
            print(json.dumps(commands[name](int(count))), flush=True)
        calls.end()


class Calls:
    """The client of this side: `tagged` and `traced` are wrapped, `official` and `traced` write spans."""

    def __init__(self, side: str, folder: pathlib.Path) -> None:
        self._end: Callable[[], object] = lambda: None
        if side in ("official", "traced"):
            self._end = trace_to(folder / "spans.jsonl")
        if side == "official":
            from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

            OpenAIInstrumentor().instrument()
        if side == "traced":
            conserve.instrument()
        self._client = client()
        self._is_wrapped = side in ("tagged", "traced")
        if self._is_wrapped:
            conserve.wrap(self._client)

    def time_calls(self, count: int) -> list[float]:
        """Microseconds of each of `count` model calls, those of a wrapped client inside a conversation."""
        if not self._is_wrapped:
            return [duration_us(self._ask) for _ in range(count)]
        with conserve.conversation(agent="bench", keep_open=True):
            return [duration_us(self._ask) for _ in range(count)]

    def time_tools(self, count: int) -> list[float]:
        """Microseconds of each of `count` tool calls that do nothing."""
        conversation = conserve.conversation(agent="bench")

        def call_tool() -> None:
            with conversation.tool("search"):
                pass

        return [duration_us(call_tool) for _ in range(count)]

    def memory(self, count: int) -> list[int]:
        """Bytes resident at most so far, after `count` more calls; a conversation has ten and a tool."""
        for _ in range(count // CALLS_OF_A_CONVERSATION):
            self._converse()
        return [peak_bytes()]

    def _converse(self) -> None:
        # No block's end here: it would wait for a gateway that never answers.
        with conserve.conversation(agent="bench", keep_open=True) as conversation:
            for _ in range(CALLS_OF_A_CONVERSATION):
                self._ask()
            with conversation.tool("search"):
                pass

    def _ask(self) -> None:
        self._client.chat.completions.create(model="m", messages=MESSAGES)

    def end(self) -> None:
        self._end()


def client() -> OpenAI:
    """A client whose server answers at once, in process."""
    body = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "3"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    }
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, json=body))
    return OpenAI(base_url=URL, api_key="-", http_client=httpx2.Client(transport=transport))


def trace_to(path: pathlib.Path) -> Callable[[], object]:
    """A tracer provider that exports in batches, as OTLP JSON lines: the same for both sides with spans."""
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.json.file import FileSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(FileSpanExporter(path)))
    trace.set_tracer_provider(provider)
    return provider.shutdown


def duration_us(call: Callable[[], None]) -> float:
    started_s = time.perf_counter()
    call()
    return (time.perf_counter() - started_s) * 1e6


def peak_bytes() -> int:
    """The most that this process has had resident so far (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    os.environ.setdefault("CONSERVE_DISABLED", "")
    main()
