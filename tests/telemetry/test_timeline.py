from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import pytest
from opentelemetry.util.types import AttributeValue

from conserve_sdk.protocol import Outcome, Path
from conserve_server.telemetry import names
from conserve_server.telemetry.spans_file import Span, read_spans
from conserve_server.telemetry.timeline import Phase, Segment, Timeline, ToolRow, TurnRow, rows_of, timeline

if TYPE_CHECKING:
    from tests.telemetry.conftest import Recorder


def read(folder: pathlib.Path, conversation_id: str = "conv-1") -> Timeline:
    return timeline(conversation_id, read_spans(folder, conversation_id=conversation_id))


def rounded(segment: Segment) -> tuple[Phase, float, float]:
    return segment.phase, round(segment.start_s, 6), round(segment.end_s, 6)


def test_a_first_turn_shows_where_its_time_went(researcher: pathlib.Path) -> None:
    turn = read(researcher).turns[0]
    assert [rounded(segment) for segment in turn.segments] == [
        (Phase.WAIT, 0.0, 0.4),
        (Phase.PREFILL, 0.4, 1.4),
        (Phase.TRANSFER, 1.4, 1.8),
        (Phase.DECODE, 1.8, 2.8),
    ]
    assert (turn.index, turn.path, turn.prefiller, turn.decoder) == (
        1,
        Path.REMOTE_PREFILL,
        "prefill-0",
        "decode-1",
    )
    assert (turn.prompt_tokens, turn.cached_tokens, turn.output_tokens) == (1024, 0, 64)
    assert (turn.ttft_s, turn.outcome) == (2.0, Outcome.COMPLETED)


def test_the_agents_model_call_is_not_a_second_turn(researcher: pathlib.Path) -> None:
    shown = read(researcher)
    assert [turn.index for turn in shown.turns] == [1, 2]
    assert (shown.agent, shown.model) == ("researcher", "smollm2")


def test_the_agent_that_the_sdk_stamped_goes_before_one_of_the_framework(recorder: Recorder) -> None:
    recorder.model_call((0.0, 1.0), **{names.AGENT_NAME: "LangGraph"})
    recorder.model_call((1.0, 2.0), **{names.AGENT_NAME: "LangGraph", names.AGENT: "researcher"})
    assert read(recorder.close()).agent == "researcher"


def test_tool_calls_have_rows_of_their_own(researcher: pathlib.Path) -> None:
    search, fetch = read(researcher).tools
    assert (search.name, round(search.start_s, 6), round(search.end_s, 6)) == ("search", 2.9, 4.9)
    assert (fetch.outcome, fetch.error) == (Outcome.FAILED, "TimeoutError")


def test_totals_come_from_the_rows(researcher: pathlib.Path) -> None:
    shown = read(researcher)
    assert shown.start_unix_s == pytest.approx(1_700_000_000.1)
    assert shown.duration_s == pytest.approx(7.9)
    assert (shown.decoders, shown.kv_transfers) == (("decode-1",), 1)


def test_time_to_first_effective_token_leaves_tool_time_out(researcher: pathlib.Path) -> None:
    assert read(researcher).ttfet_s == pytest.approx(2.8 + 0.25)


def turn_row(start_s: float, end_s: float, ttft_s: float | None) -> TurnRow:
    return TurnRow(1, start_s, end_s, Outcome.COMPLETED, ttft_s=ttft_s)


@pytest.mark.parametrize(
    ("turns", "ttfet_s"),
    [
        ((), None),
        ((turn_row(0, 2, None),), None),
        ((turn_row(0, 2, 0.5),), 0.5),
        ((turn_row(0, 4, 1.0), turn_row(1, 3, 0.5)), 1.5),
        ((turn_row(0, 4, 1.0), turn_row(6, 9, 2.0)), 6.0),
    ],
)
def test_overlapping_turns_count_once_for_the_first_effective_token(
    turns: tuple[TurnRow, ...], ttfet_s: float | None
) -> None:
    assert Timeline("conv-1", 0.0, turns=turns).ttfet_s == ttfet_s


def test_without_a_gateway_a_model_call_is_a_turn(recorder: Recorder) -> None:
    recorder.model_call((0.0, 1.0), **{names.INPUT_TOKENS: 10})
    (turn,) = read(recorder.close()).turns
    assert (turn.index, turn.segments, turn.prompt_tokens) == (None, (), 10)


