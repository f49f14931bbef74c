"""Small real stand-ins: a model behind a mock transport, and a gateway that takes control calls."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, OpenAI
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from conserve_sdk import _conversation, protocol
from conserve_sdk._delivery import Delivery

GATEWAY = "http://127.0.0.1:9/v1"
"""Nothing listens there: what is not mocked fails at once."""


def _message(request: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A tool call where tools are offered and none has answered yet, else a word."""
    last = request["messages"][-1]["role"] if request["messages"] else "user"
    if request.get("tools") and last == "user":
        function = {"name": "add", "arguments": '{"a": 1, "b": 2}'}
        call = {"index": 0, "id": "call_1", "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"
    return {"role": "assistant", "content": "3"}, "stop"


def _completion(request: dict[str, Any]) -> httpx2.Response:
    message, finish = _message(request)
    common = {"id": "c", "created": 1, "model": "m"}
    if not request.get("stream"):
        choice = {"index": 0, "message": message, "finish_reason": finish}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        body = {**common, "object": "chat.completion", "choices": [choice], "usage": usage}
        return httpx2.Response(200, json=body)
    deltas = [{"index": 0, "delta": message}, {"index": 0, "delta": {}, "finish_reason": finish}]
    chunks = [{**common, "object": "chat.completion.chunk", "choices": [delta]} for delta in deltas]
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return httpx2.Response(
        200, headers={"content-type": "text/event-stream"}, content="".join([*lines, "data: [DONE]\n\n"])
    )


@dataclass
class FakeModel:
    """Answers chat completions in process and keeps the requests; `failures` are answered first.

    No way for control calls: those go by the SDK's own client, to `FakeControl`.
    """

    requests: list[httpx2.Request] = field(default_factory=list)
    failures: list[httpx2.Response] = field(default_factory=list)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if protocol.CONVERSATIONS_PATH in request.url.path:
            raise httpx2.ConnectError("no control calls here")
        self.requests.append(request)
        if self.failures:
            return self.failures.pop(0)
        return _completion(json.loads(request.content))

    def http(self) -> httpx2.Client:
        return httpx2.Client(transport=httpx2.MockTransport(self))

    def async_http(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(transport=httpx2.MockTransport(self))

    def client(self, base_url: str = GATEWAY) -> OpenAI:
        return OpenAI(base_url=base_url, api_key="key", http_client=self.http())

    def async_client(self, base_url: str = GATEWAY) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=base_url, api_key="key", http_client=self.async_http())

    def ids(self) -> list[str | None]:
        """The conversation that each request carried."""
        return [request.headers.get(protocol.CONVERSATION_ID) for request in self.requests]


@dataclass
class FakeControl:
    """The gateway's control side in process: keeps each call as (method, path, body)."""

    calls: list[tuple[str, str, Any]] = field(default_factory=list)
    requests: list[httpx2.Request] = field(default_factory=list)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content) if request.content else None
        self.requests.append(request)
        self.calls.append((request.method, request.url.path, body))
        return httpx2.Response(200, json={})

    def client(self) -> httpx2.Client:
        return httpx2.Client(transport=httpx2.MockTransport(self))

    def events(self) -> list[dict[str, Any]]:
        """All tool boundaries in the order in which they came."""
        return [event for _, _, body in self.calls if body for event in body["events"]]


class LoopbackGateway:
    """A real HTTP server on a free port: models, events, release and report."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Any]] = []
        self.authorizations: set[str | None] = set()
        self.statuses: list[int] = []
        self.report = protocol.ConversationReport("c", "ended", turns=())
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)

    def _answer(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        self.calls.append((method, path, body))
        if path.endswith("/chat/completions"):
            return 200, _completion(body).content
        status = self.statuses.pop(0) if self.statuses else 200
        return status, json.dumps(self.report.to_json() if method == "GET" else {}).encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                raw = self.rfile.read(length)
                gateway.authorizations.add(self.headers.get("authorization"))
                is_json = "json" in (self.headers.get("content-type") or "")
                body = json.loads(raw) if is_json and raw else None
                status, answer = gateway._answer(self.command, self.path, body)
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_DELETE = _serve  # noqa: N815 - http.server's names

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its signature
                """Nothing on the terminal."""

        return Handler


@dataclass
class Spans:
    """What was traced, by the provider of this test alone."""

    exporter: InMemorySpanExporter

    def all(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, start: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name.startswith(start)]


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def make_delivery() -> Iterator[Callable[..., Delivery]]:
    """Deliveries that are closed when the test ends."""
    made: list[Delivery] = []

    def make(**options: Any) -> Delivery:
        made.append(Delivery(**options))
        return made[-1]

    yield make
    for delivery in made:
        delivery.close(2.0)


@pytest.fixture(autouse=True)
def control(monkeypatch: pytest.MonkeyPatch, make_delivery: Callable[..., Delivery]) -> FakeControl:
    """Control calls stay in process, unless a test asks for `loopback`."""
    for variable in ("CONSERVE_DISABLED", "CONSERVE_ALLOWED_HOSTS", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(variable, raising=False)
    control = FakeControl()
    delivery = make_delivery(open_client=control.client)
    monkeypatch.setattr(_conversation, "process_delivery", lambda: delivery)
    return control


@pytest.fixture
def loopback(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch, make_delivery: Callable[..., Delivery]
) -> Iterator[LoopbackGateway]:
    gateway = LoopbackGateway()
    delivery = make_delivery()
    monkeypatch.setattr(_conversation, "process_delivery", lambda: delivery)
    yield gateway
    gateway.close()


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """A tracer provider as an application would have set it, for this test alone."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield Spans(exporter)
    provider.shutdown()
    _uninstrument()


def _uninstrument() -> None:
    from opentelemetry.instrumentation.genai.langchain import LangChainInstrumentor
    from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

    kinds: list[Any] = [LangChainInstrumentor, OpenAIInstrumentor]
    if "agents" in sys.modules:
        from opentelemetry.instrumentation.genai.openai_agents import OpenAIAgentsInstrumentor

        kinds.append(OpenAIAgentsInstrumentor)
    for kind in kinds:
        instrumentor = kind()
        if instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.uninstrument()
    if "pydantic_ai" in sys.modules:
        from pydantic_ai import Agent

        Agent.instrument_all(False)
