"""Real runs of the OpenAI Agents SDK, as the gateway hears of them and as they are traced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, trace
from openai import AsyncOpenAI

import conserve_sdk as conserve
from conserve_integrations.openai_agents import activate, run_config
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
    agent: Agent[Any]
    gateway: Served


@asynccontextmanager
async def agent_with(*tools: Any) -> AsyncIterator[Running]:
    activate()
    names = [tool.name for tool in tools]
    async with with_tools(*names) as gateway, httpx2.AsyncClient() as http:
        client = AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="-", http_client=http)
        model = OpenAIChatCompletionsModel(model=MODEL, openai_client=conserve.wrap(client))
        yield Running(Agent("researcher", model=model, tools=list(tools)), gateway)


@function_tool
async def search() -> str:
    """Find something."""
    return "found"


@function_tool
def add() -> str:
    """Add something."""
    return "3"


@function_tool(failure_error_function=None)
def fail() -> str:
    """Fail, and the run with it."""
    raise ValueError("secret")


@function_tool
def fail_softly() -> str:
    """Fail, and let the model know."""
    raise ValueError("secret")


async def run(running: Running, conversation: conserve.Conversation) -> Any:
    async with asyncio.timeout(LIMIT_S):
        return await Runner.run(running.agent, QUESTION, run_config=run_config(conversation))


async def test_a_runs_turns_and_parallel_tools_are_one_conversation() -> None:
    async with agent_with(search, add) as running:
        async with conserve.conversation(agent="researcher") as conversation:
            result = await run(running, conversation)
        report = await conversation.areport()
    assert result.final_output == "done"
    assert [(turn.index, turn.outcome) for turn in report.turns] == [
        (1, Outcome.COMPLETED),
        (2, Outcome.COMPLETED),
    ]
    assert outcomes(report.tools) == {"search": Outcome.COMPLETED, "add": Outcome.COMPLETED}
    assert report.agent == "researcher"


async def test_a_streamed_run_is_alike() -> None:
    async with agent_with(search) as running:
        async with conserve.conversation() as conversation, asyncio.timeout(LIMIT_S):
            result = Runner.run_streamed(running.agent, QUESTION, run_config=run_config(conversation))
            events = [event async for event in result.stream_events()]
        report = await conversation.areport()
    assert events
    assert [turn.streamed for turn in report.turns] == [True, True]
    assert outcomes(report.tools) == {"search": Outcome.COMPLETED}


async def test_a_sync_run_in_a_thread_is_alike() -> None:
    def run_sync(url: str, conversation: conserve.Conversation) -> None:
        """As a script would, in a loop of the thread's own, which the SDK leaves open."""
        asyncio.set_event_loop(loop := asyncio.new_event_loop())
        client = conserve.wrap(AsyncOpenAI(base_url=f"{url}/v1", api_key="-"))
        model = OpenAIChatCompletionsModel(model=MODEL, openai_client=client)
        agent = Agent("researcher", model=model, tools=[search])
        Runner.run_sync(agent, QUESTION, run_config=run_config(conversation))
        loop.run_until_complete(client.close())
        loop.close()

    async with agent_with(search) as running:
        with conserve.conversation() as conversation:
            await asyncio.to_thread(run_sync, running.gateway.url, conversation)
        report = await conversation.areport()
    assert (len(report.turns), outcomes(report.tools)) == (2, {"search": Outcome.COMPLETED})


async def test_a_tool_that_fails_has_failed_whether_its_run_goes_on_or_not() -> None:
    async with agent_with(fail) as running:
        async with conserve.conversation() as conversation:
            with pytest.raises(Exception, match="secret"):
                await run(running, conversation)
        assert outcomes((await conversation.areport()).tools) == {"fail": Outcome.FAILED}
    async with agent_with(fail_softly) as running:
        async with conserve.conversation() as conversation:
            await run(running, conversation)
        assert outcomes((await conversation.areport()).tools) == {"fail_softly": Outcome.FAILED}


async def test_a_tool_that_waits_for_approval_runs_in_the_resumed_run() -> None:
    runs: list[str] = []

    def pay() -> str:
        runs.append("pay")
        return "paid"

    asked = function_tool(pay, needs_approval=True)
    async with agent_with(asked) as running:
        async with conserve.conversation("ticket-1", keep_open=True) as first:
            state = (paused := await run(running, first)).to_state()
        # The SDK opens a step for the question too, of no length to speak of.
        asked_in_s = [tool.duration_s for tool in (await first.areport()).tools]
        assert runs == []
        for interruption in paused.interruptions:
            state.approve(interruption)
        async with conserve.conversation("ticket-1") as second:
            result = await Runner.run(running.agent, state, run_config=run_config(second))
        report = await second.areport()
    assert result.final_output == "done"
    assert ([turn.path for turn in report.turns], report.kv_transfers) == (["remote-prefill", "pinned"], 1)
    assert runs == ["pay"]
    assert len(report.tools) == len(asked_in_s) + 1
    assert outcomes(report.tools) == {"pay": Outcome.COMPLETED}


async def test_a_group_alone_is_the_conversation() -> None:
    async with agent_with() as running:
        with trace("workflow", group_id="thread-7"):
            await Runner.run(running.agent, "hello")
        report = await running.gateway.report("thread-7")
    assert (report["synthetic"], len(report["turns"])) == (False, 1)  # type: ignore[arg-type]


async def test_concurrent_runs_keep_their_tools_apart() -> None:
    async with agent_with(search) as running:

        async def converse() -> conserve.ConversationReport:
            async with conserve.conversation() as conversation:
                await run(running, conversation)
            return await conversation.areport()

        reports = await asyncio.gather(*(converse() for _ in range(4)))
    assert len({report.id for report in reports}) == 4
    assert all(len(report.tools) == 1 and len(report.turns) == 2 for report in reports)


async def test_a_run_is_one_clean_tree_down_to_the_gateway(spans: Spans) -> None:
    conserve.instrument()
    async with agent_with(search) as running:
        async with conserve.conversation("c-1") as conversation:
            await run(running, conversation)
        await conversation.areport()
        served = [span for span in running.gateway.spans if span.name == "conserve.turn"]
    root = "invoke_workflow Agent workflow > invoke_agent researcher"
    assert tree([*spans.all(), *served]) == [
        "invoke_workflow Agent workflow",
        root,
        f"{root} > chat {MODEL}",
        f"{root} > chat {MODEL}",
        f"{root} > chat {MODEL} > conserve.turn",
        f"{root} > chat {MODEL} > conserve.turn",
        f"{root} > execute_tool search",
    ]
    assert ids(spans.all()) == {"c-1"}
