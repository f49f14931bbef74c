"""What one tenant's KV tells another one, and several prompts at once: as real engines count and answer."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from conserve_server.engines.vllm_metrics import total
from tests.real.cluster import RealCluster, gateway_over

pytestmark = pytest.mark.real

HITS = "vllm:prefix_cache_hits_total"
TENANTS = """
[gateway.tenants.alpha]
api_keys = ["alpha-key"]
[gateway.tenants.beta]
api_keys = ["beta-key"]
"""
PROMPT_TOKENS = 320
ANSWER_TOKENS = 8
LIMIT_S = 120.0


@dataclass
class Gateway:
    """A gateway with two tenants over the real engines."""

    url: str
    cluster: RealCluster
    client: httpx2.AsyncClient

    async def complete(self, prompt: Any, tenant: str, url: str | None = None) -> dict[str, Any]:
        """A greedy completion in a conversation of its own; by the engine at `url` where one is given."""
        headers = {"authorization": f"Bearer {tenant}-key", "x-conserve-conversation-id": uuid.uuid4().hex}
        body = {
            "model": self.cluster.model,
            "prompt": prompt,
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        answer = await self.client.post(f"{url or self.url}/v1/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        document["path"] = answer.headers.get("x-conserve-path")
        return document

    async def hits(self) -> int:
        """Prompt tokens that engines of both pools have found in their own prefix caches."""
        urls = [spec.url for spec in self.cluster.engines.specs]
        pages = [(await self.client.get(f"{url}/metrics")).text for url in urls]
        return int(sum(total(page, HITS) for page in pages))

    async def hits_of(self, prompt: list[int], tenant: str) -> int:
        """Those of one more completion of that prompt."""
        before = await self.hits()
        await self.complete(prompt, tenant)
        return await self.hits() - before


@pytest.fixture
async def gateway(real_cluster: RealCluster, tmp_path: Path) -> AsyncIterator[Gateway]:
    async with (
        gateway_over(real_cluster.engines, tmp_path, TENANTS) as url,
        httpx2.AsyncClient(timeout=LIMIT_S) as client,
    ):
        yield Gateway(url, real_cluster, client)


def tokens(seed: int, count: int = PROMPT_TOKENS) -> list[int]:
    chosen = random.Random(f"tenants {seed}")
    return [chosen.randrange(100, 40_000) for _ in range(count)]


async def test_no_engine_finds_another_tenants_kv_but_the_own_one(gateway: Gateway) -> None:
    prompt = tokens(1)
    await gateway.complete(prompt, "alpha")
    assert await gateway.hits_of(prompt, "beta") == 0
    assert await gateway.hits_of(prompt, "alpha") > PROMPT_TOKENS // 2


async def test_a_salt_changes_no_answer(gateway: Gateway) -> None:
    prompt = tokens(2)
    alone = await gateway.complete(prompt, "nobody", url=gateway.cluster.reference_url)
    salted = [await gateway.complete(prompt, tenant) for tenant in ("alpha", "beta", "alpha")]
    expected = alone["choices"][0]["token_ids"]
    assert [answer["choices"][0]["token_ids"] for answer in salted] == [expected] * 3


async def test_each_of_several_prompts_gets_its_own_answer(gateway: Gateway) -> None:
    prompts = [tokens(3), tokens(4, 200), tokens(5)]
    answer = await gateway.complete(prompts, "alpha")
    assert answer["path"] == "local-prefill"
    alone = [
        await gateway.complete(prompt, "nobody", url=gateway.cluster.reference_url) for prompt in prompts
    ]
    found = sorted(answer["choices"], key=lambda choice: choice["index"])
    assert [choice["token_ids"] for choice in found] == [one["choices"][0]["token_ids"] for one in alone]
