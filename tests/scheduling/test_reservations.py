"""What is reserved for a conversation at each moment of its life."""

from conserve_server.core.policy_config import ConServeConfig
from conserve_server.core.turn import Turn
from conserve_server.scheduling.actions import StartPrefill
from conserve_server.scheduling.policies.conserve import ConServe
from tests.scheduling.driving import bind, scheduler_of, started, turn_ids, turn_of


def test_a_later_turn_is_debited_when_it_arrives_and_counted_when_it_ends() -> None:
    scheduler = scheduler_of()
    bind(scheduler, "a", kv_tokens=120)
    turn = turn_of("a", 300)  # an estimate
    scheduler.on_turn(turn, 1.0)
    assert scheduler.reserved_tokens("a") == 300
    scheduler.on_turn_ended(turn.id, 190, 2.0)
    assert scheduler.reserved_tokens("a") == 190


def test_tokens_are_reserved_as_they_come() -> None:
    scheduler = scheduler_of()
    bind(scheduler, "a", kv_tokens=120)
    turn = turn_of("a", 150)
    scheduler.on_turn(turn, 1.0)
    scheduler.on_first_token(turn.id, 1.0)
    scheduler.on_tokens(turn.id, 50, 2.0)
    assert scheduler.reserved_tokens("a") == 201


def test_a_cancelled_turn_gives_back_what_it_was_debited() -> None:
    scheduler = scheduler_of()
    bind(scheduler, "a", kv_tokens=120)
    turn = turn_of("a", 300)
    scheduler.on_turn(turn, 1.0)
    scheduler.on_turn_ended(turn.id, None, 2.0)
    assert scheduler.reserved_tokens("a") == 120


def test_an_oracle_reservation_outlasts_the_count_of_the_first_prompt() -> None:
    scheduler = scheduler_of(policy=ConServe(ConServeConfig(mode="oracle")))
    turn = Turn(next(turn_ids), "a", 100, total_tokens=700)
    scheduler.on_turn(turn, 0.0)
    scheduler.on_prefilled(turn.id, 80, 1.0)
    scheduler.on_first_token(turn.id, 1.0)
    scheduler.on_turn_ended(turn.id, 120, 2.0)
    assert scheduler.reserved_tokens("a") == 700


def test_a_prefix_that_others_hold_too_is_reserved_once() -> None:
    scheduler = scheduler_of()
    bind(scheduler, "a", 1000, kv_tokens=1000, cached_tokens=0)
    assert scheduler.reserved_tokens("a") == 1000
    bind(scheduler, "b", 1000, kv_tokens=1020, cached_tokens=800)
    assert scheduler.reserved_tokens("b") == 220
    turn = turn_of("b", 1100)
    scheduler.on_turn(turn, 1.0)
    assert scheduler.reserved_tokens("b") == 300
    scheduler.on_turn_ended(turn.id, 1150, 2.0)
    assert scheduler.reserved_tokens("b") == 350


def test_until_it_is_known_a_conversation_shares_as_much_as_first_turns_did() -> None:
    scheduler = scheduler_of()
    bind(scheduler, "a", 1000, kv_tokens=1000, cached_tokens=500)
    turn = turn_of("b", 1600)
    scheduler.on_turn(turn, 1.0)
    assert scheduler.reserved_tokens("b") == 800
    scheduler.on_prefilled(turn.id, 1600, 2.0, cached_tokens=100)
    assert scheduler.reserved_tokens("b") == 1500


def test_engines_that_do_not_tell_their_cache_hits_share_nothing() -> None:
    scheduler = scheduler_of()
    bind(scheduler, "a", 1000, kv_tokens=1000)
    scheduler.on_turn(turn_of("b", 900), 1.0)
    assert scheduler.reserved_tokens("b") == 900


def test_kv_that_an_engine_reports_beyond_the_books_holds_new_conversations_back() -> None:
    scheduler = scheduler_of(capacity=100)
    for name in ("d0", "d1"):
        scheduler.on_kv_observed(name, 0.5, 1, 0, 0.0)
    turn = turn_of("a", 60)
    assert scheduler.on_turn(turn, 0.0) == []
    assert started(scheduler.on_kv_observed("d1", 0.4, 1, 0, 0.0)) == [(StartPrefill, turn.id)]
