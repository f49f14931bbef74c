"""LangChain's own agents, and its chat models alone, as the gateway hears of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import HumanMessage
from langchain_core.tools import BaseTool, StructuredTool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt

import conserve_sdk as conserve
from conserve_integrations.langchain import ConserveMiddleware
from conserve_integrations.langgraph import run_config
from conserve_sdk import Outcome
from tests.integrations.agents_gateway import LIMIT_S, MODEL, QUESTION, Served, ids, outcomes, with_tools

if TYPE_CHECKING:
    from tests.sdk.conftest import Spans

STATE: Any = {"messages": [HumanMessage(QUESTION)]}


@dataclass
class Running:
    llm: ChatOpenAI
    tools: list[BaseTool]
    gateway: Served

    def agent(self, *middleware: Any, **options: Any) -> Any:
        return create_agent(self.llm, self.tools, middleware=[ConserveMiddleware(), *middleware], **options)


@asynccontextmanager
async def running(*tools: BaseTool) -> AsyncIterator[Running]:
    async with with_tools(*(tool.name for tool in tools)) as gateway, httpx2.AsyncClient() as http:
        with httpx2.Client() as sync_http:
            llm = ChatOpenAI(
                model=MODEL,
                base_url=f"{gateway.url}/v1",
                api_key=lambda: "-",
                http_async_client=http,
                http_client=sync_http,
            )
            yield Running(conserve.wrap(llm), list(tools), gateway)


def tool(name: str, function: Callable[[], str] = lambda: "found") -> BaseTool:
    return StructuredTool.from_function(function, name=name, description=name)


def fail() -> str:
    raise ValueError("secret")


# -- create_agent ------------------------------------------------------------------------


async def test_an_agents_turns_and_tools_are_one_conversation() -> None:
    async with running(tool("search"), tool("add")) as found:
        async with conserve.conversation(agent="researcher") as conversation, asyncio.timeout(LIMIT_S):
            state = await found.agent().ainvoke(STATE, conversation.langgraph_config())
        report = await conversation.areport()
    assert [turn.index for turn in report.turns] == [1, 2]
    assert outcomes(report.tools) == {"search": Outcome.COMPLETED, "add": Outcome.COMPLETED}
    calls = {call["id"] for call in state["messages"][1].tool_calls}
    assert {call.call_id for call in report.tools} == calls


async def test_a_sync_agent_in_a_thread_is_alike() -> None:
    async with running(tool("search")) as found:
        with conserve.conversation() as conversation:
            agent = found.agent()
            await asyncio.to_thread(agent.invoke, STATE, conversation.langgraph_config())
        report = await conversation.areport()
    assert (len(report.turns), outcomes(report.tools)) == (2, {"search": Outcome.COMPLETED})


async def test_a_streamed_agent_is_alike() -> None:
    async with running(tool("search")) as found:
        async with conserve.conversation() as conversation, asyncio.timeout(LIMIT_S):
            steps = found.agent().astream(STATE, conversation.langgraph_config(), stream_mode="messages")
            pieces = [step async for step in steps]
        report = await conversation.areport()
    assert pieces
    assert [turn.streamed for turn in report.turns] == [True, True]
    assert outcomes(report.tools) == {"search": Outcome.COMPLETED}


async def test_a_tool_that_raises_has_failed_and_its_error_passes() -> None:
    async with running(tool("search", fail)) as found:
        async with conserve.conversation() as conversation:
            with pytest.raises(ValueError, match="secret"):
                await found.agent().ainvoke(STATE, conversation.langgraph_config())
        report = await conversation.areport()
    assert outcomes(report.tools) == {"search": Outcome.FAILED}


async def test_a_person_who_approves_a_tool_is_waited_for_and_no_tool_is_open_meanwhile() -> None:
    gate = HumanInTheLoopMiddleware(interrupt_on={"pay": True})
    async with running(tool("pay")) as found:
        agent = found.agent(gate, checkpointer=InMemorySaver())
        async with conserve.conversation("ticket-1", keep_open=True) as first:
            paused = await agent.ainvoke(STATE, first.langgraph_config())
        assert "__interrupt__" in paused
        assert (await first.areport()).tools == ()
        async with conserve.conversation("ticket-1") as second:
            resume: Any = Command(resume={"decisions": [{"type": "approve"}]})
            await agent.ainvoke(resume, second.langgraph_config())
        report = await second.areport()
    assert ([turn.path for turn in report.turns], report.kv_transfers) == (["remote-prefill", "pinned"], 1)
    assert outcomes(report.tools) == {"pay": Outcome.COMPLETED}


async def test_a_tool_that_interrupts_is_cancelled_and_runs_anew_when_resumed() -> None:
    def ask() -> str:
        return str(interrupt("may I?"))

    async with running(tool("ask", ask)) as found:
        agent = found.agent(checkpointer=InMemorySaver())
        async with conserve.conversation("ticket-1", keep_open=True) as first:
            await agent.ainvoke(STATE, first.langgraph_config())
        assert outcomes((await first.areport()).tools) == {"ask": Outcome.CANCELLED}
        async with conserve.conversation("ticket-1") as second:
            resume: Any = Command(resume="yes")
            await agent.ainvoke(resume, second.langgraph_config())
        report = await second.areport()
    assert [call.outcome for call in report.tools][-1] is Outcome.COMPLETED
    assert report.kv_transfers == 1


async def test_a_tool_that_the_middleware_and_the_callbacks_report_is_told_once() -> None:
    async with running(tool("search")) as found:
        async with conserve.conversation() as conversation:
            await found.agent().ainvoke(STATE, run_config(conversation))
        report = await conversation.areport()
    assert [(call.name, call.outcome) for call in report.tools] == [("search", Outcome.COMPLETED)]


async def test_outside_of_a_conversation_the_middleware_does_nothing() -> None:
    async with running(tool("search")) as found:
        state = await found.agent().ainvoke(STATE)
    assert state["messages"][-1].content == "done"


# -- chat models alone -------------------------------------------------------------------


async def test_a_chat_model_alone_carries_the_conversation_in_every_way_of_calling_it(spans: Spans) -> None:
    conserve.instrument()
    async with running() as found:
        async with conserve.conversation("c-1") as conversation:
            await found.llm.ainvoke("one")
            assert [piece async for piece in found.llm.astream("two")]
            await asyncio.to_thread(found.llm.invoke, "three")
            await asyncio.to_thread(lambda: list(found.llm.stream("four")))
            await found.llm.abatch(["five", "six"])
        report = await conversation.areport()
        served = [span for span in found.gateway.spans if span.name == "conserve.turn"]
    assert [turn.outcome for turn in report.turns] == [Outcome.COMPLETED] * 6
    chats = {span.context.span_id for span in spans.named("chat") if span.context}
    assert len(chats) == 6
    assert {span.parent.span_id for span in served if span.parent} == chats
    assert ids(spans.all()) == {"c-1"}


async def test_a_structured_answer_carries_the_conversation() -> None:
    async with running() as found:
        schema = {"title": "answer", "type": "object", "properties": {}, "additionalProperties": False}
        structured = found.llm.with_structured_output(schema, include_raw=True)
        async with conserve.conversation() as conversation:
            await structured.ainvoke("one")
        report = await conversation.areport()
    assert len(report.turns) == 1
