"""KV that follows the conversation, on real vLLM: what release and keep save; that all else is the same."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx2
import pytest

from conserve_server.cli.gateway_process import running_gateway
from conserve_server.engines.engine import Role
from conserve_server.engines.vllm_metrics import RUNNING, TRANSFERS
from tests.real.cluster import MODEL, RealCluster, local_engines
from tests.real.kv_engine import BLOCK_TOKENS, KvEngine, Turn, token_ids

pytestmark = pytest.mark.real

LIMIT_S = 120.0
CONTEXT_TOKENS = 1_900
"""59 whole blocks: four of them fill an engine's 256 blocks."""
OTHERS = ("b", "c", "d", "e")
KV_USE = "vllm:kv_cache_usage_perc"
TO_PREFILLER = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    **dict.fromkeys(("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")),
}


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=LIMIT_S) as found:
        yield found


@pytest.fixture
def decoder(real_cluster: RealCluster, client: httpx2.AsyncClient) -> KvEngine:
    return KvEngine(real_cluster.engines.url(Role.DECODE), MODEL, client)


@pytest.fixture
def prefiller(real_cluster: RealCluster, client: httpx2.AsyncClient) -> KvEngine:
    return KvEngine(real_cluster.engines.url(Role.PREFILL), MODEL, client)


@pytest.fixture
def reference(real_cluster: RealCluster, client: httpx2.AsyncClient) -> KvEngine:
    """No prefix cache, so the plugin refuses it."""
    return KvEngine(real_cluster.reference_url, MODEL, client)


