"""Who is admitted where turns of several tenants wait for room."""

from __future__ import annotations

import pytest

from conserve_sdk.protocol import Path
from conserve_server.scheduling.actions import StartPrefill

from .driving import bind, scheduler_of, sent, started, turn_of


def test_a_turn_that_wants_more_than_its_share_holds_up_no_other_tenant() -> None:
    """A tenant that sends one such turn after another would else be all that is waited for."""
    scheduler = scheduler_of(capacity=1000)
    bind(scheduler, "r0", kv_tokens=300)
    bind(scheduler, "r1", kv_tokens=300)
    huge, behind = turn_of("huge", 900, "a"), turn_of("small", 10, "a")
    assert scheduler.on_turn(huge, 1.0) == []
    assert scheduler.on_turn(behind, 1.0) == []
    other = turn_of("other", 100, "b")
    assert started(scheduler.on_turn(other, 1.0)) == [(StartPrefill, other.id)]
    assert scheduler.is_waiting(huge.id)
    assert scheduler.is_waiting(behind.id)


def test_it_is_admitted_when_the_others_leave_so_much() -> None:
    scheduler = scheduler_of(capacity=1000)
    decoder = bind(scheduler, "r0", kv_tokens=300)
    bind(scheduler, "r1", kv_tokens=300)
    huge = turn_of("huge", 900, "a")
    scheduler.on_turn(huge, 1.0)
    (start,) = sent(scheduler.on_conversation_ended("r0", 2.0))
    assert (start.turn_id, start.placement.decoder) == (huge.id, decoder)


def test_one_within_its_share_is_waited_for() -> None:
    """Else small turns of others would take each bit of room that comes free."""
    scheduler = scheduler_of(capacity=1000)
    for name in ("r0", "r1"):
        bind(scheduler, name, prompt_tokens=800, kv_tokens=800)
    fair, small = turn_of("fair", 300, "a"), turn_of("small", 100, "b")
    assert scheduler.on_turn(fair, 1.0) == []
    assert scheduler.on_turn(small, 1.0) == []
    assert "a" in scheduler.giving_tenants()
    assert [action.turn_id for action in scheduler.on_conversation_ended("r0", 2.0)] == [fair.id, small.id]


def test_one_tenant_alone_keeps_the_order_of_arrival() -> None:
    scheduler = scheduler_of(capacity=1000)
    for name in ("r0", "r1"):
        bind(scheduler, name, kv_tokens=300)
    huge, small = turn_of("huge", 900), turn_of("small", 10)
    assert scheduler.on_turn(huge, 1.0) == []
    assert scheduler.on_turn(small, 1.0) == []


def test_a_tenant_gives_room_to_its_own_turn_and_what_is_above_its_share_to_others() -> None:
    scheduler = scheduler_of(capacity=1000)
    scheduler.on_turn(turn_of("much", 900, "a"), 0.0)
    scheduler.on_turn(turn_of("little", 300, "b"), 0.0)
    scheduler.on_turn(turn_of("waits", 800, "c"), 1.0)
    assert scheduler.giving_tenants() == {"a", "c"}


@pytest.mark.parametrize(("held_tokens", "path"), [(300, Path.LOCAL_PREFILL), (0, Path.REMOTE_PREFILL)])
def test_a_conversation_that_yielded_goes_home_where_its_kv_still_is(held_tokens: int, path: Path) -> None:
    scheduler = scheduler_of(capacity=1000)
    decoder = bind(scheduler, "r0", prompt_tokens=290, kv_tokens=300)
    scheduler.on_conversation_yielded("r0", 1.0)
    scheduler.on_resident(decoder, {"r0": held_tokens}, 16, 2.0)
    (start,) = sent(scheduler.on_turn(turn_of("r0", 320), 3.0))
    assert start.placement.path is path
