"""Whatever raises, at whatever call: what a turn has begun ends, and its client is told or has its answer."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conserve_server.serving.records.record import ConversationRecord

from .faults import Faults
from .turn_fakes import Asked, Client, End
from .turn_world import World

POLICIES = ("conserve", "full_disaggregation", "collocated")
MOST_CALLS = 120
"""More calls than most runs of a few turns make: at such a number nothing fails."""

TURNS = st.builds(Asked, st.sampled_from(["a", "a", "b", None]), st.sampled_from(End), st.booleans())
ALL_ENDS = [Asked("a"), *(Asked("b", end, is_streamed) for end in End for is_streamed in (True, False))]


async def run(
    policy: str, faults: Faults, turns: list[Asked], *, at_once: bool
) -> tuple[World, list[Client]]:
    world = World(policy, faults)
    if at_once:
        clients = [*await asyncio.gather(*(world.ask(turn) for turn in turns))]
    else:
        clients = [await world.ask(turn) for turn in turns]
    return world, clients


def check_told(client: Client) -> None:
    """The client has an answer with an end, its own or an error's, if it was there to hear it."""
    if client.was_cancelled or client.asked.end is End.STALLED:
        return
    assert client.is_whole, client
    if client.status != 200:
        assert set(json.loads(client.body)["error"]) >= {"message", "type", "code"}
    elif client.asked.is_streamed:
        last = client.body.rstrip().rpartition(b"data: ")[2]
        assert last == b"[DONE]" or "error" in json.loads(last)
    else:
        assert json.loads(client.body)["choices"]


@settings(max_examples=300, deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    turns=st.lists(TURNS, min_size=1, max_size=4),
    at=st.integers(0, MOST_CALLS),
    is_after=st.booleans(),
    lasts=st.booleans(),
    at_once=st.booleans(),
)
@example(policy="conserve", turns=ALL_ENDS, at=0, is_after=False, lasts=True, at_once=True)
def test_nothing_is_left_and_clients_are_told(
    policy: str, turns: list[Asked], at: int, *, is_after: bool, lasts: bool, at_once: bool
) -> None:
    faults = Faults(at, is_after=is_after, lasts=lasts)
    world, clients = asyncio.run(run(policy, faults, turns, at_once=at_once))
    world.release_all()
    assert world.left() == {}, faults.failing
    for client in clients:
        check_told(client)


async def turns_of(world: World, *asked: Asked) -> list[Client]:
    return [await world.ask(turn) for turn in asked]


def failing_at(name: str, policy: str, *asked: Asked, is_after: bool = False) -> tuple[World, list[Client]]:
    """The turns, of which the first call of that name fails."""
    seen = Faults()
    asyncio.run(turns_of(World(policy, seen), *asked))
    world = World(policy, Faults(seen.calls.index(name), is_after=is_after))
    return world, asyncio.run(turns_of(world, *asked))


def errors(world: World) -> dict[str, float]:
    """How often each book has failed."""
    lines = world.metrics.page().decode().splitlines()
    found = [line.split(" ") for line in lines if line.startswith("conserve_book_errors_total{")]
    return {name.split('"')[1]: float(count) for name, count in found}


def test_a_metric_that_fails_keeps_nobody_from_learning_that_the_turn_ended() -> None:
    world, (client,) = failing_at("metrics.turn_ended", "conserve", Asked("a"))
    assert (client.status, client.is_whole) == (200, True)
    (conversation,) = world.scheduler.conversations
    assert not conversation.has_turns
    assert errors(world) == {"metrics": 1.0}


@pytest.mark.parametrize("name", ["policy.place", "scheduler.on_turn", "book scheduler.begins"])
@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_turn_that_was_not_placed_is_told_so_and_the_next_one_is_served(
    name: str, *, is_streamed: bool
) -> None:
    turn = Asked("a", is_streamed=is_streamed)
    world, (first, second) = failing_at(name, "conserve", turn, turn)
    assert first.status == 500
    assert json.loads(first.body)["error"]["code"] in ("placement_failed", "internal_error")
    assert (second.status, second.is_whole) == (200, True)
    world.release_all()
    assert world.left() == {}


TELEMETRY = (
    "tracer.start_span",
    "span.end",
    "span.set_attributes",
    "metrics.kv_transferred",
    "ledger.leg_started",
)


@pytest.mark.parametrize(
    "name", [*TELEMETRY, "ledger.leg_ended", "signals.turn_begins", "book record.begins"]
)
@pytest.mark.parametrize("is_after", [False, True])
def test_a_turn_whose_account_cannot_be_kept_is_served_all_the_same(name: str, *, is_after: bool) -> None:
    world, clients = failing_at(name, "conserve", Asked("a"), Asked("a"), is_after=is_after)
    assert [(client.status, client.is_whole) for client in clients] == [(200, True)] * 2
    assert sum(errors(world).values()) == 1


@pytest.mark.parametrize("is_streamed", [True, False])
def test_an_engine_that_breaks_after_its_answers_end_has_completed_the_turn(*, is_streamed: bool) -> None:
    world = World("conserve", Faults())
    (client,) = asyncio.run(turns_of(world, Asked("a", End.LOST_AFTERWARDS, is_streamed)))
    assert (client.status, client.is_whole) == (200, True)
    page = world.metrics.page()
    assert b'conserve_turns_total{outcome="completed",path="remote-prefill"} 1.0' in page


@pytest.mark.parametrize("is_streamed", [True, False])
def test_an_engine_that_counts_impossible_tokens_leaves_no_ghost(*, is_streamed: bool) -> None:
    world = World("conserve", Faults())
    turn = Asked("a", End.MISCOUNTED, is_streamed)
    clients = asyncio.run(turns_of(world, turn, turn))
    assert [(client.status, client.is_whole) for client in clients] == [(200, True)] * 2
    world.release_all()
    assert world.left() == {}
    assert "scheduler" not in errors(world)


def test_a_recognised_conversation_whose_head_cannot_be_moved_ends() -> None:
    world, (client,) = failing_at("recognition.settle", "conserve", Asked(None))
    assert client.status == 200
    assert world.left() == {}


def test_a_conversation_that_cannot_end_keeps_no_other_from_expiring(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("conserve", Faults())
    asyncio.run(turns_of(world, Asked("a"), Asked("b")))

    def root(record: ConversationRecord) -> None:
        if record.identity.conversation_id == "a":
            raise RuntimeError("no root")

    monkeypatch.setattr(world.conversations.log, "root", root)
    world.conversations.expire(1e12)
    assert [*world.scheduler.conversations] == []
    assert errors(world) == {"conversations": 1.0}
