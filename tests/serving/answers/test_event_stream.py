"""Server-sent events wherever the network cuts them, in every way of ending a line."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_server.serving.answers.event_stream import (
    MAX_EVENT_BYTES,
    EventBuffer,
    EventTooLong,
    data_of,
    is_between_events,
    split_events,
)

ENDS = (b"\n", b"\r\n", b"\r")
EVENTS = (b"data: 1\n\n", b"event: x\ndata: 2\n\n", b": wait\n\n", b"data: a\ndata: b\n\n")


def framed(end: bytes) -> bytes:
    return b"".join(EVENTS).replace(b"\n", end)


@pytest.mark.parametrize("end", ENDS)
@given(cuts=st.lists(st.integers(0, len(framed(b"\r\n"))), max_size=8))
def test_no_cut_changes_the_events(end: bytes, cuts: list[int]) -> None:
    whole, buffer = framed(end), EventBuffer()
    edges = [0, *sorted(cuts), len(whole)]
    taken = [buffer.take(whole[a:b]) for a, b in itertools.pairwise(edges)]
    assert b"".join(taken) + buffer.partial == whole
    found = [data_of(event) for events in taken for event in split_events(events)]
    assert [data for data in found if data] == [b"1", b"2", b"a\nb"]


@pytest.mark.parametrize("end", ENDS)
def test_an_event_is_there_as_soon_as_its_empty_line_is(end: bytes) -> None:
    buffer = EventBuffer()
    assert buffer.take(b"data: 1" + end) == b""
    assert buffer.take(end) == b"data: 1" + end + end


@pytest.mark.parametrize("end", ENDS)
def test_events_keep_what_ends_them(end: bytes) -> None:
    assert b"".join(split_events(framed(end))) == framed(end)
    assert len(split_events(framed(end))) == len(EVENTS)


def test_an_event_without_end_is_held_up_to_a_limit() -> None:
    buffer, piece = EventBuffer(), b"a" * (MAX_EVENT_BYTES // 4)
    for _ in range(4):
        buffer.take(piece)
    with pytest.raises(EventTooLong):
        buffer.take(b"a")


@pytest.mark.parametrize(
    ("last", "is_between"),
    [(b"", True), (b"x\n\n", True), (b"x\r\n\r\n", True), (b"x\n", False), (b"x", False)],
)
def test_where_a_new_event_may_begin(last: bytes, is_between: bool) -> None:
    assert is_between_events(last) is is_between
