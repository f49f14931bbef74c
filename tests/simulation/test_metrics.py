"""The metrics: each by hand on turns written down, then on runs."""

from __future__ import annotations

import pytest

from conserve_server.simulation.gaps import Gaps
from conserve_server.simulation.metrics import Alone, Clock, Metrics, conversation_times, metrics
from conserve_server.simulation.power import fleet_energy
from conserve_server.simulation.records import LiveTurn, Records
from conserve_server.simulation.standalone import Standalone
from tests.simulation.fleets import conversation, engine, fleet, random_workload, run, workload


def two_turns() -> Records:
    """One conversation: arrives at 0, waits 1 s, first token at 3; 10 s of tool; 11 tokens a turn."""
    records = Records()
    first = LiveTurn(0, 0, False, 1000, 11, arrived_s=0.0, placed_s=1.0, first_token_s=3.0, moved_tokens=1000)
    last = LiveTurn(0, 1, True, 1100, 11, arrived_s=14.0, placed_s=14.0, first_token_s=14.5)
    last.cached_tokens = 1000
    records.add(first, 4.0)
    records.add(last, 16.5)
    return records


def of(records: Records, clock: Clock = Clock.ARRIVAL, alone: Alone | None = None) -> Metrics:
    return metrics(records, [], 20.0, clock=clock, alone=None if alone is None else {0: alone})


def test_ttfet_is_the_first_token_of_the_last_turn_without_the_time_in_tools() -> None:
    assert conversation_times(two_turns()).ttfet_s == pytest.approx([4.0 + 0.5])
    assert conversation_times(two_turns()).e2e_s == pytest.approx([4.0 + 2.5])


def test_a_clock_from_admission_leaves_the_wait_for_room_out() -> None:
    assert of(two_turns(), Clock.ADMISSION).ttfet_s.mean == pytest.approx(3.5)


def test_last_turn_tbt_is_the_mean_gap_of_the_last_answer() -> None:
    assert of(two_turns()).last_tbt_s.mean == pytest.approx(0.2)


def test_first_and_later_turns_have_their_own_ttft() -> None:
    found = of(two_turns())
    assert (found.first_ttft_s.p95, found.later_ttft_s.p95) == (3.0, 0.5)


def test_the_cached_share_is_of_all_prompt_tokens_and_transfers_are_counted() -> None:
    found = of(two_turns())
    assert found.cached_share == pytest.approx(1000 / 2100)
    assert (found.transfers, found.moved_tokens) == (1, 1000)


def test_more_than_five_times_alone_violates_the_slo() -> None:
    inside, outside = of(two_turns(), alone=Alone(1.0, 0.1, 2.0)), of(two_turns(), alone=Alone(0.8, 0.1, 2.0))
    assert inside.x_alone is not None
    assert outside.x_alone is not None
    assert (inside.x_alone.ttfet_violations, outside.x_alone.ttfet_violations) == (0.0, 1.0)
    assert (inside.x_alone.goodput_per_s, outside.x_alone.goodput_per_s) == (1 / 20, 0.0)
    assert inside.x_alone.ttfet.p95 == pytest.approx(4.5)
    assert inside.x_alone.last_tbt.p95 == pytest.approx(2.0)


def test_nothing_gives_zeros() -> None:
    assert of(Records()).to_json()["conversations"] == 0


def test_gaps_are_told_to_one_percent() -> None:
    gaps = Gaps()
    gaps.add(0.010, 98)
    gaps.add(0.200, 2)
    assert gaps.quantile_s(0.5) == pytest.approx(0.010, rel=0.01)
    assert gaps.quantile_s(0.99) == pytest.approx(0.200, rel=0.01)
    assert len(Gaps().merge([gaps, gaps])) == 200


def test_a_conversation_alone_in_the_fleet_takes_as_long_as_alone() -> None:
    shape = conversation("a", (1600, 17), (100, 5))
    work = workload((0.0, shape))
    outcome = run("collocated", work, fleet(0, 1))
    alone = Standalone(engine("any")).all_of(work)
    found = metrics(outcome.records, [], 1.0, alone=alone).x_alone
    assert found is not None
    assert (found.ttfet.p95, found.last_tbt.p95, found.e2e.p95) == pytest.approx((1.0, 1.0, 1.0))


def test_every_gap_of_a_run_is_counted_once() -> None:
    outcome = run("conserve", random_workload(30, rate=3.0))
    gaps = Gaps().merge(e.activity.gaps for e in outcome.engines.values())
    assert len(gaps) == sum(outcome.records.output_tokens) - len(outcome.records)


def test_joules_are_those_of_what_the_engines_did_and_lie_within_their_range() -> None:
    where = fleet(1, 2)
    outcome = run("conserve", random_workload(30, rate=3.0), where)
    energy = fleet_energy(where, outcome)
    idle_s = 3 * outcome.ends_s - sum(e.activity.busy_s for e in outcome.engines.values())
    assert energy.modelled.idle_j == pytest.approx(idle_s * where.engines[0].power.idle_w)
    assert energy.least.total_j < energy.modelled.total_j < energy.most.total_j
