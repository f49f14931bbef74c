from __future__ import annotations

import json
import pathlib

import pytest

from conserve_server.cli.main import main
from conserve_server.telemetry import names
from conserve_server.telemetry.provider import tracing

T0_NS = 1_700_000_000_000_000_000


def conserve(*arguments: str) -> int:
    return main(["trace", *arguments])


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A trace folder with three conversations of two turns each, 100 s apart."""
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CONSERVE_TRACE_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    started = tracing("gateway")
    for number, conversation_id in enumerate(("alpha-1", "alpha-2", "beta")):
        for turn in (1, 2):
            start_ns = T0_NS + (number * 100 + turn) * 1_000_000_000
            attributes = {names.CONVERSATION_ID: conversation_id, names.TURN_INDEX: turn}
            span = started.tracer.start_span(names.SPAN_TURN, start_time=start_ns, attributes=attributes)
            span.end(start_ns + 500_000_000)
    assert started.shutdown()
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_without_a_conversation_they_are_listed_latest_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert conserve() == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["beta", "alpha-2", "alpha-1"]
    assert rows[0].split()[1:4] == ["-", "2", "0"]
    assert rows[0].split()[-2:] == ["1.50", "s"]


@pytest.mark.usefixtures("folder")
def test_the_list_is_cut_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert conserve("--last", "1") == 0
    out = capsys.readouterr().out
    assert "beta" in out
    assert "alpha" not in out
    assert "(1 of 3 conversations; --last N shows more)" in out


@pytest.mark.usefixtures("folder")
def test_the_beginning_of_an_id_draws_its_timeline(capsys: pytest.CaptureFixture[str]) -> None:
    assert conserve("be") == 0
    out = capsys.readouterr().out
    assert out.startswith("conversation beta\n")
    assert "turn 1" in out
    assert "\x1b" not in out


@pytest.mark.usefixtures("folder")
def test_json_holds_the_same_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert conserve("beta", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["conversation_id"], document["duration_s"], document["kv_transfers"]) == ("beta", 1.5, 0)
    assert [turn["index"] for turn in document["turns"]] == [1, 2]
    assert conserve("--json", "--last", "2") == 0
    assert [line["id"] for line in json.loads(capsys.readouterr().out)] == ["beta", "alpha-2"]


def test_another_folder_can_be_named(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONSERVE_TRACE_DIR", str(folder / "elsewhere"))
    assert conserve("--dir", str(folder)) == 0
    assert "beta" in capsys.readouterr().out


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("alpha", "conserve trace: 2 conversations begin with 'alpha', type more of one: alpha-2, alpha-1\n"),
        ("alhpa-1", "conserve trace: no conversation 'alhpa-1'; near it: alpha-1, alpha-2\n"),
    ],
)
def test_what_is_not_there_is_an_error_that_helps(
    wanted: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert conserve(wanted) == 1
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_or_missing_folder_is_named(
    exists: bool, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "traces"
    if exists:
        folder.mkdir()
    assert conserve("--dir", str(folder)) == 1
    err = capsys.readouterr().err
    assert ("no conversation in" if exists else "no trace folder") in err
    assert str(folder) in err


def test_none_and_fewer_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        conserve("--last", "0")
    assert "must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_the_last_conversations_are_written_for_perfetto(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "trace.json"
    assert conserve("--perfetto", str(to), "--last", "2") == 0
    assert "2 conversations" in capsys.readouterr().out
    events = json.loads(to.read_text())["traceEvents"]
    names_ = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert names_ == ["conversation beta", "conversation alpha-2"]


@pytest.mark.usefixtures("folder")
def test_a_perfetto_file_that_cannot_be_written_is_named(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert conserve("beta", "--perfetto", str(tmp_path / "none" / "trace.json")) == 1
    assert "trace.json: No such file or directory; name another file" in capsys.readouterr().err
