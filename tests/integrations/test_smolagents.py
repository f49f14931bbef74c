"""Real runs of smolagents, as the gateway hears of them and as they are traced."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from smolagents import CodeAgent, OpenAIModel, Tool, ToolCallingAgent

import conserve_sdk as conserve
from conserve_integrations.smolagents import observe
from conserve_sdk import Outcome
from conserve_server.engines.emulated import Rule, ScriptedCall
from tests.integrations.agents_gateway import LIMIT_S, MODEL, QUESTION, ids, outcomes, tree, with_tools

if TYPE_CHECKING:
    from tests.sdk.conftest import Spans

pytestmark = pytest.mark.slow

ANSWERS = Rule(match="Observation", tool_calls=(ScriptedCall("final_answer", {"answer": "done"}),))
"""smolagents ends a run by a tool of its own."""


class Search(Tool):  # type: ignore[misc]
    name = "search"
    description = "Finds something."
    inputs: dict[str, Any] = {}  # noqa: RUF012 - how smolagents has it
    output_type = "string"

    def __init__(self, name: str = "search", find: Callable[[], str] = lambda: "found") -> None:
        super().__init__()
        self.name, self.find = name, find

    def forward(self) -> str:
        return self.find()


def run(url: str, *tools: Search, agent: Any = ToolCallingAgent, **options: Any) -> object:
    model = conserve.wrap(OpenAIModel(MODEL, api_base=f"{url}/v1", api_key="-"))
    with model.client:
        return observe(agent(list(tools), model, max_steps=3, verbosity_level=0, **options)).run(QUESTION)


async def test_a_runs_turns_and_parallel_tools_are_one_conversation() -> None:
    both = threading.Barrier(2)

    def meet() -> str:
        both.wait(LIMIT_S)
        return "met"

    async with with_tools("left", "right", rules=[ANSWERS]) as gateway:
        with conserve.conversation(agent="researcher") as conversation:
            result = await asyncio.to_thread(run, gateway.url, Search("left", meet), Search("right", meet))
        report = await conversation.areport()
    assert result == "done"
    assert [turn.outcome for turn in report.turns] == [Outcome.COMPLETED] * 2
    assert outcomes(report.tools) == {"left": Outcome.COMPLETED, "right": Outcome.COMPLETED}
    assert (report.agent, report.kv_transfers) == ("researcher", 1)


async def test_a_tool_that_agents_share_one_after_another_is_reported_once() -> None:
    async with with_tools("search", rules=[ANSWERS]) as gateway:
        shared = Search()
        with conserve.conversation() as conversation:
            for _ in range(2):
                await asyncio.to_thread(run, gateway.url, shared)
        report = await conversation.areport()
    assert [call.name for call in report.tools] == ["search", "search"]


async def test_a_tool_that_raises_has_failed_and_the_run_goes_on() -> None:
    def fail() -> str:
        raise ValueError("secret")

    async with with_tools("search", rules=[Rule(match="Error", tool_calls=ANSWERS.tool_calls)]) as gateway:
        with conserve.conversation() as conversation:
            await asyncio.to_thread(run, gateway.url, Search(find=fail))
        report = await conversation.areport()
    assert outcomes(report.tools) == {"search": Outcome.FAILED}


async def test_a_streamed_run_is_alike() -> None:
    def stream(url: str) -> list[object]:
        model = conserve.wrap(OpenAIModel(MODEL, api_base=f"{url}/v1", api_key="-"))
        with model.client:
            agent = observe(
                ToolCallingAgent([Search()], model, max_steps=3, verbosity_level=0, stream_outputs=True)
            )
            return list(agent.run(QUESTION, stream=True))

    async with with_tools("search", rules=[ANSWERS]) as gateway:
        with conserve.conversation() as conversation:
            assert await asyncio.to_thread(stream, gateway.url)
        report = await conversation.areport()
    assert [turn.streamed for turn in report.turns] == [True, True]
    assert outcomes(report.tools) == {"search": Outcome.COMPLETED}


async def test_tools_that_code_calls_are_reported_too() -> None:
    code = Rule(match=QUESTION, reply="Thought: search.\n<code>\nfinal_answer(search())\n</code>")
    async with with_tools(rules=[code]) as gateway:
        with conserve.conversation() as conversation:
            result = await asyncio.to_thread(run, gateway.url, Search(), agent=CodeAgent)
        report = await conversation.areport()
    assert result == "found"
    assert outcomes(report.tools) == {"search": Outcome.COMPLETED}


async def test_a_managed_agent_is_a_branch_of_the_conversation() -> None:
    def manage(url: str) -> None:
        model = conserve.wrap(OpenAIModel(MODEL, api_base=f"{url}/v1", api_key="-"))
        with model.client:
            helper = ToolCallingAgent([], model, name="helper", description="Helps.", verbosity_level=0)
            lead = ToolCallingAgent([], model, managed_agents=[helper], max_steps=3, verbosity_level=0)
            observe(observe(lead)).run(QUESTION)

    call = ScriptedCall("helper", {"task": "help me"})
    final = ScriptedCall("final_answer", {"answer": "done"})
    rules = [ANSWERS, Rule(match="help me", tool_calls=(final,)), Rule(match=QUESTION, tool_calls=(call,))]
    async with with_tools(rules=rules) as gateway:
        with conserve.conversation("lead") as conversation:
            await asyncio.to_thread(manage, gateway.url)
        listed: Any = (await gateway.client.get("/v1/conversations")).json()
    children = [item for item in listed["data"] if item["parent_id"] == conversation.id]
    assert [(child["id"], child["agent"]) for child in children] == [("lead/helper", "helper")]


async def test_a_turn_is_one_clean_tree_down_to_the_gateway(spans: Spans) -> None:
    conserve.instrument()
    async with with_tools("search", rules=[ANSWERS]) as gateway:
        with conserve.conversation("c-1", agent="researcher") as conversation, conversation.turn():
            await asyncio.to_thread(run, gateway.url, Search())
        await conversation.areport()
        served = [span for span in gateway.spans if span.name == "conserve.turn"]
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
