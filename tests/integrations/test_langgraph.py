"""A real graph's tools, as the gateway hears of them and as they are traced."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx2
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import BaseTool, StructuredTool, ToolException
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, interrupt

import conserve_sdk as conserve
from conserve_integrations.langgraph import ToolBoundaries, run_config
from conserve_sdk import Outcome, ToolReport
from conserve_server.engines.emulated import Rule, ScriptedCall
from conserve_server.engines.engine import Role
from tests.gateway.conftest import MODEL, Served, engine_config, served

if TYPE_CHECKING:
    from tests.sdk.conftest import Spans

LIMIT_S = 10.0
QUESTION = "please use your tools"


@dataclass
class Agent:
    """A graph with these tools, whose model calls each of them once and then answers."""

    graph: Any
    gateway: Served

    async def run(self, conversation: conserve.Conversation) -> None:
        state = {"messages": [HumanMessage(QUESTION)]}
        async with asyncio.timeout(LIMIT_S):
            await self.graph.ainvoke(state, config=run_config(conversation))


@asynccontextmanager
async def agent_with(
    *tools: BaseTool, handles_errors: bool = False, is_sync: bool = False, checkpointer: Any = None
) -> AsyncIterator[Agent]:
    script = (
        Rule(match=QUESTION, tool_calls=tuple(ScriptedCall(tool.name, {}) for tool in tools)),
        Rule(reply="done"),
    )
    engine = engine_config(Role.DECODE, "decode-0", script=script)
    async with served(decode=[engine]) as gateway, httpx2.AsyncClient() as http, in_thread_client() as sync:
        llm = ChatOpenAI(
            model=MODEL,
            base_url=f"{gateway.url}/v1",
            api_key=lambda: "-",
            http_async_client=http,
            http_client=sync,
        )
        bound = conserve.wrap(llm).bind_tools(tools)

        async def think(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await bound.ainvoke(state["messages"])]}

        def think_sync(state: MessagesState) -> dict[str, Any]:
            return {"messages": [bound.invoke(state["messages"])]}

        graph = StateGraph(MessagesState).add_node("think", think_sync if is_sync else think)
        graph.add_node("tools", ToolNode(tools, handle_tool_errors=handles_errors))
        graph.add_edge(START, "think").add_conditional_edges("think", tools_condition)
        graph.add_edge("tools", "think")
        yield Agent(graph.compile(checkpointer=checkpointer), gateway)


@asynccontextmanager
async def in_thread_client() -> AsyncIterator[httpx2.Client]:
    with httpx2.Client() as client:
        yield client


def sync_tool(name: str, function: Callable[[], str] = lambda: "done") -> BaseTool:
    return StructuredTool.from_function(function, name=name, description=name)


def async_tool(name: str, function: Callable[[], Any]) -> BaseTool:
    return StructuredTool.from_function(coroutine=function, name=name, description=name)


def fail() -> str:
    raise ValueError("no such place")


def outcomes(tools: tuple[ToolReport, ...]) -> dict[str, Outcome | None]:
    return {tool.name: tool.outcome for tool in tools}


async def test_each_tool_is_reported_by_the_models_own_call_id() -> None:
    async with agent_with(sync_tool("search"), sync_tool("add")) as agent:
        async with conserve.conversation() as conversation:
            state: Any = {"messages": [HumanMessage(QUESTION)]}
            state = await agent.graph.ainvoke(state, config=run_config(conversation))
        report = await conversation.areport()
    calls = {call["id"]: call["name"] for call in state["messages"][1].tool_calls}
    assert {tool.call_id: tool.name for tool in report.tools} == calls
    assert outcomes(report.tools) == {"search": Outcome.COMPLETED, "add": Outcome.COMPLETED}
    assert all(tool.duration_s is not None and 0 < tool.duration_s < LIMIT_S for tool in report.tools)
    assert [turn.index for turn in report.turns] == [1, 2]


async def test_parallel_tools_overlap_and_each_ends_its_own_call() -> None:
    both = asyncio.Barrier(2)

    async def meet() -> str:
        await both.wait()
        return "met"

    async with agent_with(async_tool("left", meet), async_tool("right", meet)) as agent:
        async with conserve.conversation() as conversation:
            await agent.run(conversation)
        report = await conversation.areport()
    assert outcomes(report.tools) == {"left": Outcome.COMPLETED, "right": Outcome.COMPLETED}


async def test_sync_tools_that_run_in_threads_at_once_are_told_apart() -> None:
    both = threading.Barrier(2)

    def meet() -> str:
        both.wait(LIMIT_S)
        return "met"

    async with agent_with(sync_tool("left", meet), sync_tool("right", meet)) as agent:
        async with conserve.conversation() as conversation:
            await agent.run(conversation)
        report = await conversation.areport()
    assert outcomes(report.tools) == {"left": Outcome.COMPLETED, "right": Outcome.COMPLETED}


async def test_a_tool_that_raises_has_failed_and_its_error_passes() -> None:
    async with agent_with(sync_tool("search", fail)) as agent:
        async with conserve.conversation() as conversation:
            with pytest.raises(ValueError, match="no such place"):
                await agent.run(conversation)
        report = await conversation.areport()
    assert outcomes(report.tools) == {"search": Outcome.FAILED}
    assert report.tools[0].duration_s is not None


async def test_a_tool_whose_error_goes_to_the_model_has_failed_all_the_same() -> None:
    async with agent_with(sync_tool("search", fail), handles_errors=True) as agent:
        async with conserve.conversation() as conversation:
            await agent.run(conversation)
        report = await conversation.areport()
    assert outcomes(report.tools) == {"search": Outcome.FAILED}
    assert len(report.turns) == 2


async def test_a_tool_that_handles_its_own_error_has_failed_too() -> None:
    def refuse() -> str:
        raise ToolException("not today")

    tool = StructuredTool.from_function(refuse, name="search", description="search", handle_tool_error=True)
    async with agent_with(tool) as agent:
        async with conserve.conversation() as conversation:
            await agent.run(conversation)
        report = await conversation.areport()
    assert outcomes(report.tools) == {"search": Outcome.FAILED}
    assert len(report.turns) == 2


async def test_an_end_that_comes_after_a_sibling_failed_is_reported() -> None:
    may_end, ended = asyncio.Event(), asyncio.Event()

    async def late() -> str:
        await may_end.wait()
        ended.set()
        return "done"

    tools = async_tool("late", late), sync_tool("early", fail)
    async with agent_with(*tools) as agent, conserve.conversation() as conversation:
        with pytest.raises(ValueError, match="no such place"):
            await agent.run(conversation)
        during = await conversation.areport()
        may_end.set()
        await asyncio.wait_for(ended.wait(), LIMIT_S)
        await agent.gateway.eventually(lambda: is_closed(conversation, "late"))
        after = await conversation.areport()
    assert outcomes(during.tools) == {"late": None, "early": Outcome.FAILED}
    assert outcomes(after.tools) == {"late": Outcome.COMPLETED, "early": Outcome.FAILED}


async def is_closed(conversation: conserve.Conversation, name: str) -> bool:
    return outcomes((await conversation.areport()).tools)[name] is not None


async def test_a_tool_that_is_cancelled_with_its_graph_is_reported_as_cancelled() -> None:
    started = asyncio.Event()

    async def forever() -> str:
        started.set()
        await asyncio.Event().wait()
        return "never"

    async with agent_with(async_tool("search", forever)) as agent:
        async with conserve.conversation() as conversation:
            run = asyncio.create_task(agent.run(conversation))
            await asyncio.wait_for(started.wait(), LIMIT_S)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
        report = await conversation.areport()
    assert outcomes(report.tools) == {"search": Outcome.CANCELLED}
    assert report.tools[0].duration_s is not None


async def test_conversations_that_share_a_graph_keep_their_tools_apart() -> None:
    async with agent_with(sync_tool("search")) as agent:

        async def converse() -> int:
            async with conserve.conversation() as conversation:
                await agent.run(conversation)
            return len((await conversation.areport()).tools)

        assert await asyncio.gather(*(converse() for _ in range(3))) == [1, 1, 1]


def test_an_end_without_a_start_is_passed_over() -> None:
    boundaries = ToolBoundaries(conserve.conversation())
    boundaries.on_tool_end("done", run_id=uuid4())
    boundaries.on_tool_error(ValueError(), run_id=uuid4())


async def test_a_tool_has_one_span_which_is_the_instrumentations(spans: Spans) -> None:
    conserve.instrument()
    async with agent_with(sync_tool("search"), sync_tool("add")) as agent:
        async with conserve.conversation("c-1") as conversation:
            await agent.run(conversation)
        report = await conversation.areport()
    tools = spans.named("execute_tool")
    assert sorted(span.name for span in tools) == ["execute_tool add", "execute_tool search"]
    for span in tools:
        attributes = span.attributes or {}
        assert (attributes["gen_ai.conversation.id"], attributes["session.id"]) == ("c-1", "c-1")
    assert len(spans.named("chat")) == 2
    assert len(report.tools) == 2
    assert len({span.context.trace_id for span in spans.all() if span.context}) == 1


async def test_a_tool_that_interrupts_is_cancelled_and_the_resumed_graph_keeps_its_decoder() -> None:
    def ask() -> str:
        return str(interrupt("may I?"))

    async with agent_with(sync_tool("ask", ask), checkpointer=InMemorySaver()) as agent:
        async with conserve.conversation("ticket-1", keep_open=True) as first:
            await agent.run(first)
        assert outcomes((await first.areport()).tools) == {"ask": Outcome.CANCELLED}
        async with conserve.conversation("ticket-1") as second, asyncio.timeout(LIMIT_S):
            await agent.graph.ainvoke(Command(resume="yes"), config=run_config(second))
        report = await second.areport()
    assert report.tools[-1].outcome is Outcome.COMPLETED
    assert ([turn.path for turn in report.turns], report.kv_transfers) == (["remote-prefill", "pinned"], 1)


async def test_a_streamed_graph_streams_its_turns_and_reports_its_tools() -> None:
    async with agent_with(sync_tool("search")) as agent:
        async with conserve.conversation() as conversation, asyncio.timeout(LIMIT_S):
            state: Any = {"messages": [HumanMessage(QUESTION)]}
            steps = agent.graph.astream(state, run_config(conversation), stream_mode="messages")
            assert [step async for step in steps]
        report = await conversation.areport()
    assert [turn.streamed for turn in report.turns] == [True, True]
    assert outcomes(report.tools) == {"search": Outcome.COMPLETED}


async def test_a_graph_run_in_a_thread_reports_its_tools() -> None:
    async with agent_with(sync_tool("search"), is_sync=True) as agent:
        with conserve.conversation() as conversation:
            state: Any = {"messages": [HumanMessage(QUESTION)]}
            await asyncio.to_thread(agent.graph.invoke, state, run_config(conversation))
        report = await conversation.areport()
    assert (len(report.turns), outcomes(report.tools)) == (2, {"search": Outcome.COMPLETED})


async def test_after_instrument_a_graph_reports_its_tools_without_being_told_to(spans: Spans) -> None:
    conserve.instrument()
    async with agent_with(sync_tool("search")) as agent:
        async with conserve.conversation() as conversation, asyncio.timeout(LIMIT_S):
            state: Any = {"messages": [HumanMessage(QUESTION)]}
            await agent.graph.ainvoke(state, conversation.langgraph_config())
        report = await conversation.areport()
    assert [(tool.name, tool.outcome) for tool in report.tools] == [("search", Outcome.COMPLETED)]