@pytest.fixture(scope="module")
def switched_off_url(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An engine whose plugin is switched off."""
    folder = tmp_path_factory.mktemp("off")
    with local_engines(folder, vllm_python, env='{ CONSERVE_KV = "0" }') as engines:
        yield engines.url(Role.DECODE)


async def test_both_sides_of_a_pair_say_what_they_can_do(decoder: KvEngine, prefiller: KvEngine) -> None:
    for engine in (decoder, prefiller):
        found = (await engine.look("capabilities")).json()
        assert (found["block_size"], found["ranks"], found["is_tested"]) == (BLOCK_TOKENS, 1, True)
        assert found["calls"] == ["release", "refresh", "keep", "resident"]


async def next_turn_s_cached_tokens(engine: KvEngine, row: str) -> int:
    """A's next turn after others have filled the cache; all end released where the engine can."""
    run = uuid.uuid4().hex[:6]
    seed = random.Random(run).randrange(10**6)
    context = token_ids(CONTEXT_TOKENS, seed)
    context += (await engine.turn(f"a-{run}", context)).tokens
    if row == "kept":
        await engine.signal("keep", f"a-{run}", timeout_s=60.0)
    for i, name in enumerate(OTHERS):
        await engine.turn(f"{name}-{run}", token_ids(CONTEXT_TOKENS, seed + i + 1))
        if row == "released":
            await engine.signal("release", f"{name}-{run}")
    found = await engine.turn(f"a-{run}", [*context, *token_ids(20, seed + 9)])
    await engine.ask("release", *(f"{name}-{run}" for name in ("a", *OTHERS)))
    return found.cached


async def test_the_next_turn_finds_its_context_where_others_were_released_or_it_was_kept(
    decoder: KvEngine,
) -> None:
    found = {row: await next_turn_s_cached_tokens(decoder, row) for row in ("stock", "released", "kept")}
    whole = CONTEXT_TOKENS // BLOCK_TOKENS * BLOCK_TOKENS
    assert found["stock"] < whole / 2
    assert (found["released"], found["kept"]) == (whole, whole)


async def test_an_engine_whose_plugin_is_off_evicts_as_vllm_does(
    switched_off_url: str, client: httpx2.AsyncClient
) -> None:
    engine = KvEngine(switched_off_url, MODEL, client)
    refused = await engine.ask("release", "a")
    assert (refused.status_code, refused.json()["error"]["message"]) == (501, "switched off by CONSERVE_KV")
    assert await next_turn_s_cached_tokens(engine, "stock") < CONTEXT_TOKENS / 2


async def test_an_engine_without_a_prefix_cache_is_refused_with_the_reason(reference: KvEngine) -> None:
    for answer in (await reference.look("capabilities"), await reference.ask("keep", "a", timeout_s=1.0)):
        message = answer.json()["error"]["message"]
        assert (answer.status_code, message) == (501, "prefix caching is off")


class Speaks(Protocol):
    """Answers a turn: an engine, or one whose caches are left out."""

    async def turn(self, session: str | None, prompt: list[int]) -> Turn: ...


@dataclass
class Life:
    """One conversation of the random interleaving: turns, tools, aborts, and an end."""

    engine: KvEngine
    reference: Speaks
    random: random.Random
    name: str
    context: list[int] = field(default_factory=list)
    compared: int = 0

    async def live(self, turns: int) -> None:
        self.context = token_ids(self.random.randrange(100, 900), self.random.randrange(10**6))
        for _ in range(turns):
            await self.random.choice([self.speak, self.speak, self.speak, self.leave, self.release])()
            await self.random.choice([self.use_tool, self.refresh, self.nothing])()
        await self.release()

    async def speak(self) -> None:
        found = await self.engine.turn(self.name, self.context)
        alone = await self.reference.turn(None, self.context)
        assert found.tokens == alone.tokens, self.name
        self.compared += 1
        added = token_ids(self.random.randrange(5, 60), self.random.randrange(10**6))
        self.context = [*self.context, *found.tokens, *added][:CONTEXT_TOKENS]

    async def leave(self) -> None:
        """An abort in the middle; sometimes a release comes while the turn runs."""
        release = self.random.random() < 0.5
        if release:
            await asyncio.gather(self.engine.abandon(self.name, self.context), self.release())
        else:
            await self.engine.abandon(self.name, self.context)

    async def release(self) -> None:
        await self.engine.signal("release", self.name)

    async def refresh(self) -> None:
        await self.engine.signal("refresh", self.name)

    async def use_tool(self) -> None:
        await self.engine.signal("keep", self.name, timeout_s=self.random.choice([0.0, 0.05, 30.0]))
        await asyncio.sleep(self.random.random() * 0.1)

    async def nothing(self) -> None:
        await asyncio.sleep(0)


@pytest.mark.parametrize("seed", [1, 2])
async def test_answers_are_the_same_and_no_block_is_lost_under_any_interleaving(
    decoder: KvEngine, reference: KvEngine, seed: int
) -> None:
    await decoder.signal("release", *await decoder.resident())
    before = await decoder.metric(KV_USE)
    source, run = random.Random(seed), uuid.uuid4().hex[:6]
    lives = [Life(decoder, reference, random.Random(source.random()), f"life-{run}-{i}") for i in range(8)]
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        for life in lives:
            group.create_task(life.live(turns=5))
    assert sum(life.compared for life in lives) >= 12
    async with asyncio.timeout(LIMIT_S):
        while await decoder.metric(RUNNING) or set(await decoder.resident()):  # noqa: ASYNC110 - over HTTP
            await asyncio.sleep(0.1)
    assert await decoder.metric(KV_USE) == before == 0.0
    # What was released is free for others: four conversations that need nearly all blocks at once.
    four = [decoder.turn(f"{run}-{i}", token_ids(CONTEXT_TOKENS, i), max_tokens=100) for i in range(4)]
    assert [len(turn.tokens) for turn in await asyncio.gather(*four)] == [100] * 4


async def test_a_release_during_a_transfer_s_lease_waits_for_the_transfer(
    prefiller: KvEngine, decoder: KvEngine, reference: KvEngine
) -> None:
    run = f"pair-{uuid.uuid4().hex[:6]}"
    prompt = token_ids(500, random.Random(run).randrange(10**6))
    leg = await prefiller.turn(run, prompt, max_tokens=1, kv_transfer_params=TO_PREFILLER)
    assert (await prefiller.signal("release", run))["waiting"] == [run]
    transfers = await decoder.metric(TRANSFERS)
    found = await decoder.turn(run, prompt, kv_transfer_params=leg.transfer)
    assert found.tokens == (await reference.turn(None, prompt)).tokens
    assert await decoder.metric(TRANSFERS) == transfers + 1
    async with asyncio.timeout(LIMIT_S):
        while run in await prefiller.resident() or await prefiller.metric(KV_USE):
            # vLLM frees what was pulled in a step, and an idle engine makes none by itself.
            await prefiller.turn(None, token_ids(5, 1), max_tokens=1)
            await asyncio.sleep(0.1)
    assert (await decoder.resident())[run] == 480  # the whole blocks of 500 tokens and 7 of the answer
    await decoder.signal("release", run)


def own_tokens(conversation: str, count: int) -> list[int]:
    """A prompt that no other conversation shares: a release leaves alone what is shared."""
    return token_ids(count, random.Random(conversation).randrange(10**6))


async def test_the_engine_s_metrics_page_counts_blocks_and_calls(decoder: KvEngine) -> None:
    name = f"counted-{uuid.uuid4().hex[:6]}"
    await decoder.look("resident")
    before = await decoder.metric("conserve_kv_blocks_released_total")
    await decoder.turn(name, own_tokens(name, 70))
    kept = await decoder.signal("keep", name, timeout_s=5.0)
    assert kept == {"blocks": 2}
    await decoder.signal("release", name)
    await decoder.look("resident")  # the page shows what the engine said at the latest call
    assert await decoder.metric("conserve_kv_blocks_released_total") == before + 2
    assert await decoder.metric("conserve_kv_blocks_kept_total") >= 2
    assert await decoder.metric("conserve_kv_call_seconds_count") >= 2


async def test_resident_is_told_by_what_has_changed(decoder: KvEngine) -> None:
    name = f"resident-{uuid.uuid4().hex[:6]}"
    cursor = (await decoder.look("resident")).json()["cursor"]
    await decoder.turn(name, own_tokens(name, 70))
    answer = (await decoder.look(f"resident?since={cursor}")).json()
    assert (answer["is_full"], answer["tokens"][name]) == (False, 64), json.dumps(answer)
    await decoder.signal("release", name)
    assert (await decoder.look(f"resident?since={answer['cursor']}")).json()["tokens"][name] == 0


@pytest.fixture
async def gateway_url(real_cluster: RealCluster, tmp_path: Path) -> AsyncIterator[str]:
    """A gateway over the pair's prefill engine and its first decode engine."""
    urls = {role: [real_cluster.engines.url(role)] for role in Role}
    config = tmp_path / "gateway.toml"
    config.write_text("".join(f"[pools.{role}]\nengines = {json.dumps(urls[role])}\n" for role in Role))
    env = {"CONSERVE_TRACE_DIR": str(tmp_path / "traces")}
    async with running_gateway(config, env, tmp_path / "gateway.log") as url:
        yield url


async def test_the_gateway_keeps_over_a_tool_and_releases_on_both_engines(
    gateway_url: str, client: httpx2.AsyncClient, prefiller: KvEngine, decoder: KvEngine
) -> None:
    name, engines = f"through-{uuid.uuid4().hex[:6]}", (prefiller, decoder)
    kept = await decoder.metric("conserve_kv_blocks_kept_total")
    body = decoder.body(own_tokens(name, 300), max_tokens=8)
    headers = {"x-conserve-conversation-id": name}
    answer = await client.post(f"{gateway_url}/v1/completions", json=body, headers=headers)
    assert answer.headers["x-conserve-path"] == "remote-prefill"
    assert [name in await engine.resident() for engine in engines] == [True, True]
    conversation = f"{gateway_url}/v1/conversations/{name}"
    event = {"kind": "start", "call_id": "c", "name": "search"}
    await client.post(f"{conversation}/events", json={"events": [event]})
    async with asyncio.timeout(LIMIT_S):
        while await decoder.metric("conserve_kv_blocks_kept_total") < kept + 9:  # noqa: ASYNC110 - over HTTP
            await asyncio.sleep(0.1)
    await client.delete(conversation)
    async with asyncio.timeout(LIMIT_S):
        while any([name in await engine.resident() for engine in engines]):  # noqa: ASYNC110 - over HTTP
            await asyncio.sleep(0.1)
