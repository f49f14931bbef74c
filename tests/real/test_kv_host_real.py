"""The host tier on real vLLM, behind NIXL as decoders have it: what leaves the device comes back."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from conserve_server.cli.gateway_process import running_gateway
from conserve_server.engines.engine import Role
from conserve_server.engines.vllm_metrics import RUNNING, TRANSFERS, total
from tests.real.cluster import MODEL, LocalEngines, local_engines
from tests.real.kv_engine import BLOCK_TOKENS, KvEngine, Turn, token_ids
from tests.real.test_kv_real import KV_USE, Life

pytestmark = pytest.mark.real

LIMIT_S = 120.0
CONTEXT_TOKENS = 1_800
ANSWER_TOKENS = 120
"""With them a context fills 60 of the device's 256 blocks."""
HOST_GIB = 0.03125
HOST_BLOCKS = 512
OTHERS = 5
"""As many conversations fill the device."""


@pytest.fixture(scope="module")
def pair(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngines]:
    """A prefill engine, and a decode engine with a host tier of twice its cache."""
    folder = tmp_path_factory.mktemp("host")
    with local_engines(folder, vllm_python, prefill=1, decode=1, host_kv_gib=HOST_GIB) as engines:
        yield engines


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=LIMIT_S) as found:
        yield found


@pytest.fixture
async def decoder(pair: LocalEngines, client: httpx2.AsyncClient) -> KvEngine:
    engine = KvEngine(pair.url(Role.DECODE), MODEL, client)
    await engine.look("capabilities")  # as a gateway does, before the first turn
    return engine


class Conversations:
    """Conversations of one test on the engine; their contexts by name."""

    def __init__(self, engine: KvEngine) -> None:
        self.engine = engine
        self.contexts: dict[str, list[int]] = {}
        self._run = uuid.uuid4().hex[:6]

    def session(self, name: str) -> str:
        return f"{name}-{self._run}"

    async def begin(self, *names: str) -> None:
        for name in names:
            prompt = token_ids(CONTEXT_TOKENS, seed_of(self.session(name)))
            answer = await self.engine.turn(self.session(name), prompt, max_tokens=ANSWER_TOKENS)
            self.contexts[name] = [*prompt, *answer.tokens]

    async def crowd_out(self) -> None:
        """Others take the whole device, and end."""
        others = [f"other-{i}" for i in range(OTHERS)]
        await self.begin(*others)
        await self.release(*others)

    async def release(self, *names: str) -> None:
        await self.engine.signal("release", *(self.session(name) for name in names))

    async def resident(self, name: str) -> int:
        return (await self.engine.resident()).get(self.session(name), 0)


def seed_of(text: str) -> int:
    return zlib.crc32(text.encode())


def whole(tokens: int) -> int:
    """Of so many tokens those in whole blocks."""
    return tokens // BLOCK_TOKENS * BLOCK_TOKENS


KNOWN = whole(CONTEXT_TOKENS + ANSWER_TOKENS - 1)
"""What a next turn can find: the last token of an answer has no KV."""


@pytest.fixture
async def conversations(decoder: KvEngine) -> AsyncIterator[Conversations]:
    found = Conversations(decoder)
    yield found
    await found.release(*found.contexts)


async def test_a_decoder_with_a_host_tier_says_so(decoder: KvEngine) -> None:
    found = (await decoder.look("capabilities")).json()
    assert found["calls"][-2:] == ["offload", "fetch"]
    assert found["host_blocks"] == HOST_BLOCKS


async def test_an_evicted_conversation_comes_back_with_its_answers_and_says_the_same(
    conversations: Conversations,
) -> None:
    await conversations.begin("a")
    await conversations.crowd_out()
    assert await conversations.resident("a") == 0
    engine, session = conversations.engine, conversations.session("a")
    prompt = [*conversations.contexts["a"], *token_ids(20, 1)]
    found = await engine.turn(session, prompt, max_tokens=16)
    computed = await engine.turn(f"{session}-again", prompt, max_tokens=16, cache_salt=session)
    assert (found.cached, computed.cached) == (KNOWN, 0)
    assert found.tokens == computed.tokens
    await engine.signal("release", f"{session}-again")


async def test_a_fetch_brings_a_conversation_back_ahead_of_its_turn(conversations: Conversations) -> None:
    await conversations.begin("a")
    await conversations.crowd_out()
    engine, session = conversations.engine, conversations.session("a")
    assert (await engine.signal("fetch", session))["tokens"] == {session: KNOWN}
    assert await conversations.resident("a") == KNOWN
    assert (await engine.signal("fetch", session))["tokens"] == {}
    prompt = [*conversations.contexts["a"], *token_ids(20, 1)]
    found = await engine.turn(session, prompt, max_tokens=16)
    computed = await engine.turn(f"{session}-again", prompt, max_tokens=16, cache_salt=session)
    assert (found.cached, found.tokens) == (KNOWN, computed.tokens)
    await engine.signal("release", f"{session}-again")


async def test_a_fetch_takes_no_room_from_conversations_that_are_kept(conversations: Conversations) -> None:
    await conversations.begin("a")
    await conversations.crowd_out()
    kept = ("b", "c", "d", "e")
    for name in kept:
        await conversations.begin(name)
        await conversations.engine.signal("keep", conversations.session(name), timeout_s=60.0)
    fetched = await conversations.engine.signal("fetch", conversations.session("a"))
    assert fetched["tokens"] == {}
    assert [await conversations.resident(name) for name in kept] == [KNOWN] * 4


