"""What an engine says that it still holds corrects what the scheduler believes that it has."""

from __future__ import annotations

from conserve_server.scheduling.scheduler import Scheduler
from tests.scheduling.driving import bind, scheduler_of, turn_of

BLOCK = 16


def context(scheduler: Scheduler, conversation: str, engine: str) -> int:
    found = scheduler.find(conversation)
    assert found is not None
    return found.context_tokens[engine]


def test_evicted_context_is_no_longer_expected() -> None:
    scheduler = scheduler_of()
    decoder = bind(scheduler, "a", kv_tokens=120)
    scheduler.on_resident(decoder, {"a": 48}, BLOCK, 0.0)
    assert context(scheduler, "a", decoder) == 48
    assert scheduler.reserved_tokens("a") == 120


def test_a_last_block_that_is_not_full_is_not_missed() -> None:
    scheduler = scheduler_of()
    decoder = bind(scheduler, "a", kv_tokens=120)
    scheduler.on_resident(decoder, {"a": 112}, BLOCK, 0.0)
    assert context(scheduler, "a", decoder) == 120


def test_a_report_never_adds_context() -> None:
    scheduler = scheduler_of()
    decoder = bind(scheduler, "a", kv_tokens=120)
    scheduler.on_resident(decoder, {"a": 480}, BLOCK, 0.0)
    assert context(scheduler, "a", decoder) == 120


def test_a_conversation_with_a_turn_under_way_is_left_alone() -> None:
    scheduler = scheduler_of()
    decoder = bind(scheduler, "a", kv_tokens=120)
    scheduler.on_turn(turn_of("a"), 1.0)
    scheduler.on_resident(decoder, {"a": 0}, BLOCK, 0.0)
    assert context(scheduler, "a", decoder) == 120


def test_what_a_decoder_has_evicted_is_told_until_it_is_computed_again() -> None:
    scheduler = scheduler_of()
    decoder = bind(scheduler, "a", kv_tokens=120)
    found = scheduler.find("a")
    assert found is not None
    scheduler.on_resident("p0", {"a": 0}, BLOCK, 0.0)
    assert found.evicted_tokens == 0  # a prefiller is no decoder
    scheduler.on_resident(decoder, {"a": 96}, BLOCK, 0.0)
    scheduler.on_resident(decoder, {"a": 48}, BLOCK, 0.0)
    assert found.evicted_tokens == 72
    turn = turn_of("a", 150)
    scheduler.on_turn(turn, 1.0)
    scheduler.on_first_token(turn.id, 2.0)
    assert found.evicted_tokens == 0


def test_conversations_and_engines_that_are_not_known_are_ignored() -> None:
    scheduler = scheduler_of()
    bind(scheduler, "a")
    scheduler.on_resident("nowhere", {"a": 0, "b": 0}, BLOCK, 0.0)
    assert scheduler.find("b") is None
