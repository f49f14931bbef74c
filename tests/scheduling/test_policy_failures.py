"""A policy that raises fails the turn that it was asked about: no other turn, and no report of another."""

from __future__ import annotations

import pytest

from conserve_sdk.protocol import Path
from conserve_server.core.turn import Placement
from conserve_server.scheduling.actions import Action, PlacementFailed, StartDecode, StartPrefill
from conserve_server.scheduling.policies.conserve import ConServe
from conserve_server.scheduling.policy import ClusterView, TurnView
from conserve_server.scheduling.scheduler import Scheduler

from .driving import MOVE, Always, bind, bind_locally, scheduler_of, started, turn_of


class Fragile:
    """ConServe's rule, except for the conversations that it fails on, and those that it lets wait."""

    def __init__(self) -> None:
        self.rule = ConServe()
        self.fails_on: set[str] = set()
        self.waits_with: set[str] = set()

    def place(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        if turn.conversation_id in self.fails_on:
            raise ZeroDivisionError("no rate was seen yet")
        return None if turn.conversation_id in self.waits_with else self.rule.place(turn, cluster)


def failed(actions: list[Action]) -> list[int]:
    return [action.turn_id for action in actions if isinstance(action, PlacementFailed)]


def assert_empty(scheduler: Scheduler) -> None:
    assert not scheduler.conversations
    assert scheduler.waiting_turns == 0
    assert all(ledger.reserved_tokens == 0 for ledger in scheduler.pools.ledgers.values())


def test_the_next_turn_of_the_conversation_is_placed() -> None:
    policy = Fragile()
    scheduler = scheduler_of(policy=policy)
    policy.fails_on = {"a"}
    first = turn_of("a")
    (action,) = scheduler.on_turn(first, 0.0)
    assert isinstance(action, PlacementFailed)
    assert isinstance(action.error, ZeroDivisionError)
    policy.fails_on = set()
    scheduler.on_turn_ended(first.id, None, 1.0)
    second = turn_of("a")
    assert started(scheduler.on_turn(second, 2.0)) == [(StartPrefill, second.id)]


def test_the_next_turn_is_placed_even_before_the_failed_one_has_ended() -> None:
    policy = Fragile()
    scheduler = scheduler_of(policy=policy)
    policy.fails_on = {"a"}
    first, second = turn_of("a"), turn_of("a")
    scheduler.on_turn(first, 0.0)
    policy.fails_on = set()
    assert started(scheduler.on_turn(second, 0.0)) == [(StartPrefill, second.id)]
    scheduler.on_turn_ended(first.id, None, 1.0)
    assert started(scheduler.on_prefilled(second.id, 100, 1.0)) == [(StartDecode, second.id)]


def test_an_ended_conversation_keeps_no_reservation() -> None:
    policy = Fragile()
    scheduler = scheduler_of(policy=policy)
    bind(scheduler, "a")
    policy.fails_on = {"a"}
    turn = turn_of("a")
    assert failed(scheduler.on_turn(turn, 1.0)) == [turn.id]
    scheduler.on_conversation_ended("a", 2.0)
    scheduler.on_turn_ended(turn.id, None, 3.0)
    assert_empty(scheduler)


def test_a_turn_that_waits_at_the_head_of_the_queue_and_then_fails_lets_the_others_pass() -> None:
    policy = Fragile()
    scheduler = scheduler_of(policy=policy)
    policy.waits_with = {"a"}
    head, behind = turn_of("a"), turn_of("b")
    assert scheduler.on_turn(head, 0.0) == []
    assert scheduler.on_turn(behind, 0.0) == []
    policy.fails_on = {"a"}
    actions = scheduler.on_kv_observed("d0", 0.0, 0, 0, 1.0)
    assert failed(actions) == [head.id]
    assert started(actions)[1:] == [(StartPrefill, behind.id)]
    assert scheduler.waiting_turns == 0


def test_a_turn_that_ends_lets_others_fail_and_has_ended_all_the_same() -> None:
    policy = Fragile()
    scheduler = scheduler_of(policy=policy)
    policy.waits_with = {"b"}
    first, waiting = turn_of("a"), turn_of("b")
    scheduler.on_turn(first, 0.0)
    scheduler.on_turn(waiting, 0.0)
    policy.fails_on = {"b"}
    assert failed(scheduler.on_turn_ended(first.id, None, 1.0)) == [waiting.id]
    assert not scheduler.knows(first.id)
    scheduler.on_turn_ended(waiting.id, None, 2.0)
    assert_empty(scheduler)


def test_a_first_token_binds_though_a_follower_fails() -> None:
    policy = Fragile()
    scheduler = scheduler_of(policy=policy)
    first, follower = turn_of("a"), turn_of("a")
    scheduler.on_turn(first, 0.0)
    scheduler.on_turn(follower, 0.0)
    scheduler.on_prefilled(first.id, 100, 1.0)
    policy.fails_on = {"a"}
    assert failed(scheduler.on_first_token(first.id, 2.0)) == [follower.id]
    found = scheduler.find("a")
    assert found is not None
    assert found.decoder is not None


def test_of_followers_each_is_tried_and_fails_by_itself() -> None:
    policy = Fragile()
    scheduler = scheduler_of(policy=policy)
    policy.waits_with = {"a"}
    turns = [turn_of("a") for _ in range(3)]
    for turn in turns:
        scheduler.on_turn(turn, 0.0)
    policy.fails_on = {"a"}
    assert failed(scheduler.on_engine_up("d0", 1000, 1.0)) == [turn.id for turn in turns]
    for turn in turns:
        scheduler.on_turn_ended(turn.id, None, 2.0)
    assert_empty(scheduler)


IMPOSSIBLE = {
    "an unknown decoder": Placement(Path.PINNED, "nowhere"),
    "an unknown prefiller": Placement(Path.REMOTE_APPEND, "d0", "nowhere"),
    "a prefiller as decoder": Placement(Path.PINNED, "p0"),
    "one engine twice": Placement(Path.REMOTE_APPEND, "d0", "d0"),
}


@pytest.mark.parametrize("placement", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_placement_that_cannot_be_fails_the_turn_and_changes_nothing(placement: Placement) -> None:
    scheduler = scheduler_of(policy=Always(placement))
    bind_locally(scheduler, "a")
    before = scheduler.reserved_tokens("a")
    turn = turn_of("a", 500)
    assert failed(scheduler.on_turn(turn, 1.0)) == [turn.id]
    assert scheduler.reserved_tokens("a") == before
    scheduler.on_turn_ended(turn.id, None, 2.0)
    found = scheduler.find("a")
    assert found is not None
    assert found.decoder == "d0"


def test_a_conversation_that_is_moved_while_its_turns_run_fails_the_later_turn() -> None:
    policy = Always(Placement(Path.PINNED, "d0"))
    scheduler = scheduler_of(policy=policy)
    bind_locally(scheduler, "a")
    running, moved = turn_of("a"), turn_of("a")
    scheduler.on_turn(running, 1.0)
    policy.later = MOVE
    assert failed(scheduler.on_turn(moved, 2.0)) == [moved.id]
    scheduler.on_turn_ended(running.id, 130, 3.0)
    scheduler.on_turn_ended(moved.id, None, 4.0)
    scheduler.on_conversation_ended("a", 5.0)
    assert_empty(scheduler)
