"""The scheduler's state machine, report by report."""

import pytest

from conserve_sdk.protocol import Path
from conserve_server.core.turn import Placement
from conserve_server.scheduling.actions import StartDecode, StartPrefill
from conserve_server.scheduling.conversation import State
from conserve_server.scheduling.engine_state import EngineProfile
from conserve_server.scheduling.policies.conserve import ConServe
from conserve_server.scheduling.scheduler import Scheduler
from tests.scheduling.driving import bind, scheduler_of, started, turn_of


def test_a_first_turn_is_prefilled_with_its_room_already_reserved() -> None:
    scheduler = scheduler_of()
    turn = turn_of("a")
    actions = scheduler.on_turn(turn, 0.0)
    assert actions == [StartPrefill(turn.id, Placement(Path.REMOTE_PREFILL, "d0", "p0"))]
    assert scheduler.reserved_tokens("a") == 100


def test_after_the_prefill_the_reservation_is_the_counted_prompt() -> None:
    scheduler = scheduler_of()
    turn = turn_of("a")
    scheduler.on_turn(turn, 0.0)
    actions = scheduler.on_prefilled(turn.id, 80, 0.0)
    assert started(actions) == [(StartDecode, turn.id)]
    assert scheduler.reserved_tokens("a") == 80


def test_a_later_turn_goes_straight_to_the_bound_decoder() -> None:
    scheduler = scheduler_of()
    decoder = bind(scheduler, "a")
    turn = turn_of("a", 200)
    assert scheduler.on_turn(turn, 0.0) == [StartDecode(turn.id, Placement(Path.PINNED, decoder))]


def test_a_reservation_grows_with_what_turns_append_and_produce() -> None:
    scheduler = scheduler_of()
    bind(scheduler, "a", kv_tokens=120)
    turn = turn_of("a", 150)
    scheduler.on_turn(turn, 0.0)
    scheduler.on_turn_ended(turn.id, 190, now_s=1.0)
    assert scheduler.reserved_tokens("a") == 190


def test_conversations_spread_over_decoders_by_free_kv() -> None:
    scheduler = scheduler_of()
    assert [bind(scheduler, name) for name in ("a", "b", "c")] == ["d0", "d1", "d0"]


def test_a_second_first_turn_waits_for_the_binding_of_the_first() -> None:
    scheduler = scheduler_of()
    first, second = turn_of("a"), turn_of("a")
    scheduler.on_turn(first, 0.0)
    assert scheduler.on_turn(second, 0.0) == []
    scheduler.on_prefilled(first.id, 100, 0.0)
    actions = scheduler.on_first_token(first.id, 0.0)
    assert actions == [StartDecode(second.id, Placement(Path.PINNED, "d0"))]


def test_when_the_leading_turn_fails_the_next_one_leads() -> None:
    scheduler = scheduler_of()
    first, second = turn_of("a"), turn_of("a")
    scheduler.on_turn(first, 0.0)
    scheduler.on_turn(second, 0.0)
    actions = scheduler.on_turn_ended(first.id, None, now_s=0.0)
    assert started(actions) == [(StartPrefill, second.id)]


def test_admission_is_first_come_first_served_even_if_a_later_one_would_fit() -> None:
    scheduler = scheduler_of(capacity=100)
    bind(scheduler, "a", 90, 95)
    bind(scheduler, "b", 90, 95)
    large, small = turn_of("large", 60), turn_of("small", 5)
    assert scheduler.on_turn(large, 0.0) == []
    assert scheduler.on_turn(small, 0.0) == []
    actions = scheduler.on_conversation_ended("a", 0.0)
    assert started(actions) == [(StartPrefill, large.id), (StartPrefill, small.id)]


def test_a_waiting_turn_that_is_cancelled_lets_the_next_one_in() -> None:
    scheduler = scheduler_of(capacity=100)
    bind(scheduler, "a", 50, 60)
    bind(scheduler, "b", 50, 60)
    large, small = turn_of("large", 90), turn_of("small", 30)
    scheduler.on_turn(large, 0.0)
    scheduler.on_turn(small, 0.0)
    actions = scheduler.on_turn_ended(large.id, None, now_s=0.0)
    assert started(actions) == [(StartPrefill, small.id)]


def test_a_prompt_that_seems_larger_than_any_budget_waits_for_an_empty_decoder() -> None:
    scheduler = scheduler_of(capacity=100)
    bind(scheduler, "a", 10, 10)
    turn = turn_of("huge", 5000)
    assert started(scheduler.on_turn(turn, 0.0)) == [(StartPrefill, turn.id)]
    assert scheduler.reserved_tokens("huge") == 100


