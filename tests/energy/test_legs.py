from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_server.energy.accounts import ConversationAccount, TurnAccount
from conserve_server.energy.legs import Counted, Leg, Pace, work_between
from conserve_server.energy.work import Work, WorkTimes

COUNTED = Counted(prefill_tokens=1000, context_tokens=4000, transfer_tokens=400, decode_tokens=200)


def leg(**changes: object) -> Leg:
    turn = TurnAccount(ConversationAccount("default", "m"))
    return Leg(turn, "decode-0", 10.0, expected_tokens=900, **changes)  # type: ignore[arg-type]


def work(of: Leg, start_s: float, end_s: float, batched_s: float = 0.0, counted: Counted = COUNTED) -> Work:
    return work_between(of, counted, start_s, end_s, until_s=20.0, batched_s=batched_s)


def test_prefill_lies_before_the_first_token_and_decode_after_it() -> None:
    ended = leg(first_s=12.0, ended_s=16.0)
    before, after = work(ended, 0, 12), work(ended, 12, 20)
    assert (before.prefill_tokens, before.decode_tokens) == (1000, 0)
    assert (after.prefill_tokens, after.decode_tokens) == (0, 200)
    assert before.prefill_context == 1000 * 4500
    assert after.decode_context == 200 * 5100


def test_a_leg_that_overlaps_an_interval_is_counted_by_the_time_in_it() -> None:
    ended = leg(first_s=12.0, ended_s=16.0)
    assert work(ended, 11, 13).prefill_tokens == 500
    assert work(ended, 11, 13).decode_tokens == 50


def test_a_transfer_comes_before_the_prefill() -> None:
    ended = leg(first_s=12.0, ended_s=16.0, transfer_s=1.0)
    assert (work(ended, 10, 11).transfer_tokens, work(ended, 10, 11).prefill_tokens) == (400, 0)
    assert (work(ended, 11, 12).transfer_tokens, work(ended, 11, 12).prefill_tokens) == (0, 1000)


def test_a_step_is_shared_by_the_batch() -> None:
    ended = leg(first_s=12.0, ended_s=16.0)
    assert work(ended, 12, 16, batched_s=1.0).decode_steps == 50
    assert work(ended, 12, 16, batched_s=4.0).decode_steps == 200


def test_a_prefill_leg_that_never_decodes_is_prefill_to_its_end() -> None:
    ended = leg(ended_s=14.0, decodes=False)
    assert work(ended, 10, 12, counted=Counted(1000)).prefill_tokens == 500


@given(
    cuts=st.lists(st.floats(9.0, 21.0), min_size=1, max_size=8),
    first_s=st.one_of(st.none(), st.floats(10.0, 16.0)),
    transfer_s=st.floats(0, 4),
)
def test_the_parts_of_a_leg_add_up_to_it(cuts: list[float], first_s: float | None, transfer_s: float) -> None:
    ended = leg(first_s=first_s, ended_s=16.0, transfer_s=transfer_s)
    edges = sorted({0.0, *cuts, 30.0})
    parts = [work(ended, a, b) for a, b in itertools.pairwise(edges)]
    assert sum(p.prefill_tokens for p in parts) == pytest.approx(1000)
    assert sum(p.transfer_tokens for p in parts) == pytest.approx(400)
    assert sum(p.decode_tokens for p in parts) == pytest.approx(200)


def test_a_leg_that_was_not_counted_is_estimated_by_its_time() -> None:
    pace = Pace(WorkTimes(decode_step_s=0.01, decode_token_s=0.0))
    cancelled = leg(first_s=12.0, ended_s=14.0)
    assert pace.estimate(cancelled, 20.0) == Counted(900, 0, decode_tokens=200)


def test_an_estimate_never_exceeds_what_the_time_allows() -> None:
    pace = Pace(WorkTimes(prefill_token_s=0.01))
    assert pace.estimate(leg(ended_s=11.0), 20.0) == Counted(100)


def test_the_pace_follows_the_legs_that_were_counted() -> None:
    pace = Pace(WorkTimes())
    for _ in range(40):
        pace.learn(leg(first_s=12.0, ended_s=16.0, counted=Counted(1000, decode_tokens=100)))
    assert pace.prefill_s == pytest.approx(0.002, rel=0.01)
    assert pace.decode_s == pytest.approx(0.04, rel=0.01)
