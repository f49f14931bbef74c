"""Emulated engines in process, on a virtual clock, and what the tests ask of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from conserve_server.core.clock import VirtualClock
from conserve_server.engines.emulated import EmulatedConfig, create_emulated_engine

T = TypeVar("T")
Json = dict[str, Any]


class _ByHost(httpx2.AsyncBaseTransport):
    """Carries a request to the application that has its host's name."""

    def __init__(self) -> None:
        self.apps: dict[str, Starlette] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.host not in self.apps:
            raise httpx2.ConnectError(f"nobody listens at {request.url.host}")
        transport = httpx2.ASGITransport(app=self.apps[request.url.host])
        return await transport.handle_async_request(request)


class Bench:
    """Engines named by their host, one virtual clock, one client for all of them."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self._network = _ByHost()
        self.client = httpx2.AsyncClient(transport=self._network)
        self._stack = AsyncExitStack()

    async def start(self, config: EmulatedConfig) -> None:
        """Start an engine; a second one at the same host takes its place, as after a restart."""
        config = replace(config, port=80)
        app = create_emulated_engine(config, self.clock, peers=self._network)
        await self._stack.enter_async_context(app.router.lifespan_context(app))
        self._network.apps[config.host] = app

    def unplug(self, host: str) -> None:
        del self._network.apps[host]

    def app(self, host: str) -> Starlette:
        return self._network.apps[host]

    async def close(self) -> None:
        await self._stack.aclose()
        await self.client.aclose()

    async def run(self, work: Coroutine[Any, Any, T], *, limit_s: float = 60.0) -> T:
        """The result of `work`, time moving on until it is there."""
        task = asyncio.ensure_future(work)
        until_s = self.clock.now_s() + limit_s
        while not task.done():
            if self.clock.now_s() > until_s:
                task.cancel()
                raise TimeoutError(f"not done after {limit_s} virtual seconds")
            await self.clock.advance(0.001)
        return task.result()

    async def chat(self, host: str, text: str = "hello", **fields: Any) -> httpx2.Response:
        messages = fields.pop("messages", [{"role": "user", "content": text}])
        body = {"model": "emulated", "messages": messages, **fields}
        return await self.run(self.client.post(f"http://{host}/v1/chat/completions", json=body))

    async def complete(self, host: str, prompt: object, **fields: Any) -> httpx2.Response:
        body = {"model": "emulated", "prompt": prompt, **fields}
        return await self.run(self.client.post(f"http://{host}/v1/completions", json=body))

    async def metrics(self, host: str) -> dict[str, float]:
        """Every sample by its name; samples that differ in a label only are added up."""
        response = await self.client.get(f"http://{host}/metrics")
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(response.text):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found


@asynccontextmanager
async def _bench(*configs: EmulatedConfig) -> AsyncIterator[Bench]:
    bench = Bench()
    try:
        for config in configs:
            await bench.start(config)
        yield bench
    finally:
        await bench.close()


@pytest.fixture
def engines() -> Callable[..., AbstractAsyncContextManager[Bench]]:
    """`async with engines(config, …) as bench:` runs one engine for each configuration."""
    return _bench
