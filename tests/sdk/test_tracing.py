"""Spans: one tree, the conversation on each, and the gateway's spans below the right one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AnyMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import BaseTool
from langchain_core.tools import tool as langchain_tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode, tools_condition
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan

import conserve_sdk as conserve
from conserve_sdk import protocol

if TYPE_CHECKING:
    from pathlib import Path

    from langgraph.graph.state import CompiledStateGraph

    from tests.sdk.conftest import FakeModel, LoopbackGateway, Spans

CONVERSATION = "gen_ai.conversation.id"


def span_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return format(span.context.span_id, "016x")


def parents_on_the_wire(model: FakeModel) -> list[str]:
    return [request.headers["traceparent"].split("-")[2] for request in model.requests]


def stamped(span: ReadableSpan) -> tuple[object, object]:
    attributes = span.attributes or {}
    return attributes.get(CONVERSATION), attributes.get("session.id")


def test_the_wire_names_the_chat_span_as_parent(spans: Spans, model: FakeModel) -> None:
    conserve.instrument()
    client = conserve.wrap(model.client())
    with conserve.conversation("c-1", agent="researcher"):
        client.chat.completions.create(model="m", messages=[])
        list(client.chat.completions.create(model="m", messages=[], stream=True))
    chats = spans.named("chat")
    assert [span_id(span) for span in chats] == parents_on_the_wire(model)
    assert [stamped(span) for span in chats] == [("c-1", "c-1")] * 2
    assert (chats[0].attributes or {})["conserve.agent.name"] == "researcher"


async def test_async_calls_and_streams_name_it_too(spans: Spans, model: FakeModel) -> None:
    conserve.instrument()
    client = conserve.wrap(model.async_client())
    async with conserve.conversation("c-1"):
        await client.chat.completions.create(model="m", messages=[])
        stream = await client.chat.completions.create(model="m", messages=[], stream=True)
        assert len([chunk async for chunk in stream]) == 2
    assert [span_id(span) for span in spans.named("chat")] == parents_on_the_wire(model)


def test_a_traceparent_that_the_user_set_is_kept(spans: Spans, model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    theirs = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    with trace.get_tracer("t").start_as_current_span("mine"):
        client.chat.completions.create(model="m", messages=[], extra_headers={"traceparent": theirs})
    assert model.requests[0].headers["traceparent"] == theirs


def test_no_trace_context_goes_to_hosts_that_are_not_allowed(spans: Spans, model: FakeModel) -> None:
    client = conserve.wrap(model.client()).with_options(base_url="http://elsewhere.test/v1")
    with trace.get_tracer("t").start_as_current_span("mine"):
        client.chat.completions.create(model="m", messages=[])
    assert "traceparent" not in model.requests[0].headers


def test_a_tool_is_a_span_with_calls_inside_below_it(spans: Spans, model: FakeModel) -> None:
    conserve.instrument()
    client = conserve.wrap(model.client())
    with (
        conserve.conversation("c-1", agent="researcher") as conversation,
        conversation.tool("search", call_id="call_1"),
    ):
        client.chat.completions.create(model="m", messages=[])
    chat, tool = spans.all()
    assert chat.parent is not None
    assert format(chat.parent.span_id, "016x") == span_id(tool)
    assert tool.name == "execute_tool search"
    assert tool.kind is trace.SpanKind.INTERNAL
    assert dict(tool.attributes or {}) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "search",
        "gen_ai.tool.call.id": "call_1",
        "gen_ai.agent.name": "researcher",
        "gen_ai.conversation.id": "c-1",
        "session.id": "c-1",
        "conserve.agent.name": "researcher",
    }


def test_a_failed_tool_is_an_error_span_without_the_message(spans: Spans) -> None:
    call = conserve.conversation().tool("search")
    with pytest.raises(ValueError, match="secret"), call:
        raise ValueError("secret")
    (tool,) = spans.all()
    assert tool.status.status_code is trace.StatusCode.ERROR
    assert (tool.attributes or {})["error.type"] == "ValueError"
    assert "secret" not in tool.to_json()


async def test_a_tool_in_a_generator_closed_elsewhere_ends_its_span_quietly(
    spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    import asyncio

    async def answers() -> AsyncIterator[int]:
        with conserve.conversation("c-1") as conversation, conversation.tool("search"):
            yield 1

    generator = answers()
    await anext(generator)
    await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]
    assert [span.name for span in spans.all()] == ["execute_tool search"]
    assert caplog.records == []


def test_the_users_own_spans_carry_the_conversation_and_its_parent(spans: Spans) -> None:
    conserve.instrument()
    tracer = trace.get_tracer("t")
    with conserve.conversation("outer"), conserve.conversation("inner"):
        tracer.start_span("step").end()
    tracer.start_span("after").end()
    step, after = spans.all()
    assert stamped(step) == ("inner", "inner")
    assert (step.attributes or {})["conserve.conversation.parent_id"] == "outer"
    assert stamped(after) == (None, None)


def test_instrumenting_twice_changes_nothing(spans: Spans, model: FakeModel) -> None:
    conserve.instrument()
    conserve.instrument()
    client = conserve.wrap(model.client())
    with conserve.conversation():
        client.chat.completions.create(model="m", messages=[])
    assert len(spans.all()) == 1


# -- LangGraph ---------------------------------------------------------------------------


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


@langchain_tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def agent(
    model: FakeModel, *, streaming: bool = False, tool: BaseTool = add
) -> CompiledStateGraph[Any, Any, Any, Any]:
    llm = ChatOpenAI(
        model="m",
        base_url="http://127.0.0.1:9/v1",
        api_key="key",  # type: ignore[arg-type]
        streaming=streaming,
        http_client=model.http(),
        http_async_client=model.async_http(),
    )
    bound = conserve.wrap(llm).bind_tools([tool])

    def think(state: State) -> dict[str, Any]:
        return {"messages": [bound.invoke(state["messages"])]}

    async def think_async(state: State) -> dict[str, Any]:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    graph = StateGraph(State)
    graph.add_node("model", RunnableLambda(think, afunc=think_async))
    graph.add_node("tools", ToolNode([tool]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition, {"tools": "tools", END: END})
    graph.add_edge("tools", "model")
    return graph.compile()


QUESTION: Any = {"messages": [("user", "1 + 2?")]}


def assert_one_clean_tree(spans: Spans, model: FakeModel) -> None:
    names = sorted(span.name for span in spans.all())
    assert names == ["chat m", "chat m", "execute_tool add", "invoke_workflow LangGraph"]
    (root,) = [span for span in spans.all() if span.parent is None]
    assert root.name == "invoke_workflow LangGraph"
    for span in spans.all():
        assert span is root or (span.parent and format(span.parent.span_id, "016x")) == span_id(root)
        assert stamped(span) == ("c-1", "c-1"), span.name
    assert parents_on_the_wire(model) == [span_id(span) for span in spans.named("chat")]
    assert model.ids() == ["c-1", "c-1"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_langgraph_run_in_a_conversation_is_one_clean_tree(
    spans: Spans, model: FakeModel, streaming: bool
) -> None:
    conserve.instrument()
    graph = agent(model, streaming=streaming)
    with conserve.conversation("c-1") as conversation:
        graph.invoke(QUESTION, conversation.langgraph_config())
    assert_one_clean_tree(spans, model)


async def test_an_async_langgraph_run_is_one_clean_tree(spans: Spans, model: FakeModel) -> None:
    conserve.instrument()
    async with conserve.conversation("c-1"):
        await agent(model).ainvoke(QUESTION)
    assert_one_clean_tree(spans, model)


def test_a_thread_id_alone_is_the_conversation(spans: Spans, model: FakeModel) -> None:
    conserve.instrument()
    agent(model).invoke(QUESTION, {"configurable": {"thread_id": "c-1"}})
    assert_one_clean_tree(spans, model)


def test_a_model_call_in_a_graphs_tool_carries_the_conversation_or_its_child(
    spans: Spans, model: FakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    conserve.instrument()
    client = conserve.wrap(model.client())

    @langchain_tool("add")
    def ask(a: int, b: int) -> int:
        """Ask another model."""
        client.chat.completions.create(model="m", messages=[])
        with conserve.conversation("child"):
            client.chat.completions.create(model="m", messages=[])
        return a + b

    with conserve.conversation("c-1") as conversation:
        agent(model, tool=ask).invoke(QUESTION, conversation.langgraph_config())
    assert model.ids() == ["c-1", "c-1", "child", "c-1"]
    assert model.requests[2].headers[protocol.PARENT_ID] == "c-1"
    (tool,) = spans.named("execute_tool")
    below = [
        span for span in spans.named("chat") if span.parent and span.parent.span_id == int(span_id(tool), 16)
    ]
    assert [stamped(span)[1] for span in below] == ["c-1", "child"]
    assert caplog.records == []  # the child is no mismatch with the graph's thread


def test_a_thread_named_otherwise_is_warned_of_once(
    model: FakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    graph = agent(model)
    with conserve.conversation("c-1"):
        graph.invoke(QUESTION, {"configurable": {"thread_id": "t-1"}})
    assert model.ids() == ["c-1", "c-1"]
    (warning,) = [record for record in caplog.records if record.name == "conserve_sdk"]
    assert "langgraph_config()" in warning.getMessage()


# -- a process of its own ----------------------------------------------------------------

_AGENT = """
import httpx2
import conserve_sdk as conserve
from openai import OpenAI
path = conserve.instrument("my agent")
answer = httpx2.MockTransport(lambda request: httpx2.Response(200, json={"choices": []}))
client = OpenAI(base_url="http://127.0.0.1:9/v1", api_key="k", http_client=httpx2.Client(transport=answer))
with conserve.conversation("c-1") as conversation, conversation.tool("search"):
    conserve.wrap(client).chat.completions.create(model="m", messages=[])
