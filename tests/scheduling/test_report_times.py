"""A policy is asked at the time of the report that led to the question, whichever report it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from conserve_server.core.turn import Placement, Turn
from conserve_server.scheduling.policies.conserve import ConServe
from conserve_server.scheduling.policy import ClusterView, TurnView
from conserve_server.scheduling.scheduler import Scheduler

from .driving import scheduler_of, turn_of

LATER_S = 7.5
WAITS = "waits"
Report = Callable[[Scheduler, Turn], object]


def _prefill_failed(scheduler: Scheduler, first: Turn) -> None:
    for name in ("d0", "d1"):
        scheduler.on_engine_down(name, 3.0)
    scheduler.on_engine_up("d0", 1000, 4.0)
    scheduler.on_prefill_failed(first.id, LATER_S)


REPORTS: dict[str, Report] = {
    "turn": lambda s, _: s.on_turn(turn_of("another"), LATER_S),
    "prefilled": lambda s, first: s.on_prefilled(first.id, 100, LATER_S),
    "prefill failed": _prefill_failed,
    "decode failed": lambda s, first: s.on_decode_failed(first.id, LATER_S, is_lost=True),
    "turn ended": lambda s, first: s.on_turn_ended(first.id, None, LATER_S),
    "conversation ended": lambda s, _: s.on_conversation_ended("rests", LATER_S),
    "conversation expired": lambda s, _: s.on_conversation_expired("rests", LATER_S),
    "engine up": lambda s, _: s.on_engine_up("d1", 1000, LATER_S),
    "engine down": lambda s, _: s.on_engine_down("d1", LATER_S),
    "KV observed": lambda s, _: s.on_kv_observed("d1", 0.5, 1, 0, LATER_S),
    "engine draining": lambda s, _: s.on_engine_draining("d1", LATER_S),
    "engine vacated": lambda s, _: s.on_engine_vacated("d1", LATER_S),
    "engine removed": lambda s, _: s.on_engine_removed("d1", LATER_S),
}


class TimeKeeper:
    """ConServe's rule, but one conversation waits for ever; when that one was asked for last."""

    def __init__(self) -> None:
        self.rule = ConServe()
        self.asked_s = 0.0

    def place(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        if turn.conversation_id != WAITS:
            return self.rule.place(turn, cluster)
        self.asked_s = cluster.now_s
        return None


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_the_policy_is_asked_at_the_reports_own_time(report: Report) -> None:
    policy = TimeKeeper()
    scheduler = scheduler_of(policy=policy)
    resting, first = turn_of("rests"), turn_of("runs")
    scheduler.on_turn(resting, 0.0)
    scheduler.on_prefilled(resting.id, 100, 0.0)
    scheduler.on_first_token(resting.id, 0.0)
    scheduler.on_turn_ended(resting.id, 120, 0.0)
    scheduler.on_turn(first, 1.0)
    scheduler.on_turn(turn_of(WAITS), 2.0)
    report(scheduler, first)
    assert policy.asked_s == LATER_S
