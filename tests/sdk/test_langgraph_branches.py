"""Which of a LangGraph thread's model calls are branches of the conversation."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypedDict

from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Send
from openai import OpenAI

import conserve_sdk as conserve
from conserve_sdk import protocol
from conserve_sdk._branches_langgraph import langgraph_branch as branch

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


def test_a_subgraph_is_one_branch_for_all_its_steps(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    inner = chain(("one", caller(client, "one")), ("two", caller(client, "two")))

    run(chain(("agent", caller(client, "agent")), ("team", entering(inner))))
    assert branches(model) == [None, "team", "team"]
    assert model.ids() == ["c", "c", "c"]


def test_a_subgraph_that_is_entered_again_goes_on_in_its_branch(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    inner = chain(("one", caller(client, "one")))
    graph = StateGraph(State)
    graph.add_node("team", entering(inner)).add_node("agent", caller(client, "agent"))
    graph.add_edge(START, "team").add_edge("team", "agent")
    graph.add_conditional_edges("agent", lambda state: "team" if len(state["done"]) < 4 else END)
    compiled = graph.compile()
    for _ in range(2):
        run(compiled)
    assert branches(model) == ["team", None] * 4


def test_a_subgraph_as_a_node_and_one_that_a_node_runs_twice_are_the_nodes_path(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    inner = chain(("one", caller(client, "one")))
    enter = entering(inner)

    def twice(state: State) -> dict[str, list[str]]:
        return {"done": [*enter(state)["done"], *enter(state)["done"]]}

    graph = StateGraph(State).add_node("twice", twice).add_node("direct", inner)
    graph.add_edge(START, "twice").add_edge("twice", "direct")
    run(chain(("outer", entering(graph.compile()))))
    assert branches(model) == ["outer|twice", "outer|twice", "outer|direct"]


def test_parallel_nodes_are_told_apart_by_their_names(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    graph = StateGraph(State)
    for name in ("left", "right"):
        graph.add_node(name, entering(chain(("one", caller(client, name)))))
        graph.add_edge(START, name)
    run(graph.compile())
    assert sorted(map(str, branches(model))) == ["left", "right"]


def mapping(worker: Node, first: Node, rounds: int = 1) -> Graph:
    """An agent that sends three tasks to the worker, in each round."""
    graph = (
        StateGraph(State).add_node("agent", first).add_node("worker", worker).add_node("join", note("join"))
    )
    graph.add_edge(START, "agent").add_edge("worker", "join")
    graph.add_conditional_edges(
        "agent", lambda _: [Send("worker", {"done": []}) for _ in range(3)], ["worker"]
    )
    graph.add_conditional_edges(
        "join", lambda state: "agent" if state["done"].count("join") < rounds else END, ["agent", END]
    )
    return graph.compile()


def note(name: str) -> Node:
    def node(state: State) -> dict[str, list[str]]:
        return {"done": [name]}

    return node


def test_tasks_that_were_sent_are_branches_each(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    run(mapping(caller(client, "worker"), first=caller(client, "agent")))
    assert branches(model)[0] is None
    assert sorted(map(str, branches(model)[1:])) == ["worker", "worker#2", "worker#3"]


def test_subgraphs_in_tasks_that_were_sent_are_branches_each_for_all_their_steps(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    inner = chain(("one", caller(client, "one")), ("two", caller(client, "two")))
    run(mapping(entering(inner), first=note("agent")))
    assert sorted(map(str, branches(model))) == sorted(["worker", "worker#2", "worker#3"] * 2)


def test_what_is_sent_in_a_later_step_takes_the_same_branches_again(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    run(mapping(caller(client, "worker"), first=note("agent"), rounds=2))
    assert sorted(map(str, branches(model))) == sorted(["worker", "worker#2", "worker#3"] * 2)


def test_the_tasks_that_a_function_calls_are_steps_and_a_subgraph_in_one_is_a_branch(
    model: FakeModel,
) -> None:
    client = conserve.wrap(model.client())
    call, enter = caller(client, "step"), entering(chain(("one", caller(client, "one"))))

    @task
    def think() -> None:
        call({"done": []})

    @task
    def delegate() -> None:
        enter({"done": []})

    @entrypoint()
    def flow(_: str) -> None:
        for step in (think, think, delegate, delegate):
            step().result()

    with conserve.conversation("c") as found:
        flow.invoke("go", found.langgraph_config())
    assert branches(model) == [None, None, "flow|delegate", "flow|delegate"]


def test_a_graph_without_a_namespace_has_no_branch() -> None:
    assert [branch(config) for config in ({}, {"configurable": {"checkpoint_ns": ""}})] == [None, None]


def test_tasks_are_told_apart_however_many_steps_came_before() -> None:
    def sent(step: int, task_id: str) -> dict[str, Any]:
        configurable = {"checkpoint_ns": f"worker:{task_id}", "checkpoint_map": {"": str(step)}}
        return {"configurable": configurable, "metadata": {"langgraph_path": ("__pregel_push", 0, False)}}

    for step in range(10_000):
        assert [branch(sent(step, name)) for name in ("a", "b", "a")] == ["worker", "worker#2", "worker"]


def test_a_conversation_of_a_nodes_own_is_no_branch(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    inner = chain(("one", caller(client, "one", conversation="own")))
    run(chain(("team", entering(inner))))
    assert (model.ids(), branches(model)) == (["own"], [None])
    assert model.requests[0].headers[protocol.PARENT_ID] == "c"
