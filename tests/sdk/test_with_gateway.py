"""The SDK and the gateway together: real clients, a real gateway, emulated engines, one loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from openai import AsyncOpenAI, OpenAI
from opentelemetry.sdk.trace import ReadableSpan

import conserve_sdk as conserve
from conserve_sdk import Outcome, _conversation
from tests.gateway.conftest import MODEL, Served, served

if TYPE_CHECKING:
    from conserve_sdk._delivery import Delivery
    from tests.sdk.conftest import Spans

MESSAGES: Any = [{"role": "user", "content": "the ferry sails fourteen times a day " * 12}]


@pytest.fixture(autouse=True)
def _delivered(
    control: object, monkeypatch: pytest.MonkeyPatch, make_delivery: Callable[..., Delivery]
) -> None:
    """Control calls go over the network."""
    delivery = make_delivery()
    monkeypatch.setattr(_conversation, "process_delivery", lambda: delivery)


@pytest.fixture
async def gateway() -> AsyncIterator[Served]:
    async with served() as found:
        yield found


@pytest.fixture
async def client(gateway: Served) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="-", max_retries=0) as client:
        yield conserve.wrap(client)


async def ask(client: AsyncOpenAI) -> None:
    await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=4)


async def test_a_conversation_arrives_with_its_agent(gateway: Served, client: AsyncOpenAI) -> None:
    async with conserve.conversation("c-1", agent="researcher"):
        await ask(client)
        await ask(client)
    report = await gateway.report("c-1")
    assert (report["agent"], report["synthetic"], report["kv_transfers"]) == ("researcher", False, 1)
    turns: Any = report["turns"]
    assert [turn["path"] for turn in turns] == ["remote-prefill", "pinned"]


async def test_a_call_outside_of_a_block_is_no_part_of_it(gateway: Served, client: AsyncOpenAI) -> None:
    async with conserve.conversation("c-1") as conversation:
        await ask(client)
    await ask(client)
    assert len((await conversation.areport()).turns) == 1


async def test_tools_are_reported_with_durations_and_outcomes(client: AsyncOpenAI) -> None:
    async with conserve.conversation() as conversation:
        with conversation.tool("before the first call", call_id="call_0"):
            pass
        await ask(client)
        async with conversation.tool("search", call_id="call_1") as search:
            await asyncio.sleep(0)
        with pytest.raises(ZeroDivisionError), conversation.tool("divide", call_id="call_2"):
            _ = 1 / 0
        report = await conversation.areport()
    assert [(tool.call_id, tool.name, tool.outcome) for tool in report.tools] == [
        ("call_0", "before the first call", Outcome.COMPLETED),
        ("call_1", "search", Outcome.COMPLETED),
        ("call_2", "divide", Outcome.FAILED),
    ]
    assert report.tools[1].duration_s == search.duration_s


async def test_an_open_tool_has_no_duration_yet(client: AsyncOpenAI) -> None:
    async with conserve.conversation() as conversation:
        await ask(client)
        with conversation.tool("search", call_id="call_1"):
            (tool,) = (await conversation.areport()).tools
    assert (tool.duration_s, tool.outcome) == (None, None)


async def test_the_blocks_end_frees_what_the_conversation_held(client: AsyncOpenAI) -> None:
    async with conserve.conversation() as conversation:
        await ask(client)
        during = await conversation.areport()
    after = await conversation.areport()
    assert (during.state, during.decoder) == ("tool-gap", "decode-0")
    assert during.reserved_kv_tokens > 0
    assert (after.state, after.reserved_kv_tokens) == ("ended", 0)
    assert len(after.turns) == 1


async def test_one_that_is_kept_open_stays_on_its_decoder(client: AsyncOpenAI) -> None:
    async with conserve.conversation("c-1", keep_open=True):
        await ask(client)
    async with conserve.conversation("c-1") as again:
        await ask(client)
    report = await again.areport()
    assert [turn.path for turn in report.turns] == ["remote-prefill", "pinned"]
    assert report.state == "ended"


async def test_a_nested_conversation_names_its_parent(gateway: Served, client: AsyncOpenAI) -> None:
    async with conserve.conversation("outer"):
        await ask(client)
        async with conserve.conversation("inner") as inner:
            await ask(client)
        assert (await inner.areport()).parent_id == "outer"
        assert (await gateway.report("outer"))["state"] == "tool-gap"
    assert (await gateway.report("outer"))["parent_id"] is None


async def test_concurrent_conversations_do_not_mix(client: AsyncOpenAI) -> None:
    async def converse(turns: int) -> int:
        async with conserve.conversation() as conversation:
            for _ in range(turns):
                await ask(client)
            return len((await conversation.areport()).turns)

    assert await asyncio.gather(*map(converse, (1, 2, 3, 4))) == [1, 2, 3, 4]


async def test_the_sync_client_works_alike_in_a_thread(gateway: Served) -> None:
    def converse() -> tuple[conserve.ConversationReport, conserve.ConversationReport]:
        with OpenAI(base_url=f"{gateway.url}/v1", api_key="-", max_retries=0) as client:
            conserve.wrap(client)
            with conserve.conversation() as conversation:
                client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=4)
                with conversation.tool("search"):
                    pass
                during = conversation.report()
            return during, conversation.report()

    during, after = await asyncio.to_thread(converse)
    assert (during.state, during.tools[0].outcome) == ("tool-gap", Outcome.COMPLETED)
    assert (after.state, after.reserved_kv_tokens) == ("ended", 0)


async def test_each_gateway_is_told_of_the_end_and_one_that_forgot_the_conversation_says_so(
    gateway: Served, client: AsyncOpenAI
) -> None:
    async with served(ended_kept=0) as forgetful:
        other = client.with_options(base_url=f"{forgetful.url}/v1")
        async with conserve.conversation("c-1") as conversation:
            await ask(client)
            await ask(conserve.wrap(other))
        with pytest.raises(conserve.GatewayRefused, match="knows no conversation c-1"):
            await conversation.areport()
    assert (await gateway.report("c-1"))["state"] == "ended"


# -- traces ------------------------------------------------------------------------------


def named(spans: list[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name == name]


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    assert span.parent is not None
    assert parent.context is not None
    return (span.parent.trace_id, span.parent.span_id) == (parent.context.trace_id, parent.context.span_id)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_gateways_turn_is_a_child_of_the_chat_span(
    gateway: Served, client: AsyncOpenAI, spans: Spans, stream: bool
) -> None:
    conserve.instrument()
    async with conserve.conversation("c-1") as conversation:
        for _ in range(2):
            answer: Any = await client.chat.completions.create(
                model=MODEL, messages=MESSAGES, max_tokens=4, stream=stream
            )
            if stream:
                assert [chunk async for chunk in answer]
        await conversation.areport()
    chats, turns = spans.named("chat"), named(gateway.spans, "conserve.turn")
    assert len(chats) == len(turns) == 2
    assert all(is_child(turn, chat) for turn, chat in zip(turns, chats, strict=True))
    assert {(span.attributes or {})["gen_ai.conversation.id"] for span in (*chats, *turns)} == {"c-1"}


# -- as it happens -----------------------------------------------------------------------


async def test_a_conversation_can_be_followed_to_its_end(client: AsyncOpenAI) -> None:
    async def watch(conversation: conserve.Conversation) -> list[conserve.ConversationUpdate]:
        return [change async for change in conversation.afollow()]

    async with conserve.conversation("c-1") as conversation:
        await ask(client)
        watching = asyncio.create_task(watch(conversation))
        await ask(client)
    async with asyncio.timeout(10):
        changes = await watching
    assert {change.report.id for change in changes} == {"c-1"}
    assert changes[-1].report.state == "ended"
    assert [turn.index for change in changes for turn in change.report.turns] == [1, 2]


async def test_it_can_be_followed_from_a_thread_too(client: AsyncOpenAI) -> None:
    async with conserve.conversation("c-1") as conversation:
        await ask(client)
        watching = asyncio.create_task(asyncio.to_thread(lambda: list(conversation.follow())))
    async with asyncio.timeout(10):
        changes = await watching
    assert changes[-1].report.state == "ended"


async def test_what_tells_no_events_is_an_error_that_says_so(client: AsyncOpenAI) -> None:
    with pytest.raises(conserve.NoGatewaySeen):
        conserve.conversation().afollow()


# -- LangGraph ---------------------------------------------------------------------------


async def test_a_langgraph_thread_alone_is_the_conversation(gateway: Served) -> None:
    async with httpx2.AsyncClient() as http:
        llm = conserve.wrap(
            ChatOpenAI(
                model=MODEL,
                base_url=f"{gateway.url}/v1",
                api_key=lambda: "-",
                http_async_client=http,
                max_completion_tokens=4,
            )
        )

        async def think(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await llm.ainvoke(state["messages"])]}

        graph = StateGraph(MessagesState).add_node("think", think).add_edge(START, "think").compile()
        config: Any = {"configurable": {"thread_id": "thread-7"}}
        for question in ("where is the ferry?", "and when?"):
            await graph.ainvoke({"messages": [HumanMessage(question)]}, config)
    report = await gateway.report("thread-7")
    turns: Any = report["turns"]
    assert (report["synthetic"], len(turns), report["kv_transfers"]) == (False, 2, 1)
