"""Tool boundaries: what is told, in which order, and that nothing else changes."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import conserve_sdk as conserve
from conserve_sdk._link import HELD_EVENTS

if TYPE_CHECKING:
    from openai import OpenAI

    from tests.sdk.conftest import FakeControl, FakeModel


@pytest.fixture
def client(model: FakeModel) -> OpenAI:
    return conserve.wrap(model.client())


def ask(client: OpenAI) -> None:
    client.chat.completions.create(model="m", messages=[])


def test_a_tool_call_is_a_start_and_an_end(client: OpenAI, control: FakeControl) -> None:
    with conserve.conversation("c-1") as conversation:
        ask(client)
        with conversation.tool("search", call_id="call_1") as call:
            pass
    start, end = control.events()
    assert (start["kind"], start["call_id"], start["name"]) == ("start", "call_1", "search")
    assert (end["kind"], end["call_id"], end["outcome"]) == ("end", "call_1", "completed")
    assert end["duration_s"] == call.duration_s
    assert min(start["elapsed_s"], end["elapsed_s"]) >= 0
    assert start["duration_s"] is None
    assert {path for method, path, _ in control.calls if method == "POST"} == {"/v1/conversations/c-1/events"}


def test_the_release_comes_after_the_events(client: OpenAI, control: FakeControl) -> None:
    with conserve.conversation() as conversation:
        ask(client)
        with conversation.tool("search"):
            pass
    assert control.calls[-1][0] == "DELETE"
    assert len(control.events()) == 2


@pytest.mark.parametrize(
    ("raised", "outcome"),
    [
        (ValueError("bad"), "failed"),
        (asyncio.CancelledError(), "cancelled"),
        (KeyboardInterrupt(), "cancelled"),
    ],
)
def test_exceptions_pass_unchanged_and_tell_the_outcome(
    client: OpenAI, control: FakeControl, raised: BaseException, outcome: str
) -> None:
    with conserve.conversation() as conversation:
        ask(client)
        with pytest.raises(type(raised)) as caught, conversation.tool("search"):
            raise raised
    assert caught.value is raised
    assert control.events()[-1]["outcome"] == outcome


async def test_a_cancelled_async_tool_ends_as_cancelled(client: OpenAI, control: FakeControl) -> None:
    running = asyncio.Event()

    @conserve.tool
    async def search() -> None:
        running.set()
        await asyncio.Event().wait()

    async with conserve.conversation():
        ask(client)
        task = asyncio.create_task(search())
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [event["outcome"] for event in control.events()] == [None, "cancelled"]


def test_parallel_tools_are_told_apart(client: OpenAI, control: FakeControl) -> None:
    with conserve.conversation() as conversation, ThreadPoolExecutor(4) as pool:
        ask(client)

        def run(n: int) -> None:
            with conversation.tool("search", call_id=str(n)):
                pass

        list(pool.map(run, range(20)))
    for n in range(20):
        kinds = [event["kind"] for event in control.events() if event["call_id"] == str(n)]
        assert kinds == ["start", "end"]


def test_boundaries_before_the_first_request_are_held_for_it(client: OpenAI, control: FakeControl) -> None:
    with conserve.conversation() as conversation:
        with conversation.tool("search", call_id="early"):
            pass
        assert control.events() == []
        ask(client)
        with conversation.tool("search", call_id="late"):
            pass
    assert [event["call_id"] for event in control.events()] == ["early", "early", "late", "late"]


def test_what_is_held_is_bounded(client: OpenAI, control: FakeControl) -> None:
    with conserve.conversation() as conversation:
        for n in range(HELD_EVENTS):
            with conversation.tool("search", call_id=str(n)):
                pass
        ask(client)
    assert len(control.events()) == HELD_EVENTS
    assert control.events()[-1]["call_id"] == str(HELD_EVENTS - 1)


def test_an_end_after_the_block_is_still_told(client: OpenAI, control: FakeControl) -> None:
    with conserve.conversation() as conversation:
        ask(client)
        call = conversation.tool("search").__enter__()
    call.__exit__(None, None, None)
    with conversation:
        pass
    assert [event["kind"] for event in control.events()] == ["start", "end"]


def test_decorated_functions_are_tools_of_the_conversation_that_calls_them(
    client: OpenAI, control: FakeControl
) -> None:
    @conserve.tool
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    @conserve.tool("subtraction")
    def subtract(a: int, b: int) -> int:
        return a - b

    assert add(1, 2) == 3
    with conserve.conversation():
        ask(client)
        assert [add(1, b=2), subtract(3, 1)] == [3, 2]
    assert [event["name"] for event in control.events()] == ["add", "add", "subtraction", "subtraction"]
    assert add.__doc__ == "Add."
    assert list(inspect.signature(add).parameters) == ["a", "b"]


async def test_decorated_coroutine_functions_stay_so(client: OpenAI, control: FakeControl) -> None:
    @conserve.tool
    async def add(a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    assert inspect.iscoroutinefunction(add)
    assert await add(1, 2) == 3
    async with conserve.conversation():
        ask(client)
        assert list(await asyncio.gather(add(1, 2), add(3, 4))) == [3, 7]
    events = control.events()
    assert sorted(event["kind"] for event in events) == ["end", "end", "start", "start"]
    assert len({event["call_id"] for event in events}) == 2


def test_generator_functions_are_refused_with_the_way_out() -> None:
    def answers() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match=r"conversation\.tool\(\)"):
        conserve.tool(answers)


def test_a_call_that_is_ended_twice_is_told_once(client: OpenAI, control: FakeControl) -> None:
    with conserve.conversation() as conversation:
        client.chat.completions.create(model="m", messages=[])
        call = conversation.tool("search")
        with call:
            pass
        call.__exit__(ValueError, ValueError(), None)  # a watcher that comes late
    assert call.outcome is conserve.Outcome.COMPLETED
    assert [event["kind"] for event in control.events()] == ["start", "end"]
