"""Where spans go, how much disk they fill, and how long the exit waits for them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from conserve_sdk._trace_export import BoundedFileExporter, span_exporters
from tests.processes import LIMIT_S

VARIABLES = (
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CONSERVE_TRACE_DIR", str(tmp_path / "state" / "traces"))
    return tmp_path / "state" / "traces"


def names_in(path: Path) -> list[str]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [s["name"] for n in lines for r in n["resourceSpans"] for o in r["scopeSpans"] for s in o["spans"]]


def record(exporter: BoundedFileExporter, *names: str) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for name in names:
        provider.get_tracer("t").start_span(name).end()


def test_at_most_two_files_are_kept_and_lines_stay_whole(tmp_path: Path) -> None:
    exporter = BoundedFileExporter(tmp_path / "agent-7.jsonl", limit_bytes=1)
    record(exporter, "first", "second", "third")
    exporter.shutdown()
    assert {p.name: names_in(p) for p in tmp_path.iterdir()} == {
        "agent-7.1.jsonl": ["second"],
        "agent-7.jsonl": ["third"],
    }


def test_below_the_limit_one_file_takes_all(tmp_path: Path) -> None:
    exporter = BoundedFileExporter(tmp_path / "agent-7.jsonl", limit_bytes=1_000_000)
    record(exporter, "first", "second")
    assert exporter.force_flush()
    (path,) = tmp_path.iterdir()
    assert names_in(path) == ["first", "second"]
    exporter.shutdown()


def test_a_file_that_was_deleted_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "agent-7.jsonl"
    exporter = BoundedFileExporter(path)
    record(exporter, "first")
    path.unlink()
    record(exporter, "second")
    exporter.shutdown()
    assert names_in(path) == ["second"]


def test_the_folder_is_the_users_alone(folder: Path) -> None:
    (exporter,), path = span_exporters("my agent")
    exporter.shutdown()
    assert path is not None
    assert path.parent == folder
    assert path.name.startswith("my_agent-")
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("value", ["none", " None "])
def test_none_records_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", value)
    assert span_exporters("agent") == ([], None)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"), ("OTEL_TRACES_EXPORTER", "otlp")],
)
def test_a_collector_gets_the_spans_and_no_file_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    (exporter,), path = span_exporters("agent")
    assert isinstance(exporter, OTLPSpanExporter)
    assert path is None
    assert not folder.exists()


def test_both_may_be_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp, otlp_json_file")
    (sent, kept), path = span_exporters("agent")
    assert isinstance(sent, OTLPSpanExporter)
    kept.shutdown()
    assert path is not None
    assert path.parent == folder


def test_a_file_may_be_asked_for_beside_an_endpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp_json_file")
    (exporter,), path = span_exporters("agent")
    exporter.shutdown()
    assert path is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
    ],
)
def test_what_is_not_supported_is_a_warning_and_a_local_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setenv(name, value)
    (exporter,), path = span_exporters("agent")
    exporter.shutdown()
    assert path is not None
    assert f"{name}={value} is not supported, spans go to a local file: set" in caplog.text


def test_a_folder_that_cannot_be_written_is_a_warning_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CONSERVE_TRACE_DIR", str(tmp_path / "file" / "traces"))
    assert span_exporters("agent") == ([], None)
    assert "set CONSERVE_TRACE_DIR to a folder that can" in caplog.text


# -- a process of its own ----------------------------------------------------------------

_AGENT = """
import sys
import conserve_sdk as conserve
conserve.instrument("agent")
with conserve.conversation("c-1") as conversation, conversation.tool("search"):
    pass
print("done", flush=True)
"""
_FORKS = (
    _AGENT
    + """
import os
if os.fork() == 0:
    with conserve.conversation("c-2").tool("in the child"):
        pass
    sys.exit()
os.wait()
"""
)


def run(program: str, **environment: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """How long the program took after its last line, and how it ended."""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        started_s = time.monotonic()
        rest, errors = process.communicate(timeout=LIMIT_S)
        took_s = time.monotonic() - started_s
    return took_s, subprocess.CompletedProcess(process.args, process.returncode, first + rest, errors)


@pytest.mark.slow
def test_the_exit_does_not_wait_long_for_a_collector_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        took_s, ended = run(_AGENT, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert ended.returncode == 0
    assert "spans that no collector took within 5 s are lost" in ended.stderr
    assert 4.5 < took_s < 8.0


@pytest.mark.slow
def test_the_exit_does_not_wait_long_where_nothing_listens() -> None:
    took_s, ended = run(_AGENT, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr
    assert took_s < 8.0


@pytest.mark.slow
def test_spans_of_a_forked_child_are_written_too(folder: Path) -> None:
    _, ended = run(_FORKS, CONSERVE_TRACE_DIR=str(folder))
    assert (ended.returncode, ended.stderr) == (0, "")
    (path,) = folder.iterdir()
    assert sorted(names_in(path)) == ["execute_tool in the child", "execute_tool search"]


@pytest.mark.slow
def test_an_agent_whose_spans_cannot_be_written_runs_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    _, ended = run(_AGENT, CONSERVE_TRACE_DIR=str(tmp_path / "file"))
    assert (ended.returncode, ended.stdout) == (0, "done\n")
    assert "no span is recorded" in ended.stderr
