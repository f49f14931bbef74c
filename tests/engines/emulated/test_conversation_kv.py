"""The emulated engine takes signals about conversations as an engine with the plugin does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from conserve_server.engines.emulated import EmulatedConfig
from tests.engines.emulated.conftest import Bench

Engines = Callable[..., AbstractAsyncContextManager[Bench]]
BLOCK = 4
CONFIG = EmulatedConfig(host="d", kv_blocks=12, block_size=BLOCK, max_model_len=48)


async def turn(bench: Bench, session: str, first: int, count: int = 16) -> int:
    """One turn over token ids from `first`; how many of its tokens were cached."""
    body = {"model": "emulated", "prompt": list(range(first, first + count)), "max_tokens": 1}
    headers = {"x-session-id": session}
    answer = await bench.run(bench.client.post("http://d/v1/completions", json=body, headers=headers))
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


async def signal(bench: Bench, call: str, *sessions: str, **fields: Any) -> dict[str, Any]:
    body = {"conversations": list(sessions), **fields}
    answer: dict[str, Any] = (await bench.client.post(f"http://d/v1/conserve/{call}", json=body)).json()
    return answer


async def fill(bench: Bench, count: int = 2) -> None:
    for i in range(count):
        await turn(bench, f"other-{i}", 1000 * (i + 1))


async def test_without_signals_the_oldest_goes_first(engines: Engines) -> None:
    async with engines(CONFIG) as bench:
        await turn(bench, "a", 0)
        await fill(bench, 3)
        assert await turn(bench, "a", 0) == 0


async def test_released_blocks_go_first(engines: Engines) -> None:
    async with engines(CONFIG) as bench:
        await turn(bench, "a", 0)
        await turn(bench, "b", 500)
        await signal(bench, "release", "b")
        await fill(bench, 2)
        assert await turn(bench, "a", 0) == 12


async def test_a_kept_conversation_outlives_others(engines: Engines) -> None:
    async with engines(CONFIG) as bench:
        await turn(bench, "a", 0)
        await signal(bench, "keep", "a", timeout_s=60.0)
        await fill(bench, 4)
        assert await turn(bench, "a", 0) == 12


async def test_a_keep_has_an_end(engines: Engines) -> None:
    async with engines(CONFIG) as bench:
        await turn(bench, "a", 0)
        await signal(bench, "keep", "a", timeout_s=1.0)
        await bench.clock.advance(2.0)
        await fill(bench, 4)
        assert await turn(bench, "a", 0) == 0


async def test_a_shared_prefix_survives_the_release_of_one_owner(engines: Engines) -> None:
    async with engines(CONFIG) as bench:
        await turn(bench, "a", 0)
        await turn(bench, "b", 0)
        await signal(bench, "release", "a")
        assert await turn(bench, "c", 0) == 12


async def test_resident_tells_what_is_cached_and_what_is_gone(engines: Engines) -> None:
    async with engines(CONFIG) as bench:
        await turn(bench, "a", 0)
        first = (await bench.client.get("http://d/v1/conserve/resident")).json()["tokens"]
        await signal(bench, "release", "a")
        second = (await bench.client.get("http://d/v1/conserve/resident")).json()["tokens"]
    assert (first, second) == ({"a": 16}, {"a": 0})


async def test_an_engine_without_the_plugin_has_no_such_routes(engines: Engines) -> None:
    async with engines(EmulatedConfig(host="d", follows_conversations=False)) as bench:
        assert (await bench.client.get("http://d/v1/conserve/capabilities")).status_code == 404
