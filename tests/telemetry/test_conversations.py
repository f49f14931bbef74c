from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_server.telemetry import names
from conserve_server.telemetry.conversations import (
    ConversationNotFound,
    conversation_lines,
    find_conversation,
    short_ids,
)
from conserve_server.telemetry.spans_file import Span, read_spans
from conserve_server.telemetry.timeline import timeline

if TYPE_CHECKING:
    from tests.telemetry.conftest import Recorder

IDS = ["research-7", "research-8", "review-1", "rev"]


def test_a_line_agrees_with_the_timeline(researcher: pathlib.Path) -> None:
    (line,) = conversation_lines(read_spans(researcher))
    shown = timeline("conv-1", read_spans(researcher))
    assert (line.id, line.agent) == ("conv-1", shown.agent)
    assert (line.start_unix_s, line.duration_s) == pytest.approx((shown.start_unix_s, shown.duration_s))
    assert (line.turns, line.tools) == (len(shown.turns), len(shown.tools)) == (2, 2)


def test_the_latest_conversation_is_first(recorder: Recorder) -> None:
    for conversation_id, start_s in (("old", 0.0), ("new", 100.0), ("middle", 50.0)):
        recorder.conversation_id = conversation_id
        recorder.turn(1, (start_s, start_s + 1), {}, {names.EMULATED: conversation_id == "new"})
    lines = conversation_lines(read_spans(recorder.close()))
    assert [(line.id, line.is_emulated) for line in lines] == [
        ("new", True),
        ("middle", False),
        ("old", False),
    ]


def test_a_model_call_without_a_gateway_counts_as_a_turn(recorder: Recorder) -> None:
    served = recorder.model_call((0.0, 1.0))
    recorder.turn(1, (0.1, 0.9), {}, {}, parent=served)
    recorder.model_call((2.0, 3.0))
    (line,) = conversation_lines(read_spans(recorder.close()))
    assert (line.turns, round(line.duration_s, 6)) == (2, 2.9)


def test_an_agents_own_span_alone_is_no_conversation() -> None:
    span = Span("ab", None, "invoke_agent x", 1, 2, {names.CONVERSATION_ID: "conv-1"})
    assert conversation_lines([span]) == []


@pytest.mark.parametrize(
    ("wanted", "found"), [("research-7", "research-7"), ("revi", "review-1"), ("rev", "rev")]
)
def test_an_id_or_its_only_beginning_finds_the_conversation(wanted: str, found: str) -> None:
    assert find_conversation(wanted, IDS) == found


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("rese", r"2 conversations begin with 'rese', type more of one: research-7, research-8"),
        ("reserch-7", r"no conversation 'reserch-7'; near it: research-7, research-8"),
        ("zzz", r"no conversation 'zzz'; `conserve trace` lists them"),
    ],
)
def test_what_is_not_found_is_said_with_what_is_near(wanted: str, message: str) -> None:
    with pytest.raises(ConversationNotFound, match=message):
        find_conversation(wanted, IDS)


def test_ids_are_cut_to_what_tells_them_apart() -> None:
    assert short_ids(["abcdef1", "abcdef2", "xyz-and-more"], at_least=3) == {
        "abcdef1": "abcdef1",
        "abcdef2": "abcdef2",
        "xyz-and-more": "xyz",
    }


@given(st.sets(st.text("ab", min_size=1, max_size=8), min_size=1))
def test_a_cut_id_finds_its_conversation(ids: set[str]) -> None:
    for whole, cut in short_ids(ids, at_least=1).items():
        assert find_conversation(cut, sorted(ids)) == whole
