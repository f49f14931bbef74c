"""Real runs of Pydantic AI's agents, as the gateway hears of them and as they are traced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent, DeferredToolRequests, DeferredToolResults, Tool
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

import conserve_sdk as conserve
from conserve_integrations.pydantic_ai import ToolBoundaries
from conserve_sdk import Outcome
from tests.integrations.agents_gateway import (
    LIMIT_S,
    MODEL,
    QUESTION,
    Served,
    ids,
    outcomes,
    tree,
    with_tools,
)

if TYPE_CHECKING:
    from tests.sdk.conftest import Spans


@dataclass
class Running:
    agent: Agent[None, Any]
    gateway: Served


@asynccontextmanager
async def agent_with(*tools: Tool[None], **options: Any) -> AsyncIterator[Running]:
    async with with_tools(*(tool.name for tool in tools)) as gateway, httpx2.AsyncClient() as http:
        client = AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="-", http_client=http)
        model = conserve.wrap(OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client)))
        options.setdefault("capabilities", [ToolBoundaries()])
        yield Running(Agent(model, name="researcher", tools=tools, **options), gateway)


def tool(name: str, function: Callable[..., object] = lambda: "found", **options: Any) -> Tool[None]:
    return Tool(function, name=name, description=name, takes_ctx=False, **options)


def fail() -> str:
    raise ValueError("secret")


async def test_a_runs_turns_and_parallel_tools_are_one_conversation() -> None:
    both = asyncio.Barrier(2)

    async def meet() -> str:
        await both.wait()
        return "met"

    async with agent_with(tool("left", meet), tool("right", meet)) as running:
        async with conserve.conversation(agent="researcher") as conversation, asyncio.timeout(LIMIT_S):
            result = await running.agent.run(QUESTION)
        report = await conversation.areport()
    assert result.output == "done"
    assert [turn.outcome for turn in report.turns] == [Outcome.COMPLETED] * 2
    assert outcomes(report.tools) == {"left": Outcome.COMPLETED, "right": Outcome.COMPLETED}
    calls = [part.tool_call_id for part in result.all_messages()[1].parts if part.part_kind == "tool-call"]
    assert sorted(call.call_id for call in report.tools) == sorted(calls)


async def test_a_streamed_run_is_alike() -> None:
    async with agent_with(tool("search")) as running:
        async with conserve.conversation() as conversation, running.agent.run_stream(QUESTION) as result:
            text = "".join([piece async for piece in result.stream_text(delta=True)])
        report = await conversation.areport()
    assert text == "done"
    assert [turn.streamed for turn in report.turns] == [True, True]
    assert outcomes(report.tools) == {"search": Outcome.COMPLETED}


async def test_a_sync_run_in_a_thread_is_alike() -> None:
    def run_sync(url: str) -> None:
        """As a script would, in a loop of the thread's own, which Pydantic AI leaves open."""
        asyncio.set_event_loop(loop := asyncio.new_event_loop())
        client = AsyncOpenAI(base_url=f"{url}/v1", api_key="-")
        model = conserve.wrap(OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client)))
        Agent(model, tools=[tool("search")], capabilities=[ToolBoundaries()]).run_sync(QUESTION)
        loop.run_until_complete(client.close())
        loop.close()

    async with agent_with(tool("search")) as running:
        with conserve.conversation() as conversation:
            await asyncio.to_thread(run_sync, running.gateway.url)
        report = await conversation.areport()
    assert (len(report.turns), outcomes(report.tools)) == (2, {"search": Outcome.COMPLETED})


async def test_a_tool_that_raises_has_failed_and_its_error_passes() -> None:
    async with agent_with(tool("search", fail)) as running:
        async with conserve.conversation() as conversation:
            with pytest.raises(ValueError, match="secret"):
                await running.agent.run(QUESTION)
        report = await conversation.areport()
    assert outcomes(report.tools) == {"search": Outcome.FAILED}


async def test_a_tool_that_waits_for_approval_runs_in_the_resumed_run() -> None:
    pay = tool("pay", requires_approval=True)
    async with agent_with(pay, output_type=[str, DeferredToolRequests]) as running:
        async with conserve.conversation("ticket-1", keep_open=True) as first:
            paused = await running.agent.run(QUESTION)
        assert isinstance(paused.output, DeferredToolRequests)
        assert outcomes((await first.areport()).tools) == {}
        approved = DeferredToolResults(
            approvals={call.tool_call_id: True for call in paused.output.approvals}
        )
        async with conserve.conversation("ticket-1") as second:
            result = await running.agent.run(
                message_history=paused.all_messages(), deferred_tool_results=approved
            )
        report = await second.areport()
    assert result.output == "done"
    assert ([turn.path for turn in report.turns], report.kv_transfers) == (["remote-prefill", "pinned"], 1)
    assert outcomes(report.tools) == {"pay": Outcome.COMPLETED}


async def test_pydantic_ais_own_conversation_is_the_conversation_outside_of_a_block() -> None:
    async with agent_with(tool("search")) as running:
        await running.agent.run(QUESTION, conversation_id="thread-7")
        report = await running.gateway.report("thread-7")
    assert (report["synthetic"], len(report["turns"])) == (False, 2)  # type: ignore[arg-type]


async def test_a_run_is_one_clean_tree_with_one_span_for_each_model_call(spans: Spans) -> None:
    conserve.instrument()
    async with agent_with(tool("search"), capabilities=[]) as running:
        async with conserve.conversation("c-1") as conversation:
            await running.agent.run(QUESTION)
        report = await conversation.areport()
        served = [span for span in running.gateway.spans if span.name == "conserve.turn"]
    root = "invoke_agent researcher"
    assert tree([*spans.all(), *served]) == [
        root,
        f"{root} > chat {MODEL}",
        f"{root} > chat {MODEL}",
        f"{root} > chat {MODEL} > conserve.turn",
        f"{root} > chat {MODEL} > conserve.turn",
        f"{root} > execute_tool search",
    ]
    assert ids(spans.all()) == {"c-1"}
    assert outcomes(report.tools) == {"search": Outcome.COMPLETED}
    assert "please use your tools" not in "".join(span.to_json() for span in spans.all())


async def test_a_tool_that_both_the_capability_and_instrument_report_is_told_once(spans: Spans) -> None:
    conserve.instrument()
    async with agent_with(tool("search")) as running:
        async with conserve.conversation() as conversation:
            await running.agent.run(QUESTION)
        report = await conversation.areport()
    assert [(call.name, call.outcome) for call in report.tools] == [("search", Outcome.COMPLETED)]
