"""LiteLLM given a wrapped OpenAI client: nothing else is needed."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, OpenAI

import conserve_sdk as conserve
from conserve_sdk import Outcome
from tests.integrations.agents_gateway import MODEL, outcomes, with_tools

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

MESSAGES: Any = [{"role": "user", "content": "where is the ferry?"}]


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(
        os.environ, "LITELLM_LOCAL_MODEL_COST_MAP", "True"
    )  # else its import asks the network
    import litellm

    litellm.telemetry = False
    return litellm


async def test_sync_and_streamed_completions_are_turns_of_the_conversation(litellm: Any) -> None:
    def ask(url: str) -> str:
        with conserve.wrap(OpenAI(base_url=f"{url}/v1", api_key="-")) as client:
            options = {"model": f"openai/{MODEL}", "messages": MESSAGES, "client": client}
            answer = litellm.completion(**options)
            assert list(litellm.completion(**options, stream=True))
            return str(answer.choices[0].message.content)

    async with with_tools() as gateway:
        with conserve.conversation(agent="researcher") as conversation:
            assert await asyncio.to_thread(ask, gateway.url) == "done"
        report = await conversation.areport()
    assert [(turn.outcome, turn.streamed) for turn in report.turns] == [
        (Outcome.COMPLETED, False),
        (Outcome.COMPLETED, True),
    ]


async def test_async_completions_and_tools_are_too_and_parallel_ones_are_kept_apart(litellm: Any) -> None:
    async with with_tools() as gateway, httpx2.AsyncClient() as http:
        client = conserve.wrap(AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="-", http_client=http))
        options = {"model": f"openai/{MODEL}", "messages": MESSAGES, "client": client}

        async def converse() -> conserve.ConversationReport:
            async with conserve.conversation() as conversation:
                await litellm.acompletion(**options)
                with conversation.tool("search"):
                    pass
                assert [piece async for piece in await litellm.acompletion(**options, stream=True)]
            return await conversation.areport()

        reports = await asyncio.gather(converse(), converse())
    assert [len(report.turns) for report in reports] == [2, 2]
    assert [outcomes(report.tools) for report in reports] == [{"search": Outcome.COMPLETED}] * 2
