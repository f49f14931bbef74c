"""LangGraph programs of every usual shape: wrapped, none moves more KV or computes more than as it is."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.types import Command

from conserve_server.engines.emulated import Rule
from tests.integrations import langgraph_programs as programs
from tests.integrations.costs import Place, Program, assert_no_worse_off, calls, questions, says, turns_of

HAND_OVERS = (
    calls("^sum", "transfer_to_math"),
    calls("^find", "transfer_to_research"),
    calls("transferred to math", "add"),
    calls("transferred to research", "lookup"),
    says("transferred back", "that is all"),
    says("^3$", "it is three"),
    says("the notes say", "it is unknown"),
)
SWARM = (
    calls("^sum", "transfer_to_research"),
    calls("^find", "transfer_to_math"),
    says("transferred to", "I am here"),
    says(".", "well"),
)
TOOLS = (
    calls("^sum", "ask_math", request="add it up"),
    calls("^find", "ask_research", request="seek it"),
    calls("^add it up", "add"),
    says(".", "well"),
)
LOOKS = (calls("^(look|work)", "lookup"), says(".", "well"))
APPROVES = (calls("^file", "approve"), says(".", "done"))


def chatting(make: Any, *texts: str) -> Program:
    async def program(place: Place) -> None:
        await programs.chat(make(place), place, texts)

    return program


def alternating() -> list[str]:
    return [text for pair in zip(questions("sum", 3), questions("find", 3), strict=True) for text in pair]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "rules", "texts", "agents"),
    [
        pytest.param(programs.supervisor, HAND_OVERS, questions("sum"), 2, id="supervisor"),
        pytest.param(programs.supervisor, HAND_OVERS, alternating(), 2, id="supervisor of two"),
        pytest.param(programs.swarm, SWARM, ["hello", *alternating()], 2, id="swarm"),
        pytest.param(programs.packaged_supervisor, HAND_OVERS, alternating(), 2, id="langgraph-supervisor"),
        pytest.param(programs.packaged_swarm, SWARM, ["hello", *alternating()], 2, id="langgraph-swarm"),
        pytest.param(programs.with_agents_as_tools, TOOLS, alternating(), 2, id="agents as tools"),
        pytest.param(programs.nested, LOOKS, questions("look"), 2, id="subgraphs"),
        pytest.param(programs.mapping, LOOKS, questions("plan", 3), 3, id="map"),
    ],
)
async def test_a_wrapped_graph_costs_no_more_than_the_same_one_unwrapped(
    make: Any, rules: tuple[Rule, ...], texts: list[str], agents: int, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    await assert_no_worse_off(chatting(make, *texts), rules, agents=agents, name=name)


async def approved(place: Place) -> None:
    """A person is asked in each round; another block, as another process would open it, resumes."""
    graph = programs.approving(place)
    config: RunnableConfig = {"configurable": {"thread_id": "ticket"}}
    for text in questions("file", 3):
        async with place.conversation("ticket", keep_open=True):
            await graph.ainvoke({"messages": [HumanMessage(text)]}, config)
        async with place.conversation("ticket", keep_open=True):
            await graph.ainvoke(Command(resume="yes"), config)


async def test_a_graph_that_waits_for_a_person_goes_on_in_its_branch() -> None:
    await assert_no_worse_off(approved, APPROVES, agents=1)
    assert await turns_of(approved, APPROVES) == {"ticket": 0, "ticket/clerk": 6}


@pytest.mark.parametrize("make", [programs.supervisor, programs.packaged_supervisor])
async def test_a_supervisors_chat_is_one_branch_an_agent(make: Any) -> None:
    chat = chatting(make, *alternating())
    turns = await turns_of(chat, HAND_OVERS)
    assert turns == {
        "thread-1": 0,
        "thread-1/supervisor": 12,
        "thread-1/math": 6,
        "thread-1/research": 6,
    }


async def test_what_is_mapped_at_once_is_kept_apart_and_found_again() -> None:
    turns = await turns_of(chatting(programs.mapping, *questions("plan", 3)), LOOKS)
    workers = {f"thread-1/work{number}": 6 for number in ("", "#2", "#3")}
    assert turns == {"thread-1": 3, **workers}


async def test_a_thread_without_any_block_costs_no_more_either() -> None:
    async def unnamed(place: Place) -> None:
        graph = programs.supervisor(place)
        for text in questions("sum", 3):
            await graph.ainvoke(
                {"messages": [HumanMessage(text)]}, {"configurable": {"thread_id": "thread-2"}}
            )

    await assert_no_worse_off(unnamed, HAND_OVERS, agents=1)
