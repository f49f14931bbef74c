"""Later turns that a policy places: prefilled elsewhere, or moved to another decoder."""

from conserve_sdk.protocol import Path, RebindCause
from conserve_server.core.turn import Placement
from conserve_server.scheduling.actions import StartDecode, StartPrefill
from tests.scheduling.driving import (
    APPEND,
    MOVE,
    Always,
    bind_locally,
    decoder_of,
    scheduler_of,
    started,
    turn_of,
)


def test_a_later_turn_may_be_prefilled_elsewhere_and_keeps_its_decoder() -> None:
    scheduler = scheduler_of(policy=Always(APPEND))
    bind_locally(scheduler, "a")
    turn = turn_of("a", 400)
    assert scheduler.on_turn(turn, 1.0) == [StartPrefill(turn.id, APPEND)]
    assert scheduler.on_prefilled(turn.id, 380, 2.0) == [StartDecode(turn.id, APPEND)]
    assert scheduler.on_first_token(turn.id, 3.0) == []
    scheduler.on_turn_ended(turn.id, 390, 4.0)
    assert (decoder_of(scheduler, "a"), scheduler.reserved_tokens("a")) == ("d0", 390)
    assert scheduler.rebinds_by_cause == {}


def test_a_later_turn_whose_prefill_leg_breaks_is_prefilled_on_its_decoder() -> None:
    scheduler = scheduler_of(policy=Always(APPEND), prefillers=("p0", "p1"))
    bind_locally(scheduler, "a")
    turn = turn_of("a", 400)
    scheduler.on_turn(turn, 1.0)
    assert scheduler.on_prefill_failed(turn.id, 0.0) == [StartDecode(turn.id, Placement(Path.PINNED, "d0"))]


def test_a_later_turn_whose_decoder_is_lost_during_its_prefill_is_placed_anew() -> None:
    scheduler = scheduler_of(policy=Always(APPEND))
    bind_locally(scheduler, "a")
    turn = turn_of("a", 400)
    scheduler.on_turn(turn, 1.0)
    scheduler.on_engine_down("d0", 0.0)
    scheduler.on_engine_up("d0", 1000, 0.0)
    placed_anew = Placement(Path.LOCAL_PREFILL, "d0")
    assert scheduler.on_prefilled(turn.id, 400, 2.0) == [
        StartDecode(turn.id, placed_anew, RebindCause.ENGINE_LOST)
    ]


def test_a_conversation_that_its_policy_moves_takes_its_reservation_along() -> None:
    scheduler = scheduler_of(policy=Always(MOVE))
    bind_locally(scheduler, "a")
    turn = turn_of("a", 150)
    assert scheduler.on_turn(turn, 1.0) == [StartDecode(turn.id, MOVE, RebindCause.MOVED)]
    assert [ledger.held("a") for ledger in scheduler.pools.ledgers.values()] == [0, 150]
    assert decoder_of(scheduler, "a") is None  # until the other decoder has answered
    scheduler.on_first_token(turn.id, 2.0)
    assert decoder_of(scheduler, "a") == "d1"
    assert scheduler.rebinds_by_cause == {RebindCause.MOVED: 1}
    assert scheduler.rebinds == 0


def test_turns_that_come_during_a_move_wait_for_the_new_decoder() -> None:
    policy = Always(MOVE)
    scheduler = scheduler_of(policy=policy)
    bind_locally(scheduler, "a")
    moving, following = turn_of("a"), turn_of("a")
    scheduler.on_turn(moving, 1.0)
    assert scheduler.on_turn(following, 1.0) == []
    policy.later = Placement(Path.PINNED, "d1")
    assert started(scheduler.on_first_token(moving.id, 2.0)) == [(StartDecode, following.id)]


def test_a_move_that_fails_leaves_the_conversation_to_be_placed_anew() -> None:
    scheduler = scheduler_of(policy=Always(MOVE))
    bind_locally(scheduler, "a")
    turn = turn_of("a")
    scheduler.on_turn(turn, 1.0)
    scheduler.on_turn_ended(turn.id, None, 2.0)
    assert scheduler.reserved_tokens("a") == 0
    bind_locally(scheduler, "a")
    assert scheduler.rebinds_by_cause == {RebindCause.PLACEMENT_FAILED: 1}
