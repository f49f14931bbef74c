"""The life of a conversation: entering, nesting, leaving, release and report."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest

import conserve_sdk as conserve
from conserve_sdk import protocol

if TYPE_CHECKING:
    from tests.sdk.conftest import FakeControl, FakeModel, LoopbackGateway


def ask_in(model: FakeModel, conversation: conserve.Conversation) -> None:
    client = conserve.wrap(model.client())
    with conversation:
        client.chat.completions.create(model="m", messages=[])


def test_a_conversation_is_current_in_its_block_only() -> None:
    assert conserve.current_conversation() is None
    with conserve.conversation() as conversation:
        assert conserve.current_conversation() is conversation
    assert conserve.current_conversation() is None


def test_ids_are_made_up_unless_given_and_cleaned_where_given() -> None:
    assert conserve.conversation().id != conserve.conversation().id
    assert conserve.conversation(" ticket 7\n").id == "ticket 7"


@pytest.mark.parametrize("given", ["", "  ", "\u200e"])
def test_an_id_that_cleans_to_nothing_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="id="):
        conserve.conversation(given)
    with pytest.raises(ValueError, match="parent="):
        conserve.conversation("c", parent=given)


def test_the_parent_is_the_one_around_unless_named() -> None:
    with conserve.conversation("outer") as outer:
        assert conserve.conversation().parent_id == "outer"
        assert conserve.conversation(parent="other").parent_id == "other"
    assert conserve.conversation().parent_id is None
    assert conserve.conversation(parent=outer).parent_id == "outer"


def test_an_exception_passes_unchanged_and_the_one_around_is_restored() -> None:
    error = RuntimeError("the user's own")
    with conserve.conversation() as outer:
        with pytest.raises(RuntimeError) as caught, conserve.conversation():
            raise error
        assert caught.value is error
        assert conserve.current_conversation() is outer


def test_one_object_may_be_entered_again() -> None:
    conversation = conserve.conversation("c-1")
    with conversation, conversation:
        assert conserve.current_conversation() is conversation
    with conversation:
        assert conserve.current_conversation() is conversation
    assert conserve.current_conversation() is None


async def test_an_async_generator_closed_from_another_task_raises_nothing_and_leaks_nothing() -> None:
    async def answers() -> AsyncIterator[int]:
        async with conserve.conversation("c-1") as conversation:
            with conversation.tool("search"):
                yield 1
                yield 2

    generator = answers()
    assert await anext(generator) == 1
    assert conserve.current_conversation() is not None  # the block is open, in this task
    await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]
    assert conserve.current_conversation() is None


def test_a_generator_dropped_inside_another_conversation_does_not_end_that_one() -> None:
    def answers() -> Iterator[int]:
        with conserve.conversation("inner"):
            yield 1

    generator = answers()
    next(generator)
    with conserve.conversation("outer") as outer:
        del generator
        gc.collect()
        assert conserve.current_conversation() is outer
    assert conserve.current_conversation() is None


async def test_a_task_that_outlives_the_block_is_untagged_afterwards() -> None:
    ended = asyncio.Event()

    async def linger() -> conserve.Conversation | None:
        await ended.wait()
        return conserve.current_conversation()

    async with conserve.conversation():
        task = asyncio.create_task(linger())
    ended.set()
    assert await task is None


def test_the_end_releases_the_conversation_where_it_was_seen(model: FakeModel, control: FakeControl) -> None:
    ask_in(model, conserve.conversation("a/b"))
    assert control.calls == [("DELETE", protocol.conversation_path("a/b").replace("%2F", "/"), None)]
    assert control.requests[0].url.raw_path == b"/v1/conversations/a%2Fb"
    assert control.requests[0].headers["authorization"] == "Bearer key"


def test_a_gateway_below_a_path_is_found_there(model: FakeModel, control: FakeControl) -> None:
    client = conserve.wrap(model.client("http://127.0.0.1:9/team/v1"))
    with conserve.conversation("c-1"):
        client.chat.completions.create(model="m", messages=[])
    assert control.calls == [("DELETE", "/team/v1/conversations/c-1", None)]


def test_one_that_no_gateway_saw_is_not_released(control: FakeControl) -> None:
    with conserve.conversation():
        pass
    assert control.calls == []


def test_keep_open_leaves_it_for_a_later_process(model: FakeModel, control: FakeControl) -> None:
    ask_in(model, conserve.conversation("c-1", keep_open=True))
    assert control.calls == []
    ask_in(model, conserve.conversation("c-1"))
    assert [call[0] for call in control.calls] == ["DELETE"]
    assert model.ids() == ["c-1", "c-1"]


def test_a_block_without_requests_releases_nothing_again(model: FakeModel, control: FakeControl) -> None:
    conversation = conserve.conversation("c-1")
    ask_in(model, conversation)
    with conversation:
        pass
    ask_in(model, conversation)
    assert [call[0] for call in control.calls] == ["DELETE", "DELETE"]


def test_an_inner_block_of_the_same_conversation_does_not_release_it(
    model: FakeModel, control: FakeControl
) -> None:
    with conserve.conversation("c-1"):
        ask_in(model, conserve.conversation("c-1"))
        assert conserve.conversation("c-1").parent_id is None
    assert control.calls == []


async def test_async_blocks_release_too(model: FakeModel, control: FakeControl) -> None:
    client = conserve.wrap(model.async_client())
    async with conserve.conversation("c-1"):
        await client.chat.completions.create(model="m", messages=[])
    assert [call[0] for call in control.calls] == ["DELETE"]


async def test_one_conversation_shared_by_tasks_is_released_once(
    model: FakeModel, control: FakeControl
) -> None:
    client = conserve.wrap(model.async_client())
    conversation = conserve.conversation("c-1")
    inside = asyncio.Barrier(3)

    async def branch() -> None:
        async with conversation:
            await client.chat.completions.create(model="m", messages=[])
            await inside.wait()

    await asyncio.gather(*(branch() for _ in range(3)))
    assert [call[0] for call in control.calls] == ["DELETE"]


def test_the_report_is_there_after_the_block(loopback: LoopbackGateway, model: FakeModel) -> None:
    loopback.report = protocol.ConversationReport("c-1", "ended", decoder="d0", kv_transfers=1)
    client = conserve.wrap(model.client(f"{loopback.root}/v1"))
    with conserve.conversation("c-1") as conversation:
        client.chat.completions.create(model="m", messages=[])
        with conversation.tool("search"):
            pass
    assert conversation.report() == loopback.report
    methods = [method for method, _, _ in loopback.calls]
    assert methods[-1] == "GET"
    assert methods.index("DELETE") > methods.index("POST")
    assert loopback.authorizations == {"Bearer key"}


async def test_the_report_has_an_async_form(loopback: LoopbackGateway, model: FakeModel) -> None:
    client = conserve.wrap(model.async_client(f"{loopback.root}/v1"))
    async with conserve.conversation("c") as conversation:
        await client.chat.completions.create(model="m", messages=[])
        assert await conversation.areport() == loopback.report


def test_a_report_is_asked_for_again_when_the_gateway_is_starting(
    loopback: LoopbackGateway, model: FakeModel
) -> None:
    client = conserve.wrap(model.client(f"{loopback.root}/v1"))
    with conserve.conversation("c", keep_open=True) as conversation:
        client.chat.completions.create(model="m", messages=[])
    loopback.statuses = [503, 502]
    assert conversation.report() == loopback.report


def test_no_gateway_no_report() -> None:
    with conserve.conversation("c-1") as conversation, pytest.raises(conserve.NoGatewaySeen, match="wrap"):
        conversation.report()


def test_a_report_that_is_refused_says_so(loopback: LoopbackGateway, model: FakeModel) -> None:
    client = conserve.wrap(model.client(f"{loopback.root}/v1"))
    with conserve.conversation("c-1", keep_open=True) as conversation:
        client.chat.completions.create(model="m", messages=[])
    loopback.statuses = [404]
    with pytest.raises(conserve.GatewayRefused, match="knows no conversation") as caught:
        conversation.report()
    assert caught.value.status == 404


async def test_a_gateway_that_is_gone_is_an_error_for_reports_alone(model: FakeModel) -> None:
    client = conserve.wrap(model.client())  # the model answers, nothing listens for control calls
    with conserve.conversation("c-1") as conversation:
        client.chat.completions.create(model="m", messages=[])
    with pytest.raises(conserve.GatewayUnreachable, match=r"127\.0\.0\.1:9"):
        conversation.report()
    with pytest.raises(conserve.GatewayUnreachable):
        await conversation.areport()


def test_the_langgraph_thread_is_the_conversation() -> None:
    assert conserve.conversation("c-1").langgraph_config() == {"configurable": {"thread_id": "c-1"}}
