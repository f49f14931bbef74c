"""Which of a LangGraph thread's model calls are branches of the conversation."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Annotated, Protocol, TypedDict

from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Send
from openai import OpenAI

import conserve_sdk as conserve
from conserve_sdk import protocol

if TYPE_CHECKING:
    from tests.sdk.conftest import FakeModel


class State(TypedDict):
    done: Annotated[list[str], operator.add]


class Node(Protocol):
    def __call__(self, state: State) -> dict[str, list[str]]: ...


Graph = CompiledStateGraph[State, None, State, State]


def caller(client: OpenAI, name: str, conversation: str | None = None) -> Node:
    """A node that calls the model; in a conversation of its own, if one is named."""

    def call() -> None:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": name}])

    def node(state: State) -> dict[str, list[str]]:
        if conversation is None:
            call()
        else:
            with conserve.conversation(conversation):
                call()
        return {"done": [name]}

    return node


def entering(inner: Graph) -> Node:
    """A node that runs a graph of its own."""

    def node(state: State) -> dict[str, list[str]]:
        return {"done": inner.invoke({"done": []})["done"]}

    return node


def chain(*nodes: tuple[str, Node]) -> Graph:
    graph = StateGraph(State)
    for before, (name, node) in zip([START, *(name for name, _ in nodes)], nodes, strict=False):
        graph.add_node(name, node)
        graph.add_edge(before, name)
    return graph.compile()


def branches(model: FakeModel) -> list[str | None]:
    return [request.headers.get(protocol.BRANCH) for request in model.requests]


def run(graph: Graph, conversation: str = "c") -> None:
    with conserve.conversation(conversation) as found:
        graph.invoke({"done": []}, found.langgraph_config())


def test_the_steps_of_a_graph_are_one_conversation(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    run(chain(("agent", caller(client, "agent")), ("again", caller(client, "again"))))
    assert (model.ids(), branches(model)) == (["c", "c"], [None, None])


def test_a_subgraphs_run_is_one_branch_for_all_its_steps(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    inner = chain(("one", caller(client, "one")), ("two", caller(client, "two")))

    run(chain(("agent", caller(client, "agent")), ("team", entering(inner))))
    found = branches(model)
    assert found[0] is None
    assert found[1] == found[2]
    assert str(found[1]).startswith("team:")
    assert model.ids() == ["c", "c", "c"]


def test_tasks_that_were_sent_are_branches_each(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    graph = StateGraph(State)
    graph.add_node("agent", caller(client, "agent"))
    graph.add_node("worker", caller(client, "worker"))
    graph.add_edge(START, "agent")
    graph.add_conditional_edges(
        "agent", lambda _: [Send("worker", {"done": []}) for _ in range(3)], ["worker"]
    )
    run(graph.compile())
    found = branches(model)
    assert found[0] is None
    assert len(set(found)) == 4


def test_a_conversation_of_a_nodes_own_is_no_branch(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    inner = chain(("one", caller(client, "one", conversation="own")))
    run(chain(("team", entering(inner))))
    assert (model.ids(), branches(model)) == (["own"], [None])
    assert model.requests[0].headers[protocol.PARENT_ID] == "c"
