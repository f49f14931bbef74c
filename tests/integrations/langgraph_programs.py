"""LangGraph programs of the shapes that its documentation shows, each a chat of some messages."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypedDict

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolCallId, StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedState
from langgraph.types import Command, Send, interrupt
from langgraph_supervisor import create_supervisor
from langgraph_swarm import create_handoff_tool, create_swarm

from tests.integrations.costs import Place, prompt

AGENTS = ("math", "research")


def add(a: int = 1, b: int = 2) -> int:
    """Adds two numbers."""
    return a + b


def lookup(topic: str = "ferry") -> str:
    """What the notes say."""
    return f"the notes say nothing of {topic}"


def tool(function: Callable[..., object]) -> BaseTool:
    return StructuredTool.from_function(function)


def hand_over(agent: str) -> BaseTool:
    """As `create_handoff_tool` of langgraph-supervisor and langgraph-swarm makes it."""

    async def transfer(
        state: Annotated[dict[str, Any], InjectedState], tool_call_id: Annotated[str, InjectedToolCallId]
    ) -> Command[Any]:
        done = ToolMessage(f"transferred to {agent}", tool_call_id=tool_call_id)
        update = {**state, "messages": [*state["messages"], done], "active": agent}
        return Command(goto=agent, graph=Command.PARENT, update=update)

    return StructuredTool.from_function(
        coroutine=transfer, name=f"transfer_to_{agent}", description=f"Ask {agent} for help"
    )


async def chat(graph: Any, place: Place, texts: Sequence[str], thread: str = "thread-1") -> None:
    """Each message is an invoke of its own; the checkpointer keeps the thread."""
    config: RunnableConfig = {"configurable": {"thread_id": thread}}
    async with place.conversation(thread):
        for text in texts:
            await graph.ainvoke({"messages": [HumanMessage(text)]}, config)


def specialist(place: Place, name: str, *tools: BaseTool) -> Any:
    return create_agent(place.chat_model(), list(tools), system_prompt=prompt(name), name=name)


def supervisor(place: Place) -> Any:
    """A supervisor that hands over to one of two agents, whose last message comes back to it."""

    def calling(agent: Any) -> Any:
        async def call(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
            found = await agent.ainvoke(state, config)
            back = "back"
            return {
                "messages": [
                    found["messages"][-1],
                    AIMessage("", tool_calls=[{"name": "transfer_back", "args": {}, "id": back}]),
                    ToolMessage("transferred back", tool_call_id=back),
                ]
            }

        return call

    graph = StateGraph(MessagesState).add_edge(START, "supervisor")
    graph.add_node(
        "supervisor",
        specialist(place, "supervisor", *(hand_over(agent) for agent in AGENTS)),
        destinations=(*AGENTS, END),
    )
    graph.add_node("math", calling(specialist(place, "math", tool(add))))
    graph.add_node("research", calling(specialist(place, "research", tool(lookup))))
    for agent in AGENTS:
        graph.add_edge(agent, "supervisor")
    return graph.compile(checkpointer=InMemorySaver())


def packaged_supervisor(place: Place) -> Any:
    """The program of langgraph-supervisor's own README."""
    agents = [specialist(place, "math", tool(add)), specialist(place, "research", tool(lookup))]
    with warnings.catch_warnings():  # it still builds on what LangGraph has renamed
        warnings.simplefilter("ignore", DeprecationWarning)
        graph = create_supervisor(agents, model=place.chat_model(), prompt=prompt("supervisor"))
    return graph.compile(checkpointer=InMemorySaver())


def packaged_swarm(place: Place) -> Any:
    """The program of langgraph-swarm's own README."""
    agents = [
        specialist(place, own, create_handoff_tool(agent_name=other))
        for own, other in (("math", "research"), ("research", "math"))
    ]
    return create_swarm(agents, default_active_agent="math").compile(checkpointer=InMemorySaver())


class SwarmState(MessagesState):
    active: str


def swarm(place: Place) -> Any:
    """Two agents that hand over to one another and share all messages."""
    graph = StateGraph(SwarmState)
    for own, other in (("math", "research"), ("research", "math")):
        graph.add_node(own, specialist(place, own, hand_over(other)), destinations=(other, END))
    graph.add_conditional_edges(START, lambda state: state.get("active") or "math", [*AGENTS])
    return graph.compile(checkpointer=InMemorySaver())


def with_agents_as_tools(place: Place) -> Any:
    def as_tool(name: str, inner: Any) -> BaseTool:
        async def ask(request: str = "what is it") -> str:
            found = await inner.ainvoke({"messages": [HumanMessage(request)]})
            return str(found["messages"][-1].content)

        return StructuredTool.from_function(coroutine=ask, name=f"ask_{name}", description=f"Asks {name}")

    tools = [
        as_tool("math", specialist(place, "math", tool(add))),
        as_tool("research", specialist(place, "research")),
    ]
    return create_agent(
        place.chat_model(), tools, system_prompt=prompt("lead"), name="lead", checkpointer=InMemorySaver()
    )


class MapState(TypedDict):
    messages: Annotated[list[AnyMessage], operator.add]
    topics: list[str]


def mapping(place: Place) -> Any:
    """A planner, a worker for each of three topics at once (`Send`), and a summary."""
    llm = place.chat_model()

    async def plan(state: MapState) -> dict[str, Any]:
        answer = await llm.ainvoke([SystemMessage(prompt("planner")), *state["messages"]])
        return {"messages": [answer], "topics": [f"{state['messages'][-1].content} {n}" for n in range(3)]}

    worker = specialist(place, "worker", tool(lookup))

    async def work(topic: str) -> dict[str, Any]:
        found = await worker.ainvoke({"messages": [HumanMessage(f"work on {topic}")]})
        return {"messages": [HumanMessage(found["messages"][-1].content)]}

    graph: Any = StateGraph(MapState)
    graph.add_node("plan", plan).add_node("work", work).add_edge(START, "plan")
    graph.add_conditional_edges(
        "plan", lambda state: [Send("work", topic) for topic in state["topics"]], ["work"]
    )
    return graph.compile(checkpointer=InMemorySaver())


def nested(place: Place) -> Any:
    """An agent that is a node of a graph that is a node of the graph, and a parallel one beside it."""
    inner = StateGraph(MessagesState).add_node("deep", specialist(place, "deep", tool(lookup)))
    inner.add_edge(START, "deep")
    graph = StateGraph(MessagesState).add_node("team", inner.compile())
    graph.add_node("beside", specialist(place, "beside"))
    graph.add_edge(START, "team").add_edge(START, "beside")
    return graph.compile(checkpointer=InMemorySaver())


def approving(place: Place) -> Any:
    """An agent in a subgraph whose tool waits for a person."""

    def approve() -> str:
        """Asks a person."""
        return str(interrupt("may I?"))

    graph = StateGraph(MessagesState).add_node("clerk", specialist(place, "clerk", tool(approve)))
    return graph.add_edge(START, "clerk").compile(checkpointer=InMemorySaver())
