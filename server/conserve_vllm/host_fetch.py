"""Brings KV from the host tier to the device ahead of a turn, by a request that asks for one token.

vLLM has no call for it, but loads for any request what its host tier has of the request's
prompt. Such a request computes one token of the prompt and samples one. It belongs to the
conversation, so what it brought is the conversation's.
"""

from __future__ import annotations

import asyncio
import importlib
import uuid
from typing import Any, Final

PREFIX: Final = "conserve-fetch-"
"""How the ids of such requests begin."""


async def bring_back(client: Any, contexts: dict[str, list[int]]) -> None:
    """Return once all are on the device. `client`: vLLM's engine client; contexts by conversation."""
    if not contexts:
        return
    parameters = importlib.import_module("vllm").SamplingParams
    sampling = parameters(max_tokens=1, temperature=0.0, detokenize=False)

    async def one(conversation: str, tokens: list[int]) -> None:
        request_id = f"{PREFIX}{uuid.uuid4().hex}"
        prompt = {"prompt_token_ids": tokens}
        async for _ in client.generate(prompt, sampling, request_id, session_id=conversation):
            pass

    async with asyncio.TaskGroup() as group:
        for conversation, tokens in contexts.items():
            group.create_task(one(conversation, tokens))
