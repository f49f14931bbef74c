"""A branch that the application opens itself: `conversation.branch(name)`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

import conserve_sdk as conserve
from conserve_sdk import protocol

if TYPE_CHECKING:
    from openai import OpenAI

    from tests.sdk.conftest import FakeControl, FakeModel


def ask(client: OpenAI) -> None:
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])


def sent(model: FakeModel) -> list[tuple[str | None, str | None]]:
    """The branch and the agent of each model call."""
    return [(r.headers.get(protocol.BRANCH), r.headers.get(protocol.AGENT)) for r in model.requests]


def test_calls_inside_are_the_branchs_and_those_outside_the_conversations(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    with conserve.conversation("c", agent="lead") as conversation:
        ask(client)
        for _ in range(2):
            with conversation.branch("helper") as inside:
                assert inside is conversation
                assert conserve.current_conversation() is conversation
                ask(client)
        ask(client)
    assert model.ids() == ["c"] * 4
    assert sent(model) == [(None, "lead"), ("helper", "helper"), ("helper", "helper"), (None, "lead")]


def test_a_branch_inside_a_branch_is_another_one(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    with conserve.conversation("c") as conversation:
        with conversation.branch("team"), conversation.branch("helper"):
            ask(client)
        with conversation.branch("helper"):
            ask(client)
    assert [branch for branch, _ in sent(model)] == ["team|helper", "helper"]


def test_a_conversation_inside_a_branch_is_a_child_of_its_own(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    with conserve.conversation("c") as outer, outer.branch("team"), conserve.conversation("d") as inner:
        ask(client)
    assert (inner.parent_id, model.ids(), sent(model)) == ("c", ["d"], [(None, None)])


def test_the_conversation_is_released_once_at_its_own_end(model: FakeModel, control: FakeControl) -> None:
    client = conserve.wrap(model.client())
    with conserve.conversation("c") as conversation, conversation.branch("helper"):
        ask(client)
    with conserve.conversation("d") as other:
        with other.branch("helper"):
            ask(client)
        with pytest.raises(RuntimeError, match="oh"), other.branch("helper"):
            raise RuntimeError("oh")
    released = [path for method, path, _ in control.calls if method == "DELETE"]
    assert released == ["/v1/conversations/c", "/v1/conversations/d"]
    assert conserve.current_conversation() is None


async def test_tasks_in_branches_of_their_own_are_kept_apart(model: FakeModel) -> None:
    client = conserve.wrap(model.async_client())
    both = asyncio.Barrier(2)

    async def work(conversation: conserve.Conversation, name: str) -> None:
        with conversation.branch(name):
            await both.wait()
            await client.chat.completions.create(model="m", messages=[])

    async with conserve.conversation("c") as conversation:
        await asyncio.gather(work(conversation, "left"), work(conversation, "right"))
        await client.chat.completions.create(model="m", messages=[])
    assert sorted(str(branch) for branch, _ in sent(model)) == ["None", "left", "right"]


def test_a_name_that_no_header_can_carry_is_refused() -> None:
    with conserve.conversation("c") as conversation, pytest.raises(ValueError, match="name="):
        conversation.branch("\n").__enter__()
