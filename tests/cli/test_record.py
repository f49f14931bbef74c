from __future__ import annotations

import pathlib

import pytest

from conserve_server.cli.main import main
from conserve_server.simulation.workloads.load import load_workload
from conserve_server.telemetry import names
from conserve_server.telemetry.provider import tracing

T0_NS = 1_700_000_000_000_000_000


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A trace folder with two conversations of two turns each, as the gateway writes it."""
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CONSERVE_TRACE_DIR", str(tmp_path / "traces"))
    started = tracing("gateway")
    for number, conversation_id in enumerate(("alpha", "beta")):
        for turn in (1, 2):
            start_ns = T0_NS + (number * 100 + turn * 10) * 1_000_000_000
            attributes = {
                names.CONVERSATION_ID: conversation_id,
                names.TURN_INDEX: turn,
                names.INPUT_TOKENS: 1000 * turn,
                names.OUTPUT_TOKENS: 50,
            }
            span = started.tracer.start_span(names.SPAN_TURN, start_time=start_ns, attributes=attributes)
            span.end(start_ns + 2_000_000_000)
    assert started.shutdown()
    return tmp_path


def test_what_a_gateway_served_is_written_as_a_workload(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "yesterday.jsonl"
    assert main(["record", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: 2 conversations, 4 turns, 100 s of arrivals\n"
    one, two = load_workload(file).arrivals
    assert (one.at_s, two.at_s) == (0.0, 100.0)
    assert [turn.appended_tokens for turn in one.conversation.turns] == [1000, 950]
    assert one.conversation.turns[1].gap_s == 8.0
    assert "alpha" not in file.read_text()


def test_old_conversations_can_be_left_out(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["record", str(folder / "f.jsonl"), "--since", "1"]) == 1
    assert "no conversation with counted tokens" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_named(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["record", str(tmp_path / "f.jsonl"), "--dir", str(tmp_path / "none")]) == 1
    assert "no trace folder" in capsys.readouterr().err
