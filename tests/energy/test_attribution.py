from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_server.energy.attribution import Joules, Metered, attribute
from conserve_server.energy.work import Weights, Work, WorkTimes

WEIGHTS = WorkTimes().weights()


def test_the_idle_device_is_paid_by_those_who_hold_kv_and_the_rest_by_those_who_work() -> None:
    split = attribute(
        Metered(energy_j=300, duration_s=2, idle_w=60),
        held={"holder": 1.5, "worker": 0.5},
        held_s=2,
        work=[("worker", Work(decode_tokens=100, decode_steps=100, decode_context=1e6))],
        weights=WEIGHTS,
    )
    assert split.shares == (
        ("holder", Joules(idle_j=90)),
        ("worker", Joules(idle_j=30)),
        ("worker", Joules(decode_j=180)),
    )
    assert (split.charged_j, split.unallocated_j) == (300, 0)


def test_what_nobody_caused_is_unallocated() -> None:
    split = attribute(Metered(300, 2, 60), held={"a": 0.5}, held_s=0.5, work=[], weights=WEIGHTS)
    assert split.shares == (("a", Joules(idle_j=30)),)
    assert (split.unallocated_idle_j, split.unallocated_dynamic_j) == (90, 180)


def test_a_device_that_draws_less_than_its_idle_watts_has_no_dynamic_energy() -> None:
    split = attribute(
        Metered(100, 2, 60),
        held={"a": 2.0},
        held_s=2,
        work=[("a", Work(prefill_tokens=10))],
        weights=WEIGHTS,
    )
    assert split.shares == (("a", Joules(idle_j=100)), ("a", Joules()))


def test_a_prefill_costs_more_the_more_context_it_attends_to() -> None:
    work = [("short", Work(1000, 1000 * 500)), ("long", Work(1000, 1000 * 30_000))]
    split = attribute(Metered(100, 1, 0), held={}, held_s=0, work=work, weights=WEIGHTS)
    (_, short), (_, long) = split.shares
    assert long.prefill_j > 1.5 * short.prefill_j


def test_the_scale_of_the_weights_does_not_matter() -> None:
    work = [("a", Work(prefill_tokens=10)), ("b", Work(transfer_tokens=10)), ("c", Work(decode_tokens=3))]
    doubled = Weights(*(2 * w for w in WEIGHTS.vector))
    one, other = (
        attribute(Metered(100, 1, 0), held={}, held_s=0, work=work, weights=weights)
        for weights in (WEIGHTS, doubled)
    )
    assert one == other


amounts = st.floats(0, 1e7, allow_subnormal=False)
works = st.builds(Work, amounts, amounts, amounts, amounts, amounts, amounts)


@given(
    energy_j=st.floats(0, 1e6),
    duration_s=st.floats(1e-3, 1e4),
    idle_w=st.floats(0, 200),
    held=st.dictionaries(st.integers(0, 9), st.floats(0, 1), max_size=8),
    work=st.lists(st.tuples(st.integers(0, 9), works), max_size=8),
)
def test_shares_and_the_unallocated_rest_add_up_to_the_meter(
    energy_j: float,
    duration_s: float,
    idle_w: float,
    held: dict[int, float],
    work: list[tuple[int, Work]],
) -> None:
    parts = sum(held.values()) or 1.0
    held_s = duration_s * min(parts, 1.0)
    seconds = {name: held_s * part / parts for name, part in held.items()}
    split = attribute(
        Metered(energy_j, duration_s, idle_w),
        held=seconds,
        held_s=math.fsum(seconds.values()),
        work=work,
        weights=WEIGHTS,
    )
    total_j = math.fsum((*(j.total_j for _, j in split.shares), split.unallocated_j))
    assert total_j == pytest.approx(energy_j, rel=1e-9, abs=1e-9)
    assert all(min(j.prefill_j, j.transfer_j, j.decode_j, j.idle_j) >= 0 for _, j in split.shares)
    assert split.unallocated_j >= -1e-9 * max(energy_j, 1)
