from __future__ import annotations

import asyncio
import pathlib

import pytest

from conserve_server.cli.main import main
from conserve_server.simulation.live.replay import replay
from conserve_server.simulation.live.token_client import connected
from conserve_server.simulation.workload import Arrival, ConversationShape, TurnShape, Workload
from conserve_server.simulation.workloads.load import load_workload
from conserve_server.telemetry import names
from conserve_server.telemetry.provider import tracing
from tests.gateway.conftest import served

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


SERVED = Workload(
    "w",
    tuple(
        Arrival(0.05 * number, ConversationShape(name, (TurnShape(120, 4), TurnShape(30, 3, gap_s=0.1))))
        for number, name in enumerate(("secret-a", "secret-b"))
    ),
)


async def test_a_running_gateway_is_recorded_while_it_serves(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "now.jsonl"
    async with served() as gateway, connected(gateway.url) as client:
        arguments = ["record", str(file), "--url", gateway.url, "--seconds", "1.5"]
        status, _ = await asyncio.gather(asyncio.to_thread(main, arguments), replay(SERVED, client))
    assert status == 0
    assert f"{file}: 2 conversations, 4 turns" in capsys.readouterr().out
    one, two = load_workload(file).arrivals
    assert [(t.appended_tokens, t.output_tokens) for t in one.conversation.turns] == [(120, 4), (30, 3)]
    assert one.conversation.turns[1].gap_s >= 0.1
    assert 0.0 < two.at_s < 1.0
    assert "secret" not in file.read_text()


async def test_a_gateway_that_served_nothing_gives_no_file(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "f.jsonl"
    async with served() as gateway:
        arguments = ["record", str(file), "--url", gateway.url, "--seconds", "0.3"]
        assert await asyncio.to_thread(main, arguments) == 1
    assert "told of no turn" in capsys.readouterr().err
    assert not file.exists()


def test_a_gateway_that_is_not_there_is_named(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["record", str(tmp_path / "f"), "--url", "http://127.0.0.1:9"]) == 1
    assert "no gateway to watch at http://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--url", "http://127.0.0.1:9", "--since", "1"], ["--seconds", "3"]])
def test_options_that_do_not_go_together_are_refused(
    options: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["record", str(tmp_path / "f"), *options]) == 2
    assert "--url" in capsys.readouterr().err
