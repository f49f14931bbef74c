"""The routes of vLLM's API server, over a stand-in for its engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.routing import Route

from conserve_vllm import kv_routes
from conserve_vllm.host_fetch import bring_back
from conserve_vllm.kv_guard import Vllm
from conserve_vllm.kv_metrics import KvMetrics
from conserve_vllm.kv_routes import BringBack, KvRoutes, Refused, call_engines
from conserve_vllm.kv_server import ConversationRoutes

COUNTS = {"released": 3, "kept": 0, "evicted_while_kept": 1}


class Client:
    """vLLM's engine client: remembers the calls, gives each rank's answer."""

    def __init__(self, *answers: dict[str, Any], error: Exception | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._answers = answers
        self._error = error
        self.engine_core = SimpleNamespace(
            core_engines=list(range(len(answers) or 1)), _call_utility_async=self._call
        )

    async def _call(self, method: str, *args: Any, engine: int) -> dict[str, Any]:
        self.calls.append((method, *args, engine))
        if self._error is not None:
            raise self._error
        return {**self._answers[engine], "counts": COUNTS}


class Page:
    """A client of the routes, and their metrics."""

    def __init__(self, client: httpx2.AsyncClient, registry: CollectorRegistry) -> None:
        self.client, self._registry = client, registry

    @property
    def metrics(self) -> str:
        return generate_latest(self._registry).decode()

    async def post(self, call: str, **body: Any) -> httpx2.Response:
        return await self.client.post(f"/v1/conserve/{call}", json=body)

    async def get(self, call: str) -> httpx2.Response:
        return await self.client.get(f"/v1/conserve/{call}")


@asynccontextmanager
async def page(
    engines: Client, *, reason: str | None = None, bring_back: BringBack = bring_back
) -> AsyncIterator[Page]:
    registry = CollectorRegistry()
    routes = KvRoutes(reason=reason, vllm=Vllm("0.32.0"), metrics=KvMetrics(registry), bring_back=bring_back)
    app = Starlette(routes=routes.table())
    app.state.engine_client = engines
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://engine") as client:
        yield Page(client, registry)


async def test_a_release_reaches_every_rank() -> None:
    engines = Client({"waiting": []}, {"waiting": ["a"]})
    async with page(engines) as routes:
        answer = await routes.post("release", conversations=["a", "b"])
    assert answer.json() == {"waiting": ["a"]}
    assert engines.calls == [("conserve_kv", "release", ["a", "b"], 0.0, rank) for rank in (0, 1)]


async def test_a_keep_carries_its_time_out() -> None:
    engines = Client({"blocks": 7})
    async with page(engines) as routes:
        assert (await routes.post("keep", conversations=["a"], timeout_s=12.5)).json() == {"blocks": 7}
    assert engines.calls == [("conserve_kv", "keep", ["a"], 12.5, 0)]


async def test_resident_of_one_rank_goes_on_from_the_cursor() -> None:
    engines = Client({"cursor": 9, "tokens": {"a": 32}, "is_full": False})
    async with page(engines) as routes:
        answer = await routes.get("resident?since=4")
    assert answer.json() == {"cursor": 9, "tokens": {"a": 32}, "is_full": False}
    assert engines.calls[0][3] == 4.0


async def test_resident_of_several_ranks_is_the_sum_of_all_that_they_have() -> None:
    rank = {"cursor": 9, "tokens": {"a": 32}, "is_full": True}
    engines = Client(rank, rank)
    async with page(engines) as routes:
        answer = await routes.get("resident?since=4")
    assert answer.json()["tokens"] == {"a": 64}
    assert engines.calls[-1][3] == -1.0


async def test_capabilities_name_version_calls_and_blocks() -> None:
    async with page(Client({"block_size": 32, "blocks": 100, "host_blocks": 0})) as routes:
        answer = (await routes.get("capabilities")).json()
    assert answer == {
        "api_version": 1,
        "calls": ["release", "refresh", "keep", "resident"],
        "vllm_version": "0.32.0",
        "is_tested": True,
        "ranks": 1,
        "block_size": 32,
        "blocks": 100,
        "host_blocks": 0,
    }


@pytest.mark.parametrize(("ranks", "calls"), [(1, ["offload", "fetch"]), (2, ["offload"])])
async def test_an_engine_with_a_host_tier_can_offload_and_one_rank_alone_can_fetch(
    ranks: int, calls: list[str]
) -> None:
    sizes = {"block_size": 32, "blocks": 100, "host_blocks": 400}
    async with page(Client(*[sizes] * ranks)) as routes:
        answer = (await routes.get("capabilities")).json()
    assert (answer["calls"][4:], answer["host_blocks"]) == (calls, 400 * ranks)


async def test_a_fetch_brings_back_what_the_engine_names_and_tells_how_much() -> None:
    brought: list[dict[str, list[int]]] = []

    async def bring_back(_: Any, contexts: dict[str, list[int]]) -> None:
        brought.append(contexts)

    engines = Client({"contexts": {"a": [7, 8, 9], "b": []}})
    async with page(engines, bring_back=bring_back) as routes:
        answer = await routes.post("fetch", conversations=["a", "b"])
    assert answer.json() == {"tokens": {"a": 2}}
    assert (engines.calls[0][1], brought) == ("context", [{"a": [7, 8, 9]}])
    assert 'call="fetch",outcome="done"' in routes.metrics


async def test_a_fetch_from_several_ranks_or_without_a_host_tier_is_refused() -> None:
    for engines in (Client({"contexts": {}}, {"contexts": {}}), Client({"refused": "no host tier"})):
        async with page(engines) as routes:
            assert (await routes.post("fetch", conversations=["a"])).status_code == 501


@pytest.mark.parametrize("call", ["capabilities", "resident"])
async def test_where_the_plugin_is_off_the_routes_say_why(call: str) -> None:
    async with page(Client(), reason="switched off by CONSERVE_KV") as routes:
        answer = await routes.get(call)
    assert (answer.status_code, answer.json()["error"]["message"]) == (501, "switched off by CONSERVE_KV")


async def test_a_refusal_of_the_engine_is_passed_on() -> None:
    async with page(Client({"refused": "hybrid"})) as routes:
        answer = await routes.post("release", conversations=["a"])
    assert (answer.status_code, answer.json()["error"]["message"]) == (501, "hybrid")


async def test_an_engine_that_fails_is_a_503() -> None:
    async with page(Client({}, error=RuntimeError("Call to conserve_kv method failed"))) as routes:
        answer = await routes.post("release", conversations=["a"])
    assert answer.status_code == 503


async def test_an_engine_that_is_silent_is_a_504(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    engines = Client({})
    engines.engine_core._call_utility_async = silent
    monkeypatch.setattr(kv_routes, "CALL_TIMEOUT_S", 0.01)
    async with page(engines) as routes:
        assert (await routes.post("release", conversations=["a"])).status_code == 504


@pytest.mark.parametrize(
    ("call", "body", "message"),
    [
        ("release", {}, "the body must be JSON"),
        ("release", {"conversations": "a"}, "must be a list"),
        ("release", {"conversations": [""]}, "1 to 1024 characters"),
        ("release", {"conversations": ["a"] * 1001}, "at most 1000"),
        ("keep", {"conversations": ["a"]}, "keep needs timeout_s"),
        ("keep", {"conversations": ["a"], "timeout_s": "1"}, "number of seconds"),
        ("keep", {"conversations": ["a"], "timeout_s": -1}, "from 0 to 86400"),
    ],
)
async def test_what_is_wrong_with_a_body_is_said(call: str, body: dict[str, Any], message: str) -> None:
    async with page(Client({})) as routes:
        answer = await routes.post(call, **body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


async def test_a_cursor_that_is_none_is_refused() -> None:
    async with page(Client({})) as routes:
        assert (await routes.get("resident?since=soon")).status_code == 400


async def test_counts_and_calls_are_on_the_metrics_page() -> None:
    async with page(Client({"waiting": []})) as routes:
        await routes.post("release", conversations=["a"])
        text = routes.metrics
    assert "conserve_kv_blocks_released_total 3.0" in text
    assert "conserve_kv_blocks_evicted_while_kept_total 1.0" in text
    assert 'conserve_kv_call_seconds_count{call="release",outcome="done"} 1.0' in text


async def test_a_client_that_reaches_no_ranks_is_refused() -> None:
    with pytest.raises(Refused, match="no way to reach every rank"):
        await call_engines(SimpleNamespace(), "release", [], 0.0)


async def test_the_middleware_adds_the_routes_once_inside_what_guards_the_application(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attached: list[object] = []

    def attach(app: Any) -> None:
        if not attached:
            attached.append(app)
            app.router.routes.append(Route("/v1/conserve/capabilities", _ok))

    monkeypatch.setattr("conserve_vllm.kv_server.attach_routes", attach)
    app = Starlette()
    app.add_middleware(_Guard)
    app.add_middleware(ConversationRoutes)
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://engine") as client:
        assert (await client.get("/v1/conserve/capabilities")).status_code == 401
        good = await client.get("/v1/conserve/capabilities", headers={"authorization": "Bearer key"})
    assert (good.status_code, attached) == (200, [app])


async def _ok(request: Any) -> Any:
    from starlette.responses import Response

    return Response()


class _Guard:
    """Lets in who has a key, as vLLM's --api-key does."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import Response

        if dict(scope.get("headers", [])).get(b"authorization") is None and scope["type"] == "http":
            await Response(status_code=401)(scope, receive, send)
        else:
            await self._app(scope, receive, send)