def test_a_tool_call_that_two_layers_timed_is_shown_once(recorder: Recorder) -> None:
    recorder.tool("search", (0.0, 1.0), "call_1")
    recorder.tool("search", (0.1, 0.9), "call_1")
    recorder.tool("search", (1.0, 2.0), "call_2")
    assert [tool.start_s for tool in read(recorder.close()).tools] == [0.0, 1.0]


def test_a_transfer_seen_only_by_the_first_token_is_a_bound(recorder: Recorder) -> None:
    steps = {names.SPAN_DECODE: (0.0, 2.0), names.SPAN_TRANSFER: (0.0, 0.5)}
    recorder.turn(1, (0.0, 2.0), steps, {}, transfer_observed_by="first_token")
    (turn,) = read(recorder.close()).turns
    assert [segment.is_bound for segment in turn.segments] == [True, False]


def test_a_turn_that_was_placed_again_has_two_decoders(recorder: Recorder) -> None:
    for index, decoder in enumerate(["decode-0", "decode-0", "decode-1"]):
        recorder.turn(index + 1, (index, index + 0.5), {}, {names.DECODER: decoder})
    assert read(recorder.close()).decoders == ("decode-0", "decode-1")


def test_how_a_turn_ended_is_what_the_gateway_says(recorder: Recorder) -> None:
    said = {names.TURN_OUTCOME: "cancelled"}
    recorder.turn(1, (0.0, 1.0), {}, said, error="CancelledError")
    recorder.turn(2, (1.0, 2.0), {}, {names.TURN_OUTCOME: "unheard of"}, error="engine_timeout")
    first, second = read(recorder.close()).turns
    assert (first.outcome, second.outcome) == (Outcome.CANCELLED, Outcome.FAILED)
    assert second.error == "engine_timeout"


def test_what_kind_of_conversation_it_is_comes_along(recorder: Recorder) -> None:
    flags: dict[str, AttributeValue] = {
        names.SYNTHETIC: True,
        names.EMULATED: True,
        names.PARENT_CONVERSATION_ID: "conv-0",
    }
    recorder.turn(1, (0.0, 1.0), {}, flags)
    shown = read(recorder.close())
    assert (shown.is_synthetic, shown.is_emulated, shown.parent_id) == (True, True, "conv-0")


def test_the_last_turns_bring_the_tools_between_them() -> None:
    tools = tuple(ToolRow(name, at, at + 1, Outcome.COMPLETED) for name, at in (("a", 1.0), ("b", 3.0)))
    turns = (turn_row(0, 1, None), turn_row(2, 3, None), turn_row(4, 5, None))
    whole = Timeline("conv-1", 0.0, turns=turns, tools=tools)
    assert [row.start_s for row in rows_of(whole)] == [0, 1.0, 2, 3.0, 4]
    assert [row.start_s for row in rows_of(whole, last=2)] == [2, 3.0, 4]


def test_a_leg_that_failed_names_its_engine_though_the_turn_was_saved() -> None:
    turn = Span("aa", None, names.SPAN_TURN, 0, 9, {names.TURN_OUTCOME: "completed"})
    failed = {names.PREFILLER: "prefill-0", names.ERROR_TYPE: "engine_lost"}
    leg = Span("bb", "aa", names.SPAN_PREFILL, 1, 2, failed, is_error=True)
    (row,) = timeline("conv-1", [turn, leg]).turns
    (segment,) = row.segments
    assert (row.outcome, segment.engine, segment.error) == (Outcome.COMPLETED, "prefill-0", "engine_lost")


def test_a_turns_joules_are_read_from_the_span_that_comes_after(recorder: Recorder) -> None:
    recorder.turn(1, (0.0, 1.0), {names.SPAN_ENERGY: (0.0, 1.0)}, {})
    recorder.turn(2, (2.0, 3.0), {}, {})
    shown = read(recorder.close())
    assert (shown.turns[0].energy_j, shown.turns[0].energy_source) == (12.5, "modelled")
    assert shown.turns[1].energy_j is None
    assert shown.energy_j is None  # not of all turns
