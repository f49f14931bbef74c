"""`@conversation(...)`: a conversation around each call, whatever kind of function is decorated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterator

import pytest

import conserve_sdk as conserve
from tests.sdk.conftest import FakeControl, FakeModel


def current_id() -> str | None:
    conversation = conserve.current_conversation()
    return conversation.id if conversation else None


def test_each_call_is_a_conversation_of_its_own() -> None:
    @conserve.conversation(agent="researcher")
    def agent(question: str) -> tuple[str, str | None]:
        return question, current_id()

    (first, one), (second, other) = agent("ferry?"), agent(question="lighthouse?")
    assert (first, second) == ("ferry?", "lighthouse?")
    assert None not in (one, other)
    assert one != other
    assert agent.__name__ == "agent"
    assert current_id() is None


def test_a_given_id_is_gone_on_with_and_a_call_inside_another_is_its_child() -> None:
    @conserve.conversation("ticket-1")
    def named() -> conserve.Conversation | None:
        return conserve.current_conversation()

    @conserve.conversation()
    def child() -> str | None:
        conversation = conserve.current_conversation()
        return conversation.parent_id if conversation else None

    first, second = named(), named()
    assert first is not None
    assert second is not None
    assert (first.id, second.id) == ("ticket-1", "ticket-1")
    with conserve.conversation("outer"):
        assert child() == "outer"
    assert child() is None


async def test_a_coroutine_function_stays_one() -> None:
    @conserve.conversation(agent="a")
    async def agent() -> str | None:
        await asyncio.sleep(0)
        return current_id()

    one, other = await asyncio.gather(agent(), agent())
    assert None not in (one, other)
    assert one != other


def test_a_generators_conversation_is_current_in_its_body_alone() -> None:
    @conserve.conversation("inside")
    def agent() -> Iterator[str | None]:
        yield current_id()
        yield current_id()

    with conserve.conversation("outside"):
        seen = [(item, current_id()) for item in agent()]
    assert seen == [("inside", "outside")] * 2


def test_a_generator_that_is_dropped_ends_its_conversation(model: FakeModel, control: FakeControl) -> None:
    client = conserve.wrap(model.client())

    @conserve.conversation("c-1")
    def agent() -> Iterator[str]:
        client.chat.completions.create(model="m", messages=[])
        yield "one"
        yield "two"

    for _ in agent():
        break
    assert [call[:2] for call in control.calls] == [("DELETE", "/v1/conversations/c-1")]


def test_what_is_sent_and_thrown_reaches_the_generator_and_its_value_comes_back() -> None:
    @conserve.conversation("c-1")
    def agent() -> Generator[str, int, str]:
        got = yield "first"
        try:
            yield str(got)
        except ValueError as error:
            yield f"{error} in {current_id()}"
        return "done"

    steps = agent()
    assert next(steps) == "first"
    assert steps.send(7) == "7"
    assert steps.throw(ValueError("no")) == "no in c-1"
    with pytest.raises(StopIteration) as stopped:
        next(steps)
    assert stopped.value.value == "done"


def test_a_block_that_a_generator_holds_open_is_found_again_after_a_yield() -> None:
    @conserve.conversation("outer")
    def agent() -> Iterator[str | None]:
        with conserve.conversation("inner"):
            yield current_id()
            yield current_id()
        yield current_id()

    seen = [(item, current_id()) for item in agent()]
    assert seen == [("inner", None), ("inner", None), ("outer", None)]


async def test_an_async_generators_conversation_is_current_in_its_body_alone() -> None:
    @conserve.conversation("inside")
    async def agent() -> AsyncIterator[str | None]:
        yield current_id()
        await asyncio.sleep(0)
        yield current_id()

    async with conserve.conversation("outside"):
        seen = [(item, current_id()) async for item in agent()]
    assert seen == [("inside", "outside")] * 2


async def test_an_async_generator_closed_from_another_task_ends_its_conversation_and_raises_nothing(
    model: FakeModel, control: FakeControl
) -> None:
    client = conserve.wrap(model.async_client())

    @conserve.conversation("c-1")
    async def agent() -> AsyncIterator[str]:
        await client.chat.completions.create(model="m", messages=[])
        yield "one"
        yield "two"

    stream = agent()
    assert await anext(stream) == "one"
    await asyncio.create_task(stream.aclose())  # type: ignore[attr-defined]
    assert [call[:2] for call in control.calls] == [("DELETE", "/v1/conversations/c-1")]
    assert current_id() is None


async def test_two_async_generators_that_alternate_keep_their_conversations() -> None:
    @conserve.conversation()
    async def agent() -> AsyncIterator[str | None]:
        for _ in range(2):
            yield current_id()

    left, right = agent(), agent()
    seen = [await anext(left), await anext(right), await anext(left), await anext(right)]
    assert seen[0] == seen[2] != seen[1] == seen[3]
