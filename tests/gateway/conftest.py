"""A real gateway on a loopback port over emulated engines, all in the test's own event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import httpx2
import pytest
import uvicorn
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.routing import Route
from uvicorn.lifespan.on import LifespanOn

from conserve_server.core.clock import SystemClock
from conserve_server.core.config import Config, GatewayConfig, parse_config
from conserve_server.engines.emulated import EmulatedConfig, EmulatedEngineServer
from conserve_server.engines.engine import Role, listed_engines
from conserve_server.gateway.app import create_app
from conserve_server.gateway.http.turn_protocol import TurnProtocol
from conserve_server.scheduling.policies import policy_of
from conserve_server.scheduling.policy import Policy
from conserve_server.serving.turns.draining import Draining

MODEL = "tiny"
WAIT_S = 10.0


def engine_config(role: Role, name: str, **changes: object) -> EmulatedConfig:
    return EmulatedConfig(model=MODEL, name=name, role=role, **changes)  # type: ignore[arg-type]


@dataclass
class Served:
    """A running gateway, its engines, a client of it, and the spans that it has ended."""

    url: str
    client: httpx2.AsyncClient
    engines: dict[str, EmulatedEngineServer]
    exporter: InMemorySpanExporter
    stack: AsyncExitStack
    app: Starlette = field(repr=False)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    @property
    def routes(self) -> set[tuple[str, str]]:
        """Method and path of every route, without those that come by themselves."""
        routes = [route for route in self.app.routes if isinstance(route, Route)]
        named = {
            (method, route.path.replace(":path}", "}")) for route in routes for method in route.methods or ()
        }
        return {(method, path) for method, path in named if method not in ("HEAD", "OPTIONS")}

    async def ask(self, conversation: str | None, text: str, **fields: object) -> httpx2.Response:
        """One chat turn with one user message."""
        return await self.chat(conversation, [{"role": "user", "content": text}], **fields)

    async def chat(
        self, conversation: str | None, messages: list[dict[str, str]], **fields: object
    ) -> httpx2.Response:
        headers = {} if conversation is None else {"x-conserve-conversation-id": conversation}
        body = {"model": MODEL, "messages": messages, "max_tokens": 8, **fields}
        return await self.client.post("/v1/chat/completions", json=body, headers=headers)

    def stream(self, conversation: str, text: str) -> AbstractAsyncContextManager[httpx2.Response]:
        """One streamed chat turn, which has begun to answer once this is entered."""
        messages = [{"role": "user", "content": text}]
        body = {"model": MODEL, "messages": messages, "max_tokens": 8, "stream": True}
        headers = {"x-conserve-conversation-id": conversation}
        return self.client.stream("POST", "/v1/chat/completions", json=body, headers=headers)

    async def report(self, conversation: str) -> dict[str, object]:
        response = await self.client.get(f"/v1/conversations/{conversation}")
        document: dict[str, object] = response.json()
        return document

    async def metric(self, line: str) -> float:
        """The value of one line of the gateway's Prometheus page; 0 if it is not there."""
        page = (await self.client.get("/metrics")).text
        found = [row for row in page.splitlines() if row.startswith(line + " ")]
        return float(found[0].rsplit(" ", 1)[1]) if found else 0.0

    async def engine_metric(self, engine: str, line: str) -> float:
        page = (await self.client.get(self.engines[engine].url + "/metrics")).text
        return sum(
            float(r.rsplit(" ", 1)[1]) for r in page.splitlines() if r.startswith((line + " ", line + "{"))
        )

    async def fault(self, engine: str, **fault: object) -> None:
        """Have the engine do something wrong for its next requests (`emulated.Fault`)."""
        answer = await self.client.post(self.engines[engine].url + "/emulated/faults", json=fault)
        assert answer.status_code == 204, answer.text

    async def eventually(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Wait until the awaited condition holds; the test fails if it does not in time."""
        async with asyncio.timeout(WAIT_S):
            while not await holds():  # noqa: ASYNC110 - seen over HTTP, where nothing signals
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serve_app(app: Starlette, *, keep_alive_s: float = 5) -> AsyncIterator[str]:
    """The application on a free loopback port."""
    bound = socket.socket()
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else heads wait 40 ms before bodies
    bound.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=TurnProtocol,
        log_config=None,
        lifespan="on",
        timeout_graceful_shutdown=2,
        timeout_keep_alive=keep_alive_s,  # type: ignore[arg-type]
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = LifespanOn(config)
    await server.startup(sockets=[bound])
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        await server.shutdown(sockets=[bound])


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@asynccontextmanager
async def served(
    *,
    prefill: list[EmulatedConfig] | None = None,
    decode: list[EmulatedConfig] | None = None,
    is_ready: bool = True,
    scheduler: dict[str, object] | None = None,
    kv: dict[str, object] | None = None,
    load: Callable[[], Config] | None = None,
    draining: Draining | None = None,
    energy: dict[str, object] | None = None,
    policy: Policy | None = None,
    config: Config | None = None,
    keep_alive_s: float = 5,
    **gateway: object,
) -> AsyncIterator[Served]:
    """A gateway over these engines (1 prefill and 2 decode unless given).

    Ready to serve unless `is_ready` is False, for gateways whose health not everybody may see. `config`
    stands in place of the one that lists the engines.
    """
    prefill = [engine_config(Role.PREFILL, "prefill-0")] if prefill is None else prefill
    if decode is None:
        decode = [engine_config(Role.DECODE, name) for name in ("decode-0", "decode-1")]
    async with AsyncExitStack() as stack:
        engines = await stack.enter_async_context(_emulated((*prefill, *decode)))
        provider, exporter = TracerProvider(), InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        pools = {
            "prefill": {"engines": [engines[c.name].url for c in prefill]},
            "decode": {"engines": [engines[c.name].url for c in decode]},
        }
        limits = GatewayConfig(**{"probe_interval_s": 0.05, **gateway})  # type: ignore[arg-type]
        document = {
            "pools": pools,
            "scheduler": scheduler or {},
            "kv": kv or {},
            "energy": energy or {},
        }
        listed = parse_config(document).model_copy(update={"gateway": limits})
        config = config or listed
        app = create_app(
            config,
            engines=listed_engines(listed),
            policy=policy or policy_of(config.scheduler),
            clock=SystemClock(),
            tracer=provider.get_tracer("test"),
            load=load,
            draining=draining,
        )
        url = await stack.enter_async_context(serve_app(app, keep_alive_s=keep_alive_s))
        # Certificates take 20 ms to load, and nothing here is encrypted.
        client = await stack.enter_async_context(
            httpx2.AsyncClient(base_url=url, timeout=WAIT_S, verify=False)
        )
        found = Served(url, client, engines, exporter, stack, app)
        if is_ready:
            await found.eventually(lambda: _all_up(found))
        yield found


@asynccontextmanager
async def _emulated(configs: tuple[EmulatedConfig, ...]) -> AsyncIterator[dict[str, EmulatedEngineServer]]:
    """The engines by their names; they are stopped at the same time, as each takes its time to stop."""
    engines: dict[str, EmulatedEngineServer] = {}
    try:
        for config in configs:
            engines[config.name] = await EmulatedEngineServer(config).__aenter__()
        yield engines
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines.values()))


@asynccontextmanager
async def serve_again(running: Served) -> AsyncIterator[Served]:
    """Another gateway over the same engines, as one that was restarted: it knows of nothing."""
    pools = {
        str(role): {"engines": [e.url for e in running.engines.values() if e.config.role is role]}
        for role in Role
    }
    config = parse_config({"pools": pools, "gateway": {"probe_interval_s": 0.05}})
    app = create_app(
        config,
        engines=listed_engines(config),
        policy=policy_of(config.scheduler),
        clock=SystemClock(),
        tracer=TracerProvider().get_tracer("test"),
    )
    async with serve_app(app) as url, httpx2.AsyncClient(base_url=url, timeout=WAIT_S) as client:
        found = Served(url, client, running.engines, running.exporter, running.stack, app)
        await found.eventually(lambda: _all_up(found))
        yield found


async def _all_up(served: Served) -> bool:
    engines = (await served.client.get("/health")).json()["engines"]
    return all(engine["up"] for engine in engines)


@pytest.fixture
def serve() -> Serve:
    """Start a gateway over emulated engines: `async with serve(decode=[…], max_wait_s=1.0) as gateway`."""
    return served


@pytest.fixture
async def gateway() -> AsyncIterator[Served]:
    """A gateway over 1 prefill and 2 decode engines."""
    async with served() as found:
        yield found
