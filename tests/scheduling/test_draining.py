"""Conversations that expire, and engines that come and go on purpose."""

import pytest

from conserve_sdk.protocol import Path
from conserve_server.core.turn import Placement
from conserve_server.scheduling.actions import StartDecode, StartPrefill
from conserve_server.scheduling.conversation import State
from conserve_server.scheduling.engine_state import EngineProfile
from tests.scheduling.driving import bind, scheduler_of, started, turn_of


def test_an_idle_conversation_expires_and_a_busy_one_does_not() -> None:
    scheduler = scheduler_of()
    bind(scheduler, "a")
    bind(scheduler, "b")
    expired = scheduler.find("a")
    scheduler.on_turn(turn_of("b"), 1.0)
    scheduler.on_conversation_expired("a", 0.0)
    scheduler.on_conversation_expired("b", 0.0)
    assert expired is not None
    assert (expired.state, scheduler.find("a"), scheduler.reserved_tokens("a")) == (State.EXPIRED, None, 0)
    assert scheduler.find("b") is not None


def test_a_draining_engine_keeps_its_conversations_and_takes_no_others() -> None:
    scheduler = scheduler_of()
    assert bind(scheduler, "a") == "d0"
    scheduler.on_engine_draining("d0", 0.0)
    assert [bind(scheduler, name) for name in ("b", "c")] == ["d1", "d1"]
    turn = turn_of("a")
    assert scheduler.on_turn(turn, 1.0) == [StartDecode(turn.id, Placement(Path.PINNED, "d0"))]


def test_a_draining_engine_may_go_when_its_last_conversation_has_ended() -> None:
    scheduler = scheduler_of()
    bind(scheduler, "a")
    scheduler.on_engine_draining("d0", 0.0)
    assert not scheduler.pools.is_drained("d0")
    scheduler.on_conversation_ended("a", 0.0)
    assert scheduler.pools.is_drained("d0")
    scheduler.on_engine_removed("d0", 0.0)
    with pytest.raises(KeyError, match="d0"):
        scheduler.on_engine_up("d0", 1000, 0.0)


def test_a_draining_prefiller_is_sent_no_more_prefills() -> None:
    scheduler = scheduler_of(prefillers=("p0", "p1"))
    scheduler.on_engine_draining("p0", 0.0)
    turn = turn_of("a")
    assert scheduler.on_turn(turn, 0.0) == [StartPrefill(turn.id, Placement(Path.REMOTE_PREFILL, "d0", "p1"))]


def test_an_engine_that_is_added_serves_once_it_is_up() -> None:
    scheduler = scheduler_of(capacity=100)
    turn = turn_of("a", 90)
    for name in ("b", "c"):
        bind(scheduler, name, 90, 95)
    assert scheduler.on_turn(turn, 0.0) == []
    scheduler.on_engine_added(EngineProfile("d2", takes_conversations=True), 0.0)
    assert started(scheduler.on_engine_up("d2", 100, 0.0)) == [(StartPrefill, turn.id)]
    with pytest.raises(ValueError, match="d2"):
        scheduler.on_engine_added(EngineProfile("d2"), 0.0)
