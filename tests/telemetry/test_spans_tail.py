from __future__ import annotations

import json
import pathlib

from conserve_server.telemetry import names
from conserve_server.telemetry.rotating import RotatingFile
from conserve_server.telemetry.spans_tail import SpansTail


def line(span_id: str, conversation_id: str = "conv-1") -> str:
    span = {
        "spanId": span_id,
        "name": "conserve.turn",
        "startTimeUnixNano": "1",
        "endTimeUnixNano": "2",
        "attributes": [{"key": names.CONVERSATION_ID, "value": {"stringValue": conversation_id}}],
    }
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}) + "\n"


def ids(tail: SpansTail) -> list[str]:
    return [span.span_id for span in tail.look()]


def test_each_span_is_given_once(tmp_path: pathlib.Path) -> None:
    tail = SpansTail(tmp_path)
    assert ids(tail) == []
    file = tmp_path / "gateway-1.jsonl"
    file.write_text(line("a") + line("b"))
    assert ids(tail) == ["a", "b"]
    assert ids(tail) == []
    with file.open("a") as more:
        more.write(line("c"))
    assert ids(tail) == ["c"]


def test_a_line_without_its_end_waits_for_it(tmp_path: pathlib.Path) -> None:
    tail = SpansTail(tmp_path)
    file = tmp_path / "gateway-1.jsonl"
    whole = line("a") + line("b")
    for cut in (10, len(line("a")) + 5):
        file.write_text(whole[:cut])
        assert ids(tail) == (["a"] if cut > len(line("a")) else [])
    file.write_text(whole)
    assert ids(tail) == ["b"]


def test_a_rotated_file_is_read_on_and_not_again(tmp_path: pathlib.Path) -> None:
    tail = SpansTail(tmp_path)
    file = RotatingFile(tmp_path / "gateway-1.jsonl", limit_bytes=len(line("a")) * 2)
    for span_id in ("a", "b"):
        file.write(line(span_id))
    file.flush()
    assert ids(tail) == ["a", "b"]
    for span_id in ("c", "d"):
        file.write(line(span_id))
    file.flush()
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    assert ids(tail) == ["c", "d"]
    file.close()


def test_other_conversations_are_passed_over(tmp_path: pathlib.Path) -> None:
    (tmp_path / "agent-1.jsonl").write_text(line("a", "one") + line("b", "two"))
    assert ids(SpansTail(tmp_path, conversation_id="two")) == ["b"]