async def test_what_is_offloaded_makes_room_before_what_was_used_longer_ago(
    conversations: Conversations,
) -> None:
    await conversations.begin("a", "b", "c")
    answer = await conversations.engine.signal("offload", conversations.session("c"))
    assert answer == {"blocks": KNOWN // BLOCK_TOKENS}
    await conversations.begin("d", "e")
    assert [await conversations.resident(name) for name in "ab"] == [KNOWN, KNOWN]
    assert await conversations.resident("c") < KNOWN / 2
    prompt = [*conversations.contexts["c"], *token_ids(20, 1)]
    assert (await conversations.engine.turn(conversations.session("c"), prompt)).cached == KNOWN


async def test_host_copies_of_an_ended_conversation_go_before_older_ones(
    conversations: Conversations,
) -> None:
    """Nine contexts are more than the host has room for; the second has ended."""
    await conversations.begin("oldest", "ended")
    await conversations.release("ended")
    await conversations.begin(*(f"later-{i}" for i in range(7)))
    fetched = await conversations.engine.signal("fetch", conversations.session("oldest"))
    assert fetched["tokens"] == {conversations.session("oldest"): KNOWN}
    await conversations.engine.look("resident")
    assert await conversations.engine.metric("conserve_kv_blocks_host_released_total") >= KNOWN / BLOCK_TOKENS


class Uncached:
    """The same engine with nothing of its caches: each turn has a salt of its own."""

    def __init__(self, engine: KvEngine) -> None:
        self._engine = engine

    async def turn(self, session: str | None, prompt: list[int], **fields: Any) -> Turn:
        found = await self._engine.turn(session, prompt, cache_salt=uuid.uuid4().hex, **fields)
        assert found.cached == 0
        return found


class HostLife(Life):
    """A conversation of the random interleaving whose tools send it to the host, and sometimes back."""

    async def use_tool(self) -> None:
        await self.engine.signal("offload", self.name)
        await asyncio.sleep(self.random.random() * 0.1)
        if self.random.random() < 0.7:
            await self.engine.signal("fetch", self.name)


@pytest.mark.parametrize("seed", [1, 2])
async def test_answers_are_the_same_and_no_block_is_lost_while_kv_comes_and_goes(
    decoder: KvEngine, seed: int
) -> None:
    await decoder.signal("release", *await decoder.resident())
    source, run = random.Random(seed), uuid.uuid4().hex[:6]
    fetched = await decoder.metric("conserve_kv_blocks_fetched_total")
    lives = [
        HostLife(decoder, Uncached(decoder), random.Random(source.random()), f"life-{run}-{i}")
        for i in range(8)
    ]
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        for life in lives:
            group.create_task(life.live(turns=4))
    assert sum(life.compared for life in lives) >= 10
    async with asyncio.timeout(LIMIT_S):
        while await decoder.metric(RUNNING) or set(await decoder.resident()):  # noqa: ASYNC110 - over HTTP
            await asyncio.sleep(0.1)
    assert await decoder.metric(KV_USE) == 0.0
    assert await decoder.metric("conserve_kv_blocks_fetched_total") > fetched
    # What was released is free for others: four conversations that need nearly all blocks at once.
    four = [decoder.turn(f"{run}-{i}", token_ids(1_900, i), max_tokens=100) for i in range(4)]
    assert [len(turn.tokens) for turn in await asyncio.gather(*four)] == [100] * 4
    await decoder.signal("release", *(f"{run}-{i}" for i in range(4)))


@pytest.fixture
async def gateway_url(pair: LocalEngines, tmp_path: Path) -> AsyncIterator[str]:
    config = tmp_path / "gateway.toml"
    config.write_text("".join(f"[pools.{role}]\nengines = {json.dumps([pair.url(role)])}\n" for role in Role))
    env = {"CONSERVE_TRACE_DIR": str(tmp_path / "traces")}
    async with running_gateway(config, env, tmp_path / "gateway.log") as url:
        yield url


async def test_the_end_of_a_tool_brings_kv_back_through_the_gateway_before_the_next_turn(
    gateway_url: str, client: httpx2.AsyncClient, conversations: Conversations
) -> None:
    """Its first turn's KV came over NIXL; its second turn finds all of it, answers included."""
    engine, session = conversations.engine, conversations.session("a")
    prompt, transfers = token_ids(CONTEXT_TOKENS, seed_of(session)), await engine.metric(TRANSFERS)
    headers = {"x-conserve-conversation-id": session}

    async def turn(prompt: list[int]) -> tuple[list[int], int]:
        body = engine.body(prompt, max_tokens=ANSWER_TOKENS)
        answer = await client.post(f"{gateway_url}/v1/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        document = answer.json()
        cached: int = (document["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0
        return document["choices"][0]["token_ids"], cached

    async def tool(kind: str, **fields: float) -> None:
        event = {"kind": kind, "call_id": "call", "name": "search", **fields}
        url = f"{gateway_url}/v1/conversations/{session}/events"
        (await client.post(url, json={"events": [event]})).raise_for_status()

    context = [*prompt, *(await turn(prompt))[0]]
    assert await engine.metric(TRANSFERS) == transfers + 1
    await tool("start")
    await engine.signal("keep", session, timeout_s=0.0)  # as if it had run for longer than it was kept
    async with asyncio.timeout(LIMIT_S):
        while await conversations.resident("a"):
            await conversations.crowd_out()
            await engine.signal("keep", session, timeout_s=0.0)
    await tool("end", duration_s=30.0)
    async with asyncio.timeout(LIMIT_S):
        while await conversations.resident("a") < KNOWN:  # noqa: ASYNC110 - over HTTP
            await asyncio.sleep(0.05)
    assert (await turn([*context, *token_ids(20, 1)]))[1] == KNOWN
    page = (await client.get(f"{gateway_url}/metrics")).text
    assert total(page, "conserve_kv_fetched_tokens_total") == KNOWN
    await client.delete(f"{gateway_url}/v1/conversations/{session}")
