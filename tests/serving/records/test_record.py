"""What the gateway remembers of conversations."""

import pytest

from conserve_sdk.protocol import Outcome, Path, ToolEvent, TurnReport
from conserve_server.core.errors import InvalidRequest
from conserve_server.serving.asked.identity import Identity
from conserve_server.serving.records.record import MAX_TOOLS, MAX_TURNS, ConversationRecord


def record_of(first_arrival_s: float = 0.0) -> ConversationRecord:
    return ConversationRecord(Identity(conversation_id="a", tenant="t", model="m"), first_arrival_s)


def run_turn(record: ConversationRecord, arrived_s: float, first_token_s: float | None, end_s: float) -> None:
    index = record.begin_turn(arrived_s)
    end_turn(record, index, first_token_s, record.gap_s, end_s)


def end_turn(
    record: ConversationRecord, index: int, first_token_s: float | None, gap_s: float, end_s: float
) -> None:
    record.end_turn(index, end_s)
    record.keep_turn(TurnReport(index, Outcome.COMPLETED), first_token_s, gap_s)


def test_ttfet_is_the_last_turns_first_token_since_the_start_without_the_gaps() -> None:
    record = record_of(10.0)
    run_turn(record, 10.0, 12.0, 13.0)
    run_turn(record, 20.0, 20.5, 21.0)  # after a gap of 7 s
    assert record.ttfet_s == pytest.approx(3.5)


def test_overlapping_turns_leave_no_gap() -> None:
    record = record_of()
    first = record.begin_turn(0.0)
    second = record.begin_turn(1.0)
    end_turn(record, first, 0.5, 0.0, 2.0)
    end_turn(record, second, 1.5, 0.0, 3.0)
    assert record.gap_s == 0.0
    assert record.ttfet_s == pytest.approx(1.5)


def test_a_turn_without_a_first_token_does_not_count_as_effective() -> None:
    record = record_of()
    run_turn(record, 0.0, 1.0, 2.0)
    run_turn(record, 2.0, None, 3.0)
    assert record.ttfet_s == pytest.approx(1.0)


def test_only_a_remote_prefill_counts_as_a_transfer() -> None:
    record = record_of()
    record.bind(Path.REMOTE_PREFILL, "d0")
    record.bind(Path.LOCAL_PREFILL, "d1")
    assert (record.kv_transfers, record.decoders) == (1, ["d0", "d1"])


def test_a_tool_end_without_its_start_counts() -> None:
    record = record_of()
    record.note_tool(ToolEvent("end", "c1", "search", duration_s=0.2, outcome=Outcome.COMPLETED))
    record.note_tool(ToolEvent("start", "c1", "search"))
    assert record.tools["c1"].duration_s == 0.2


def test_tool_calls_beyond_the_limit_are_refused_and_known_ones_still_end() -> None:
    record = record_of()
    for number in range(MAX_TOOLS):
        record.note_tool(ToolEvent("start", str(number), "search"))
    with pytest.raises(InvalidRequest, match="tool calls already"):
        record.note_tool(ToolEvent("start", "one more", "search"))
    record.note_tool(ToolEvent("end", "0", "search", duration_s=0.1))
    assert record.tools["0"].duration_s == 0.1


def test_reports_of_the_latest_turns_are_kept_and_all_are_counted() -> None:
    record = record_of()
    for _ in range(MAX_TURNS + 5):
        index = record.begin_turn(0.0)
        record.end_turn(index, 1.0)
        record.keep_turn(TurnReport(index, Outcome.COMPLETED, prompt_tokens=2, cached_tokens=1), None, 0.0)
    report = record.report(state="active", reserved_kv_tokens=0)
    assert (len(report.turns), report.turns[0].index, report.turns_forgotten) == (MAX_TURNS, 6, 5)
    assert f"{MAX_TURNS + 5} turns" in str(report)
    sums = record.sums
    assert (sums.turns, sums.prompt_tokens, sums.cached_share) == (MAX_TURNS + 5, 2 * MAX_TURNS + 10, 0.5)
