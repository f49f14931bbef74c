"""The proof on real vLLM with real NIXL: one transfer, one decoder, the same tokens as one engine alone.

Prompts are token ids, so that a later turn's prompt is exactly the context before it plus
what is new, whatever a tokenizer would make of the model's text.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from conserve_sdk.protocol import ConversationReport
from conserve_server.engines.engine import Role
from conserve_server.engines.vllm_metrics import REQUESTS, RUNNING, TRANSFERS, total
from tests.real.cluster import RealCluster, gateway_over

pytestmark = pytest.mark.real

BLOCK_TOKENS = 32
ANSWER_TOKENS = 12
FIRST_PROMPT_TOKENS = 150
APPENDED_TOKENS = 40
LIMIT_S = 120.0


@dataclass
class Gateway:
    """The gateway process over the real engines, and the engines' own counters."""

    url: str
    cluster: RealCluster
    client: httpx2.AsyncClient = field(repr=False)

    async def complete(
        self, prompt: Sequence[int], conversation: str | None, *, base_url: str | None = None, **fields: Any
    ) -> dict[str, Any]:
        """One greedy completion of these token ids, through the gateway unless `base_url` says else."""
        headers = {} if conversation is None else {"x-conserve-conversation-id": conversation}
        response = await self.client.post(
            f"{base_url or self.url}/v1/completions", json=self.body(prompt, **fields), headers=headers
        )
        assert response.status_code == 200, response.text
        document: dict[str, Any] = response.json()
        return document

    async def streamed(self, prompt: Sequence[int], conversation: str) -> list[int]:
        """The token ids of a streamed completion."""
        tokens: list[int] = []
        body = self.body(prompt, stream=True)
        headers = {"x-conserve-conversation-id": conversation}
        async with self.client.stream(
            "POST", f"{self.url}/v1/completions", json=body, headers=headers
        ) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    for choice in json.loads(line.removeprefix("data: "))["choices"]:
                        tokens += choice["token_ids"] or []
        return tokens

    def body(self, prompt: Sequence[int], **fields: Any) -> dict[str, Any]:
        greedy = {"temperature": 0, "ignore_eos": True, "return_token_ids": True, "max_tokens": ANSWER_TOKENS}
        return {"model": self.cluster.model, "prompt": list(prompt), **greedy, **fields}

    async def report(self, conversation: str) -> ConversationReport:
        response = await self.client.get(f"{self.url}/v1/conversations/{conversation}")
        return ConversationReport.from_json(response.json())

    async def count(self, role: Role, metric: str) -> int:
        """A counter of a pool's engines, as they report it themselves."""
        pages = [
            (await self.client.get(spec.url + "/metrics")).text
            for spec in self.cluster.engines.specs
            if spec.role is role
        ]
        return int(sum(total(page, metric) for page in pages))


@pytest.fixture
async def gateway(real_cluster: RealCluster, tmp_path: Path) -> AsyncIterator[Gateway]:
    async with (
        gateway_over(real_cluster.engines, tmp_path) as url,
        httpx2.AsyncClient(timeout=LIMIT_S) as client,
    ):
        yield Gateway(url, real_cluster, client)


def tokens_of(count: int, seed: int) -> list[int]:
    return [random.Random(seed * 1000 + i).randrange(100, 40_000) for i in range(count)]


def fresh(name: str) -> str:
    """A conversation id of this run alone: the engines outlive a test."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


async def converse(gateway: Gateway, conversation: str, turns: int, seed: int) -> list[list[int]]:
    """A conversation of several turns, not streamed; each turn's whole context afterwards."""
    context = tokens_of(FIRST_PROMPT_TOKENS, seed)
    contexts = []
    for turn in range(turns):
        answer = await gateway.complete(context, conversation)
        context = context + answer["choices"][0]["token_ids"]
        contexts.append(context)
        context = context + tokens_of(APPENDED_TOKENS, seed + turn + 1)
    return contexts


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
async def test_greedy_tokens_over_four_turns_equal_one_engine_alone(
    gateway: Gateway, is_streamed: bool
) -> None:
    conversation, context = fresh("equal"), tokens_of(FIRST_PROMPT_TOKENS, 11 + is_streamed)
    for turn in range(4):
        alone = await gateway.complete(context, None, base_url=gateway.cluster.reference_url)
        expected = alone["choices"][0]["token_ids"]
        if is_streamed:
            found = await gateway.streamed(context, conversation)
        else:
            found = (await gateway.complete(context, conversation))["choices"][0]["token_ids"]
        assert found == expected, f"turn {turn + 1} differs"
        assert len(found) == ANSWER_TOKENS
        context = context + expected + tokens_of(APPENDED_TOKENS, 100 + turn)
    report = await gateway.report(conversation)
    assert [turn.path for turn in report.turns] == ["remote-prefill", "pinned", "pinned", "pinned"]


