"""One vLLM engine as the plugin's tests and benchmark use it: turns of token ids, signals, counters."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from conserve_server.engines.vllm_metrics import total

BLOCK_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Turn:
    """An engine's greedy answer: its token ids, and how many of the prompt's tokens were cached."""

    tokens: list[int]
    cached: int
    transfer: Any = None


class KvEngine:
    """The engine at `url`, serving `model`."""

    def __init__(self, url: str, model: str, client: httpx2.AsyncClient) -> None:
        self.url, self.model, self._client = url, model, client

    async def turn(
        self, session: str | None, prompt: Sequence[int], *, max_tokens: int = 8, **fields: Any
    ) -> Turn:
        """One turn of a conversation."""
        response = await self._client.post(
            f"{self.url}/v1/completions",
            json=self.body(prompt, max_tokens=max_tokens, **fields),
            headers={} if session is None else {"x-session-id": session},
        )
        assert response.status_code == 200, response.text
        document = response.json()
        details = document["usage"]["prompt_tokens_details"] or {}
        (choice,) = document["choices"]
        cached = details.get("cached_tokens") or 0
        return Turn(choice["token_ids"], cached, document.get("kv_transfer_params"))

    async def abandon(self, session: str, prompt: Sequence[int]) -> None:
        """Begin a streamed turn and hang up after its first bytes."""
        body = self.body(prompt, max_tokens=200, stream=True)
        headers = {"x-session-id": session}
        async with self._client.stream(
            "POST", f"{self.url}/v1/completions", json=body, headers=headers
        ) as answer:
            async for _ in answer.aiter_bytes():
                break

    def body(self, prompt: Sequence[int], **fields: Any) -> dict[str, Any]:
        greedy = {"temperature": 0, "ignore_eos": True, "return_token_ids": True}
        return {"model": self.model, "prompt": list(prompt), **greedy, **fields}

    async def signal(self, call: str, *sessions: str, **fields: Any) -> dict[str, Any]:
        """Call the plugin; the answer must be good."""
        response = await self.ask(call, *sessions, **fields)
        assert response.status_code == 200, response.text
        document: dict[str, Any] = response.json()
        return document

    async def ask(self, call: str, *sessions: str, **fields: Any) -> httpx2.Response:
        """Call the plugin, whatever it answers."""
        body = {"conversations": list(sessions), **fields}
        return await self._client.post(f"{self.url}/v1/conserve/{call}", json=body)

    async def look(self, call: str) -> httpx2.Response:
        """One of the plugin's GET routes."""
        return await self._client.get(f"{self.url}/v1/conserve/{call}")

    async def resident(self) -> dict[str, int]:
        """Tokens cached, by conversation."""
        tokens: dict[str, int] = (await self.look("resident")).json()["tokens"]
        return tokens

    async def metric(self, name: str) -> float:
        return total(await self.metrics(), name)

    async def metrics(self) -> str:
        """All of the engine's metrics, as Prometheus reads them."""
        return (await self._client.get(f"{self.url}/metrics")).text


def token_ids(count: int, seed: int) -> list[int]:
    """Token ids of no meaning, the same for the same seed."""
    source = random.Random(seed)
    return [source.randrange(100, 40_000) for _ in range(count)]
