"""Real vLLM engines that are killed: what the client sees, and that the next answer is right all the same.

Prompts are token ids, so that a later turn's prompt is exactly the context before it plus what is new.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx2
import pytest

from conserve_sdk.protocol import Outcome, RebindCause
from conserve_server.cli.gateway_process import running_gateway
from tests.processes import eventually, is_running
from tests.real.cluster import START_S, RealCluster
from tests.real.test_conversations_real import (
    ANSWER_TOKENS,
    APPENDED_TOKENS,
    FIRST_PROMPT_TOKENS,
    LIMIT_S,
    Gateway,
    fresh,
    tokens_of,
)

pytestmark = pytest.mark.real


@pytest.fixture
async def gateway(real_cluster: RealCluster, tmp_path: Path) -> AsyncIterator[Gateway]:
    """The gateway over the real engines. What an earlier test killed may still be starting."""
    env = {"OTEL_TRACES_EXPORTER": "none"}
    async with (
        running_gateway(real_cluster.engines.config_path, env, tmp_path / "gateway.log") as url,
        httpx2.AsyncClient(timeout=LIMIT_S) as client,
    ):
        yield Gateway(url, real_cluster, client)


async def until_up(gateway: Gateway, *names: str) -> None:
    """Until the gateway has seen these engines up, all of them if none is named."""
    wanted = set(names) or {spec.name for spec in gateway.cluster.engines.specs}
    async with asyncio.timeout(START_S):
        while not wanted <= await up(gateway):  # noqa: ASYNC110 - seen over HTTP, where nothing signals
            await asyncio.sleep(0.2)


async def up(gateway: Gateway) -> set[str]:
    engines = (await gateway.client.get(f"{gateway.url}/health")).json()["engines"]
    return {engine["name"] for engine in engines if engine["up"]}


async def kill(gateway: Gateway, name: str) -> None:
    """kill -9. The engine's launcher starts it again at its address, which takes a minute."""
    await eventually(lambda: is_running(gateway.cluster.engines.pid(name) or 0), f"{name} on record")
    pid = gateway.cluster.engines.pid(name)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not is_running(pid), f"{name} to be gone")


async def ask(gateway: Gateway, conversation: str, context: Sequence[int]) -> list[int]:
    """The answer's tokens, which must be those of one engine alone."""
    answer = await gateway.complete(context, conversation)
    alone = await gateway.complete(context, None, base_url=gateway.cluster.reference_url)
    tokens: list[int] = answer["choices"][0]["token_ids"]
    assert tokens == alone["choices"][0]["token_ids"]
    assert len(tokens) == ANSWER_TOKENS
    return tokens


async def first_turn(gateway: Gateway, conversation: str, seed: int) -> list[int]:
    """The context that the conversation's second turn sends."""
    context = tokens_of(FIRST_PROMPT_TOKENS, seed)
    return context + await ask(gateway, conversation, context) + tokens_of(APPENDED_TOKENS, seed + 1)


async def test_a_killed_decoder_costs_its_conversations_one_more_prefill_each(gateway: Gateway) -> None:
    await until_up(gateway)
    names = [fresh("killed") for _ in range(3)]  # two of them on one of the two decoders
    contexts = [await first_turn(gateway, name, 300 + i) for i, name in enumerate(names)]
    placed = [(await gateway.report(name)).decoder for name in names]
    assert placed[0] == placed[2] != placed[1]
    assert placed[0] is not None
    await kill(gateway, placed[0])
    await ask(gateway, names[0], contexts[0])
    report = await gateway.report(names[0])
    assert report.rebinds == (RebindCause.ENGINE_LOST,)
    assert (report.decoders, report.kv_transfers) == ((placed[0], placed[1]), 2)
    assert (report.turns[1].outcome, report.turns[1].path) == (Outcome.COMPLETED, "remote-prefill")
    await until_up(gateway)  # at its address again, and without the other conversation's KV
    await ask(gateway, names[2], contexts[2])
    report = await gateway.report(names[2])
    assert report.rebinds == (RebindCause.ENGINE_LOST,)
    assert (report.turns[1].path, report.kv_transfers) == ("remote-prefill", 2)
    assert (await gateway.report(names[1])).rebinds == ()


async def test_a_decoder_killed_in_mid_stream_is_an_error_event_and_the_next_turn_is_right(
    gateway: Gateway,
) -> None:
    await until_up(gateway)
    conversation, context = fresh("cut"), tokens_of(FIRST_PROMPT_TOKENS, 311)
    body = gateway.body(context, stream=True, max_tokens=1500)
    headers = {"x-conserve-conversation-id": conversation}
    events: list[str] = []
    async with gateway.client.stream(
        "POST", f"{gateway.url}/v1/completions", json=body, headers=headers
    ) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                events.append(line.removeprefix("data: "))
                if len(events) == 3:
                    await kill(gateway, answer.headers["x-conserve-decoder"])
    assert json.loads(events[-1])["error"]["code"] == "engine_lost"
    await ask(gateway, conversation, context)
    report = await gateway.report(conversation)
    assert [turn.outcome for turn in report.turns] == [Outcome.FAILED, Outcome.COMPLETED]
    assert report.rebinds == (RebindCause.ENGINE_LOST,)


async def test_without_the_prefiller_turns_are_prefilled_locally_until_it_is_back(gateway: Gateway) -> None:
    await until_up(gateway, "prefill-0")
    await kill(gateway, "prefill-0")
    conversation = fresh("local")
    await ask(gateway, conversation, tokens_of(FIRST_PROMPT_TOKENS, 331))
    assert (await gateway.report(conversation)).turns[0].path == "local-prefill"
    await until_up(gateway)
    again = fresh("remote")
    await ask(gateway, again, tokens_of(FIRST_PROMPT_TOKENS, 332))
    report = await gateway.report(again)
    assert (report.turns[0].path, report.kv_transfers) == ("remote-prefill", 1)
