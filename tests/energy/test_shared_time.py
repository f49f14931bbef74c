from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_server.energy.shared_time import SharedTime


def test_time_is_split_by_size_at_each_instant() -> None:
    shared: SharedTime[str, str] = SharedTime(0.0)
    shared.put("a", 100, "a", 0.0)
    shared.put("b", 300, "b", 2.0)
    shared.drop("a", 6.0)
    shares, covered_s = shared.close(10.0)
    assert shares == pytest.approx({"a": 2 + 4 * 0.25, "b": 4 * 0.75 + 4})
    assert covered_s == 10.0


def test_time_without_anybody_is_nobodys() -> None:
    shared: SharedTime[str, str] = SharedTime(0.0)
    shared.put("a", 5, "a", 3.0)
    shared.drop("a", 4.0)
    assert shared.close(10.0) == ({"a": 1.0}, 1.0)
    assert shared.close(20.0) == ({}, 0.0)


def test_a_member_keeps_its_place_when_its_payer_changes() -> None:
    shared: SharedTime[str, str] = SharedTime(0.0)
    shared.put("kv", 7, "turn 1", 0.0)
    shared.put("kv", 9, "gap", 1.0)
    shared.put("kv", 9, "turn 2", 4.0)
    assert shared.close(5.0)[0] == pytest.approx({"turn 1": 1.0, "gap": 3.0, "turn 2": 1.0})


def test_a_member_of_size_zero_earns_nothing() -> None:
    shared: SharedTime[str, str] = SharedTime(0.0)
    shared.put("a", 0, "a", 0.0)
    assert shared.close(1.0) == ({}, 0.0)


events = st.lists(
    st.tuples(
        st.floats(0, 5),
        st.sampled_from("abcd"),
        st.one_of(st.none(), st.integers(0, 200_000)),
        st.booleans(),
    ),
    max_size=40,
)


@given(events)
def test_shares_of_every_window_add_up_to_the_time_in_which_anybody_was_there(
    changes: list[tuple[float, str, int | None, bool]],
) -> None:
    shared: SharedTime[str, str] = SharedTime(0.0)
    sizes: dict[str, int] = {}
    now_s = since_s = there_s = 0.0
    for delay_s, name, size, closes in changes:
        there_s += delay_s if sum(sizes.values()) else 0.0
        now_s += delay_s
        if size is None:
            shared.drop(name, now_s)
            sizes.pop(name, None)
        else:
            shared.put(name, size, name, now_s)
            sizes[name] = size
        if closes:
            shares, covered_s = shared.close(now_s)
            assert math.fsum(shares.values()) == pytest.approx(covered_s, rel=1e-9, abs=1e-12)
            assert covered_s == pytest.approx(there_s, abs=1e-9)
            assert covered_s <= now_s - since_s + 1e-9
            since_s, there_s = now_s, 0.0
    assert set(shared.members) == set(sizes)
