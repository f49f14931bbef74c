from __future__ import annotations

import itertools
import statistics

import pytest

from conserve_server.core.errors import ConfigError
from conserve_server.simulation.workload import ConversationShape, TurnShape, Workload
from conserve_server.simulation.workloads.arrivals import bursty, evenly, paced, poisson

SHAPES = [ConversationShape(f"c{i}", (TurnShape(100, 10),)) for i in range(10)]


def gaps_s(workload: Workload) -> list[float]:
    return [after.at_s - before.at_s for before, after in itertools.pairwise(workload.arrivals)]


def variation(workload: Workload) -> float:
    gaps = gaps_s(workload)
    return statistics.stdev(gaps) / statistics.mean(gaps)


def test_poisson_arrivals_come_at_their_rate_and_vary_as_they_should() -> None:
    workload = poisson(SHAPES, rate_per_s=2.0, count=4000, seed=1, name="w")
    assert len(workload.arrivals) == 4000
    assert statistics.mean(gaps_s(workload)) == pytest.approx(0.5, rel=0.05)
    assert variation(workload) == pytest.approx(1.0, rel=0.05)


def test_bursty_arrivals_come_at_the_same_rate_in_bursts() -> None:
    workload = bursty(SHAPES, rate_per_s=2.0, count=8000, seed=1, name="w", variation=3.0)
    assert statistics.mean(gaps_s(workload)) == pytest.approx(0.5, rel=0.15)
    assert variation(workload) == pytest.approx(3.0, rel=0.15)


def test_the_same_seed_gives_the_same_workload_and_another_seed_another() -> None:
    one = poisson(SHAPES, rate_per_s=1.0, count=50, seed=7, name="w")
    assert one == poisson(SHAPES, rate_per_s=1.0, count=50, seed=7, name="w")
    assert one != poisson(SHAPES, rate_per_s=1.0, count=50, seed=8, name="w")


def test_no_two_conversations_of_a_workload_have_one_id() -> None:
    workload = poisson(SHAPES, rate_per_s=1.0, count=35, seed=1, name="w")
    ids = [arrival.conversation.id for arrival in workload.arrivals]
    assert len(set(ids)) == 35
    assert sum(each.endswith("#4") for each in ids) == 5


def test_even_arrivals_are_as_far_apart_as_the_rate_says() -> None:
    workload = evenly(SHAPES, rate_per_s=4.0, count=5, seed=1, name="w")
    assert [arrival.at_s for arrival in workload.arrivals] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_a_paced_workload_keeps_its_conversations() -> None:
    workload = evenly(SHAPES, rate_per_s=1.0, count=3, seed=1, name="w")
    faster = paced(workload, 2.0)
    assert [arrival.at_s for arrival in faster.arrivals] == [0.0, 0.5, 1.0]
    assert [a.conversation for a in faster.arrivals] == [a.conversation for a in workload.arrivals]


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_a_rate_that_brings_nobody_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        poisson(SHAPES, rate_per_s=rate, count=1, seed=1, name="w")


def test_nothing_can_be_drawn_from_no_conversations() -> None:
    with pytest.raises(ConfigError, match="no conversation to draw from"):
        poisson([], rate_per_s=1.0, count=1, seed=1, name="w")
