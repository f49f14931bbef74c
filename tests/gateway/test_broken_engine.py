"""One engine whose pages are broken: it is down, for a reason, and everything else goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from conserve_server.core.errors import EngineFailed
from conserve_server.engines.conversation_kv import ConversationKv
from conserve_server.engines.document import MAX_LOOK_BYTES
from conserve_server.engines.engine import EngineSpec, Role
from tests.gateway.conftest import Serve, Served

LOAD = "vllm:num_requests_running {}\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0\n"
MODELLED = {"meter": "modelled", "window_s": 0.05}
PAGES = {
    "NaN": LOAD.format("NaN").encode(),
    "infinite": LOAD.format("+Inf").encode(),
    "1e400": LOAD.format("1e400").encode(),
    "a word": LOAD.format("many").encode(),
    "negative": LOAD.format("-1").encode(),
    "twice": (LOAD.format("1") + LOAD.format("1")).encode(),
    "missing": b"",
    "binary": bytes(range(256)) * 16,
    "huge": b"#" * (MAX_LOOK_BYTES + 1),
}
MODELS = {
    "nested": b'{"data":' + b"[" * 200_000,
    "wrong types": b'{"data":[{"id":7}]}',
    "not UTF-8": b'{"data":[{"id":"\xff"}]}',
    "a name of 1 MB": b'{"data":[{"id":"' + b"x" * 1_000_000 + b'"}]}',
    "a huge length": b'{"data":[{"id":"tiny","max_model_len":1e400}]}',
}
PLUGIN = {
    "wrong types": b'{"cursor":"x","is_full":true,"tokens":[]}',
    "nested": b'{"cursor":1,"is_full":true,"tokens":' + b'{"a":' * 200_000,
    "negative": b'{"cursor":1,"is_full":true,"tokens":{"a":-5}}',
    "too much": b'{"cursor":1,"is_full":true,"tokens":{"a":' + b"9" * 400 + b"}}",
    "not UTF-8": b'{"cursor":1,"is_full":true,"tokens":{"\xff":1}}',
    "binary": bytes(range(256)),
}


async def put(gateway: Served, engine: str, page: str, content: bytes) -> None:
    url = f"{gateway.engines[engine].url}/emulated/pages/{page}"
    assert (await gateway.client.put(url, content=content)).status_code == 204


async def health(gateway: Served) -> dict[str, Any]:
    document: dict[str, Any] = (await gateway.client.get("/health")).json()
    return document


async def up(gateway: Served) -> set[str]:
    return {engine["name"] for engine in (await health(gateway))["engines"] if engine["up"]}


async def told(gateway: Served, engine: str, signal: str, outcome: str = "sent") -> float:
    labels = f'engine="{engine}",outcome="{outcome}",signal="{signal}"'
    return await gateway.metric(f"conserve_kv_signals_total{{{labels}}}")


async def metered_j(gateway: Served) -> float:
    page = (await gateway.client.get("/metrics")).text
    rows = [row for row in page.splitlines() if row.startswith("hw_energy_joules_total{")]
    return sum(float(row.rsplit(" ", 1)[1]) for row in rows)


async def serves_all_the_same(gateway: Served) -> None:
    """A turn, its expiry, the signal of that, and the meters: all of them after the page broke."""
    joules = await metered_j(gateway)
    released = await told(gateway, "prefill-0", "release")
    assert (await gateway.ask("after", "hello " * 200)).status_code == 200

    async def has_gone_on() -> bool:
        report = await gateway.report("after")
        has_signals = await told(gateway, "prefill-0", "release") > released
        return report["state"] == "expired" and has_signals and await metered_j(gateway) > joules

    await gateway.eventually(has_gone_on)
    assert all(loop["runs"] for loop in (await health(gateway))["background"]["loops"])


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
async def test_a_broken_metrics_page_is_that_engine_s_failure_until_it_is_well_again(
    serve: Serve, page: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(idle_timeout_s=0.1, energy=MODELLED) as gateway:
        await put(gateway, "decode-1", "metrics", page)
        await gateway.eventually(lambda: is_up(gateway, {"prefill-0", "decode-0"}))
        assert "engine decode-1 is down: engine decode-1 answers" in caplog.text
        await serves_all_the_same(gateway)
        await gateway.client.delete(f"{gateway.engines['decode-1'].url}/emulated/pages/metrics")
        await gateway.eventually(lambda: is_up(gateway, {"prefill-0", "decode-0", "decode-1"}))


@pytest.mark.parametrize("page", MODELS.values(), ids=MODELS.keys())
async def test_a_broken_list_of_models_is_that_engine_s_failure(gateway: Served, page: bytes) -> None:
    await put(gateway, "decode-1", "v1/models", page)
    await gateway.eventually(lambda: is_up(gateway, {"prefill-0", "decode-0"}))
    assert (await gateway.ask("a", "hello")).status_code == 200


@pytest.mark.parametrize("call", ["resident", "capabilities"])
@pytest.mark.parametrize("page", PLUGIN.values(), ids=PLUGIN.keys())
async def test_a_plugin_that_answers_something_else_ends_no_loop(
    serve: Serve, page: bytes, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(is_ready=False) as gateway:
        await put(gateway, "decode-1", f"v1/conserve/{call}", page)
        await gateway.eventually(lambda: is_up(gateway, {"prefill-0", "decode-0", "decode-1"}))

        async def has_failed_twice() -> bool:
            return await told(gateway, "decode-1", "look", "failed") >= 2

        await gateway.eventually(has_failed_twice)
        assert caplog.text.count("engine decode-1 answers with something else") == 1
        loops = (await health(gateway))["background"]["loops"]
        assert [loop for loop in loops if not loop["runs"] or loop["failures"]] == []
        assert await told(gateway, "decode-0", "look", "failed") == 0


@pytest.mark.parametrize("page", PLUGIN.values(), ids=PLUGIN.keys())
async def test_a_fetch_that_is_answered_with_something_else_is_the_engine_s_failure(
    gateway: Served, page: bytes
) -> None:
    await put(gateway, "decode-0", "v1/conserve/fetch", page)
    plugin = ConversationKv(EngineSpec("decode-0", Role.DECODE, gateway.engines["decode-0"].url))
    with pytest.raises(EngineFailed, match="engine decode-0 answers with something else"):
        await plugin.fetch(["a"])
    plugin.close()


async def is_up(gateway: Served, engines: set[str]) -> bool:
    return await up(gateway) == engines


async def test_health_names_every_loop(gateway: Served) -> None:
    loops = (await health(gateway))["background"]["loops"]
    of_engines = {"engine_looks", "kv_signals", "kv_fetches", "kv_looks"}
    expected: set[tuple[str, str | None]] = {
        (name, engine) for name in of_engines for engine in gateway.engines
    }
    expected |= {
        (name, None) for name in ("expiry", "engine_drains", "energy_meters", "stream_heads", "yielding")
    }
    assert {(loop["loop"], loop["engine"]) for loop in loops} == expected


async def test_where_a_loop_has_ended_nevertheless_health_fails(gateway: Served) -> None:
    (expiry,) = [task for task in asyncio.all_tasks() if task.get_name() == "expiry"]
    expiry.cancel()
    await asyncio.wait([expiry])
    answer = await gateway.client.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "background work has ended")
    assert answer.json()["background"]["problem"] == "a loop has ended: expiry"
    assert gateway.app.state.problem() == "a loop has ended: expiry"