async def test_a_chat_through_both_legs_says_what_one_engine_alone_says(gateway: Gateway) -> None:
    messages = [{"role": "user", "content": "The ferry sails fourteen times a day. " * 12}]
    fields = {"temperature": 0, "max_tokens": ANSWER_TOKENS, "ignore_eos": True, "return_token_ids": True}
    body = {"model": gateway.cluster.model, "messages": messages, **fields}
    headers = {"x-conserve-conversation-id": fresh("chat")}
    urls = (gateway.url, gateway.cluster.reference_url)
    answers = [
        await gateway.client.post(f"{url}/v1/chat/completions", json=body, headers=headers) for url in urls
    ]
    through, alone = (answer.json()["choices"][0] for answer in answers)
    assert through["token_ids"] == alone["token_ids"]
    assert through["message"]["content"] == alone["message"]["content"]
    assert answers[0].headers["x-conserve-path"] == "remote-prefill"


async def test_n_conversations_of_k_turns_move_their_kv_exactly_n_times(gateway: Gateway) -> None:
    conversations, turns = [fresh("count") for _ in range(4)], 3
    before = [await gateway.count(Role.DECODE, TRANSFERS), await gateway.count(Role.PREFILL, REQUESTS)]
    await asyncio.gather(*(converse(gateway, name, turns, 20 + i) for i, name in enumerate(conversations)))
    after = [await gateway.count(Role.DECODE, TRANSFERS), await gateway.count(Role.PREFILL, REQUESTS)]
    assert [b - a for a, b in zip(before, after, strict=True)] == [len(conversations), len(conversations)]
    reports = [await gateway.report(name) for name in conversations]
    assert [(len(r.turns), len(r.decoders), r.kv_transfers) for r in reports] == [(turns, 1, 1)] * 4
    assert len({r.decoder for r in reports}) == 2


async def test_later_turns_find_the_whole_context_but_one_block_in_the_cache(gateway: Gateway) -> None:
    conversation = fresh("cache")
    contexts = await converse(gateway, conversation, 4, 40)
    turns = (await gateway.report(conversation)).turns
    for before, (_, later) in zip(contexts, itertools.pairwise(turns), strict=False):
        assert later.cached_tokens is not None
        assert later.cached_tokens >= len(before) - BLOCK_TOKENS


async def test_the_engine_says_how_long_the_transfer_took(gateway: Gateway) -> None:
    conversation = fresh("transfer")
    await converse(gateway, conversation, 1, 50)
    (turn,) = (await gateway.report(conversation)).turns
    assert turn.prefill_s is not None
    assert turn.transfer_s is not None
    assert turn.ttft_s is not None
    assert 0 < turn.prefill_s + turn.transfer_s <= turn.ttft_s


async def test_a_stream_that_its_client_leaves_frees_the_engine(gateway: Gateway) -> None:
    conversation = fresh("cancel")
    body = gateway.body(tokens_of(FIRST_PROMPT_TOKENS, 60), stream=True, max_tokens=1500)
    headers = {"x-conserve-conversation-id": conversation}
    async with gateway.client.stream(
        "POST", f"{gateway.url}/v1/completions", json=body, headers=headers
    ) as answer:
        pieces = answer.aiter_bytes()  # held by name: where it is dropped, its end closes the connection
        await anext(pieces)
        async with asyncio.timeout(LIMIT_S):  # the gauge is set after the step that gave the first token
            while await gateway.count(Role.DECODE, RUNNING) != 1:  # noqa: ASYNC110 - read over HTTP
                await asyncio.sleep(0.05)
    async with asyncio.timeout(LIMIT_S):
        while await gateway.count(Role.DECODE, RUNNING):  # noqa: ASYNC110 - an engine's own gauge, read over HTTP
            await asyncio.sleep(0.1)
    report = await gateway.report(conversation)
    assert [turn.outcome for turn in report.turns] == ["cancelled"]


async def test_a_released_conversation_frees_its_reservation(gateway: Gateway) -> None:
    conversation = fresh("release")
    contexts = await converse(gateway, conversation, 2, 70)
    assert (await gateway.report(conversation)).reserved_kv_tokens == len(contexts[-1])
    await gateway.client.delete(f"{gateway.url}/v1/conversations/{conversation}")
    report = await gateway.report(conversation)
    assert (report.state, report.reserved_kv_tokens) == ("ended", 0)


async def test_first_turns_that_race_land_on_one_decoder_with_one_transfer(gateway: Gateway) -> None:
    conversation, prompt = fresh("race"), tokens_of(FIRST_PROMPT_TOKENS, 80)
    before = await gateway.count(Role.DECODE, TRANSFERS)
    answers = await asyncio.gather(*(gateway.complete(prompt, conversation) for _ in range(2)))
    assert answers[0]["choices"][0]["token_ids"] == answers[1]["choices"][0]["token_ids"]
    report = await gateway.report(conversation)
    assert (len(report.decoders), report.kv_transfers) == (1, 1)
    assert await gateway.count(Role.DECODE, TRANSFERS) - before == 1