print(path)
"""


def run_agent(folder: Path, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", _AGENT],
        env={"CONSERVE_TRACE_DIR": str(folder), **environment},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.strip()


@pytest.mark.slow
def test_without_a_collector_spans_go_to_a_local_file(tmp_path: Path) -> None:
    printed = run_agent(tmp_path / "traces")
    (file,) = (tmp_path / "traces").iterdir()
    assert str(file) == printed
    assert file.name.startswith("my_agent-")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    written = [
        span for line in lines for r in line["resourceSpans"] for s in r["scopeSpans"] for span in s["spans"]
    ]
    assert [span["name"] for span in written] == ["chat m", "execute_tool search"]
    for span in written:
        values = {a["key"]: a["value"].get("stringValue") for a in span["attributes"]}
        assert values[CONVERSATION] == values["session.id"] == "c-1"


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["OTEL_SDK_DISABLED", "CONSERVE_DISABLED"])
def test_switched_off_nothing_is_written(tmp_path: Path, variable: str) -> None:
    assert run_agent(tmp_path / "traces", **{variable: "true"}) == "None"
    assert not (tmp_path / "traces").exists()


@pytest.mark.slow
def test_with_a_collector_spans_go_there(tmp_path: Path, loopback: LoopbackGateway) -> None:
    assert run_agent(tmp_path / "traces", OTEL_EXPORTER_OTLP_ENDPOINT=loopback.root) == "None"
    assert ("POST", "/v1/traces", None) in loopback.calls
    assert not (tmp_path / "traces").exists()


def test_the_trace_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    monkeypatch.delenv("CONSERVE_TRACE_DIR", raising=False)
    assert str(protocol.trace_dir()) == "/state/conserve/traces"
    monkeypatch.setenv("CONSERVE_TRACE_DIR", "/elsewhere")
    assert str(protocol.trace_dir()) == "/elsewhere"
