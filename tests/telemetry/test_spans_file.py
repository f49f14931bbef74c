from __future__ import annotations

import json
import pathlib

from conserve_server.telemetry import names
from conserve_server.telemetry.spans_file import read_spans


def line(*spans: dict[str, object], **more: object) -> str:
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}], **more}) + "\n"


def raw(
    conversation_id: str, *, attributes: dict[str, object] | None = None, **more: object
) -> dict[str, object]:
    values = {names.CONVERSATION_ID: {"stringValue": conversation_id}, **(attributes or {})}
    return {
        "spanId": "ab",
        "name": "conserve.turn",
        "startTimeUnixNano": "1",
        "endTimeUnixNano": "2",
        "attributes": [{"key": key, "value": value} for key, value in values.items()],
        **more,
    }


def test_spans_of_both_processes_are_read_back(researcher: pathlib.Path) -> None:
    spans = list(read_spans(researcher))
    assert len(list(researcher.glob("*.jsonl"))) == 2
    assert sorted({span.name for span in spans}) == [
        "chat smollm2",
        "conserve.admission",
        "conserve.decode",
        "conserve.prefill",
        "conserve.transfer",
        "conserve.turn",
        "execute_tool fetch",
        "execute_tool search",
    ]
    assert {span.conversation_id for span in spans} == {"conv-1"}
    (failed,) = (span for span in spans if span.is_error)
    assert failed.text(names.ERROR_TYPE) == "TimeoutError"
    turn = next(span for span in spans if span.name == names.SPAN_TURN)
    assert turn.count(names.INPUT_TOKENS) == 1024
    assert turn.seconds(names.TURN_TTFT_S) == 2.0
    assert turn.start_ns == 1_700_000_000_100_000_000


def test_a_half_written_last_line_is_passed_over(researcher: pathlib.Path) -> None:
    before = len(list(read_spans(researcher)))
    for path in researcher.glob("*.jsonl"):
        whole = path.read_text()
        path.write_text(whole + whole[: len(whole) // 2])
    assert len(list(read_spans(researcher))) == before


def test_unknown_fields_and_lines_of_other_signals_are_passed_over(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        line(raw("conv-1", droppedLinksCount=3), newField={"deep": []})
        + '{"resourceMetrics":[]}\n[1]\nnull\nnot json\n{"resourceSpans":{"not":"a list"}}\n'
        + line({"name": "without times"}, raw("conv-1", startTimeUnixNano="later"))
    )
    assert len(list(read_spans(tmp_path))) == 1


def test_only_attributes_that_have_a_name_of_ours_are_kept(tmp_path: pathlib.Path) -> None:
    attributes: dict[str, object] = {
        "gen_ai.input.messages": {"stringValue": "a long prompt"},
        names.EMULATED: {"boolValue": True},
        names.TURN_TTFT_S: {"intValue": "2"},
        names.AGENT_NAME: {"arrayValue": {"values": []}},
    }
    (tmp_path / "a.jsonl").write_text(line(raw("conv-1", attributes=attributes)))
    (span,) = read_spans(tmp_path)
    assert span.attributes == {
        names.CONVERSATION_ID: "conv-1",
        names.EMULATED: True,
        names.TURN_TTFT_S: 2,
    }


def test_one_conversations_spans_are_picked_out_of_a_batch(tmp_path: pathlib.Path) -> None:
    wanted = 'quote" and \\ backslash'
    (tmp_path / "a.jsonl").write_text(line(raw(wanted), raw(wanted + "2"), raw("other")) + line(raw("other")))
    assert [span.conversation_id for span in read_spans(tmp_path, conversation_id=wanted)] == [wanted]


def test_spans_without_a_conversation_are_left_out(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.jsonl").write_text(line({**raw("x"), "attributes": []}))
    assert list(read_spans(tmp_path)) == []
