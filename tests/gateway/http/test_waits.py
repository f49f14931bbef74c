"""A connection's waits: whatever happened before, each has an end."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_server.gateway.http.waits import Bounds, Over, State, Waits

BOUNDS = Bounds(idle_s=75, head_s=30, body_s=65, drain_s=10, write_s=60)
LATEST_S = 60.0


def at(*events: str, now_s: float = 0.0) -> Waits:
    """A connection after these events, all at one moment."""
    waits = Waits(BOUNDS, now_s)
    for event in events:
        getattr(waits, event)(now_s)
    return waits


def over(
    waits: Waits, now_s: float, *, size: int = 0, is_held: bool = False, is_closing: bool = False
) -> object:
    return waits.over(size, is_held=is_held, is_closing=is_closing, now_s=now_s)


REQUEST = ("head_begins", "head_ends", "body_ends")


@pytest.mark.parametrize(
    ("events", "state", "bound_s"),
    [
        ((), State.IDLE, 75),
        (("head_begins",), State.HEAD, 30),
        (("head_begins", "head_ends"), State.BODY, 65),
        (REQUEST, State.SERVING, inf),
        ((*REQUEST, "answered"), State.IDLE, 75),
        (("head_begins", "head_ends", "answered"), State.DRAINING, 10),
        (("head_begins", "head_ends", "answered", "body_ends"), State.IDLE, 75),
        ((*REQUEST, "head_begins"), State.SERVING, inf),
        ((*REQUEST, "head_begins", "answered"), State.HEAD, 30),
        ((*REQUEST, "head_begins", "head_ends"), State.SERVING, inf),
        ((*REQUEST, "head_begins", "head_ends", "answered"), State.BODY, 65),
    ],
)
def test_each_state_has_its_bound(events: tuple[str, ...], state: State, bound_s: float) -> None:
    waits = at(*events)
    assert (waits.state, waits.due_s()) == (state, bound_s)


def test_a_wait_is_over_at_its_bound_and_not_before() -> None:
    waits = at("head_begins", now_s=5.0)
    assert over(waits, 34.9) is None
    assert over(waits, 35.0) is Over.HEAD


def test_a_next_head_has_its_whole_time_after_the_answer_before_it() -> None:
    waits = at(*REQUEST, "head_begins")
    assert over(waits, 1000.0) is None
    waits.answered(1000.0)
    assert waits.due_s() == 1030.0


def test_a_client_that_takes_a_byte_in_time_is_waited_for_and_one_that_takes_none_is_not() -> None:
    waits = at(*REQUEST)
    assert over(waits, 0.0, size=1000, is_held=True) is None
    assert over(waits, 60.0, size=999, is_held=True) is None
    assert over(waits, 119.0, size=999, is_held=True) is None
    assert over(waits, 120.0, size=999, is_held=True) is Over.WRITING


def test_a_closed_connection_whose_bytes_nobody_takes_ends_too() -> None:
    waits = at(*REQUEST, "answered")
    assert over(waits, 75.0, size=10, is_closing=True) is None
    assert over(waits, 135.0, size=10, is_closing=True) is Over.WRITING


@st.composite
def histories(draw: st.DrawFn) -> tuple[Waits, float]:
    """A connection after any possible history, and the time."""
    now_s, reading, owed = 0.0, State.IDLE, 0
    waits = Waits(BOUNDS, now_s)
    for _ in range(draw(st.integers(0, 30))):
        now_s += draw(st.floats(0, 100))
        if owed and draw(st.booleans()):
            waits.answered(now_s)
            owed -= 1
        elif reading is State.IDLE:
            waits.head_begins(now_s)
            reading = State.HEAD
        elif reading is State.HEAD:
            waits.head_ends(now_s)
            reading, owed = State.BODY, owed + 1
        else:
            waits.body_ends(now_s)
            reading = State.IDLE
    for _ in range(owed):
        waits.answered(now_s)
    return waits, now_s


@given(histories())
def test_a_client_that_stops_is_hung_up_on_in_the_time_of_one_state(history: tuple[Waits, float]) -> None:
    """Nothing is owed any more: looking only when told to, the end is seen at the bound of the state."""
    waits, since_s = history
    now_s, looks = since_s, 0
    while over(waits, now_s) is None:
        looks += 1
        now_s = waits.look_at_s(now_s + LATEST_S, is_closing=False)
    assert now_s == since_s + BOUNDS.of(waits.state)
    assert looks <= 2


@given(histories(), st.lists(st.tuples(st.floats(0, 100), st.integers(0, 100)), max_size=20))
def test_a_closing_connection_ends_once_nothing_is_taken_any_more(
    history: tuple[Waits, float], taken: list[tuple[float, int]]
) -> None:
    waits, now_s = history
    size = sum(each for _, each in taken) + 1
    for wait_s, each in taken:
        now_s, size = now_s + wait_s, size - each
        if over(waits, now_s, size=size, is_closing=True) is Over.WRITING:
            return
    last_s = now_s
    while over(waits, now_s, size=size, is_closing=True) is None:
        now_s = waits.look_at_s(now_s + LATEST_S, is_closing=True)
    assert now_s <= last_s + BOUNDS.write_s