def test_ending_a_conversation_frees_its_reservation() -> None:
    scheduler = scheduler_of()
    bind(scheduler, "a")
    scheduler.on_conversation_ended("a", 0.0)
    assert scheduler.reserved_tokens("a") == 0
    assert scheduler.find("a") is None


def test_a_conversation_that_ends_while_a_turn_runs_is_freed_when_that_turn_ends() -> None:
    scheduler = scheduler_of()
    bind(scheduler, "a")
    turn = turn_of("a")
    scheduler.on_turn(turn, 0.0)
    scheduler.on_conversation_ended("a", 0.0)
    assert scheduler.reserved_tokens("a") > 0
    scheduler.on_turn_ended(turn.id, None, now_s=0.0)
    assert scheduler.reserved_tokens("a") == 0


def test_a_first_turn_that_never_bound_leaves_nothing_behind() -> None:
    scheduler = scheduler_of()
    turn = turn_of("a")
    scheduler.on_turn(turn, 0.0)
    scheduler.on_turn_ended(turn.id, None, now_s=0.0)
    assert scheduler.find("a") is None
    assert scheduler.reserved_tokens("a") == 0
    assert scheduler.pools.views(0.0)[0].queued_tokens == 0


def test_a_failed_prefill_is_tried_on_another_prefiller_and_then_on_the_decoder() -> None:
    scheduler = scheduler_of(prefillers=("p0", "p1"))
    turn = turn_of("a")
    scheduler.on_turn(turn, 0.0)
    second = scheduler.on_prefill_failed(turn.id, 0.0)
    assert second == [StartPrefill(turn.id, Placement(Path.REMOTE_PREFILL, "d0", "p1"))]
    third = scheduler.on_prefill_failed(turn.id, 0.0)
    assert third == [StartDecode(turn.id, Placement(Path.LOCAL_PREFILL, "d0"))]


def test_a_decoder_lost_during_the_prefill_puts_the_turn_on_another() -> None:
    scheduler = scheduler_of()
    turn = turn_of("a")
    scheduler.on_turn(turn, 0.0)
    scheduler.on_engine_down("d0", 0.0)
    actions = scheduler.on_prefilled(turn.id, 100, 0.0)
    assert actions == [StartPrefill(turn.id, Placement(Path.REMOTE_PREFILL, "d1", "p0"))]


def test_a_conversation_on_a_lost_decoder_is_placed_anew_and_counted() -> None:
    scheduler = scheduler_of()
    assert bind(scheduler, "a") == "d0"
    scheduler.on_engine_down("d0", 0.0)
    found = scheduler.find("a")
    assert found is not None
    assert found.state is State.REBINDING
    assert bind(scheduler, "a") == "d1"
    assert scheduler.rebinds == 1


def test_turns_wait_until_a_decoder_is_up() -> None:
    scheduler = Scheduler(
        ConServe(), engines=[EngineProfile("d0", takes_conversations=True)], kv_budget_fraction=0.9
    )
    turn = turn_of("a")
    assert scheduler.on_turn(turn, 0.0) == []
    assert started(scheduler.on_engine_up("d0", None, 0.0)) == [(StartDecode, turn.id)]


def test_idle_conversations_are_listed_oldest_first() -> None:
    scheduler = scheduler_of()
    for name, ended_s in (("a", 1.0), ("b", 2.0), ("c", 9.0)):
        turn = turn_of(name)
        scheduler.on_turn(turn, 0.0)
        scheduler.on_prefilled(turn.id, 100, 0.0)
        scheduler.on_first_token(turn.id, 0.0)
        scheduler.on_turn_ended(turn.id, 120, now_s=ended_s)
    assert scheduler.idle_since(5.0) == ["a", "b"]


def test_an_engine_of_no_pool_is_refused_by_name() -> None:
    with pytest.raises(KeyError, match="stranger"):
        scheduler_of().on_engine_up("stranger", 1, 0.0)


def test_a_turn_that_is_placed_again_keeps_its_place_in_the_queue() -> None:
    scheduler = scheduler_of(capacity=100)
    first, second, third = (turn_of(name, 80) for name in "abc")
    scheduler.on_turn(first, 0.0)
    scheduler.on_turn(second, 0.0)
    assert scheduler.on_turn(third, 0.0) == []
    scheduler.on_engine_down("d0", 0.0)
    assert scheduler.on_prefilled(first.id, 80, 1.0) == []
    scheduler.on_turn_ended(second.id, None, 2.0)
    assert scheduler.is_waiting(third.id)
    assert not scheduler.is_waiting(first.id)
