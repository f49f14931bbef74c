"""What a live engine tells of itself: the size of its KV cache, and the longest sequence it takes."""

from __future__ import annotations

from dataclasses import dataclass

import aiohttp

from conserve_server.engines.vllm_metrics import CACHE_CONFIG, capacity_tokens, wanted_samples

from .token_client import LiveError, TokenClient

_LIMIT = aiohttp.ClientTimeout(total=30.0)
_LONGEST = 2048
"""Assumed of an engine that doesn't say."""


@dataclass(frozen=True, slots=True)
class EnginePage:
    """Sizes in tokens and bytes; None where the engine doesn't say."""

    longest: int
    kv_capacity_tokens: int | None
    kv_bytes_per_token: int | None


async def read_page(client: TokenClient) -> EnginePage:
    """Read the engine's metrics. Raises LiveError where it has none."""
    url = f"{client.target.url}/metrics"
    try:
        async with aiohttp.ClientSession(timeout=_LIMIT) as session, session.get(url) as response:
            page = await response.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise LiveError(f"no metrics at {url}: {error or 'no answer'}") from error
    try:
        capacity = capacity_tokens(wanted_samples(page, (CACHE_CONFIG,)))
    except ValueError as error:
        raise LiveError(f"{url} is no page of vLLM's: {error}") from error
    longest = client.target.max_model_len or _LONGEST
    return EnginePage(
        min(longest, capacity or longest), capacity, _bytes_per_token(page, capacity) if capacity else None
    )


def _bytes_per_token(page: str, capacity_tokens: int) -> int | None:
    """The KV cache's bytes over its tokens; vLLM tells the bytes where it was given them."""
    for sample in wanted_samples(page, (CACHE_CONFIG,)):
        for label in ("kv_cache_memory_bytes", "cpu_kvcache_space_bytes"):
            text = sample.labels.get(label, "")
            if text.isdigit() and int(text):
                return int(text) // capacity_tokens
    return None
