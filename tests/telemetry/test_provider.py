from __future__ import annotations

import os
import pathlib
import socket
import threading
from collections.abc import Iterator

import pytest
from opentelemetry import trace

from conserve_server.core.errors import ConfigError
from conserve_server.telemetry.provider import Tracing, tracing
from conserve_server.telemetry.spans_file import read_spans
from tests.otlp import Collector

pytestmark = pytest.mark.usefixtures("trace_folder")


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def record(tracing: Tracing) -> bool:
    with tracing.tracer.start_as_current_span(
        "conserve.turn", attributes={"gen_ai.conversation.id": "conv-1"}
    ):
        pass
    return tracing.shutdown()


def test_without_a_collector_spans_go_to_a_file_of_this_process(trace_folder: pathlib.Path) -> None:
    started = tracing("gateway")
    path = trace_folder / f"gateway-{os.getpid()}.jsonl"
    assert started.destination == f"spans are written to {path} (see `conserve trace`)"
    assert record(started)
    assert [span.name for span in read_spans(trace_folder)] == ["conserve.turn"]
    assert b'"gateway"' in path.read_bytes()


def test_the_folder_is_the_users_alone(trace_folder: pathlib.Path) -> None:
    tracing("gateway").shutdown()
    assert trace_folder.stat().st_mode & 0o077 == 0


def test_the_users_own_service_name_wins(trace_folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "gateway-of-team-7")
    assert record(tracing("gateway"))
    (path,) = trace_folder.iterdir()
    assert b'"gateway-of-team-7"' in path.read_bytes()


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("OTEL_EXPORTER_OTLP_ENDPOINT", ""), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "/v1/traces")],
)
def test_an_endpoint_gets_the_spans_and_no_file_is_written(
    name: str,
    suffix: str,
    collector: Collector,
    trace_folder: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(name, collector.url + suffix)
    started = tracing("gateway")
    assert started.destination == f"spans are sent by OTLP/HTTP to {collector.url + suffix}"
    assert record(started)
    ((path, body),) = collector.posts
    assert path == "/v1/traces"
    assert b"conserve.turn" in body
    assert not trace_folder.exists()


def test_a_collector_and_a_file_may_both_be_asked_for(
    collector: Collector, trace_folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp,otlp_json_file")
    started = tracing("gateway")
    assert f"sent by OTLP/HTTP to {collector.url} and written to {trace_folder}" in started.destination
    assert record(started)
    assert len(collector.posts) == 1
    assert [span.name for span in read_spans(trace_folder)] == ["conserve.turn"]


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"])
def test_another_protocol_is_refused_with_the_fix(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4317")
    monkeypatch.setenv(name, "grpc")
    with pytest.raises(ConfigError, match=rf"{name}=grpc is not supported: set it to http/protobuf"):
        tracing("gateway")


def test_another_exporter_is_refused_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(ConfigError, match="zipkin is not supported: set otlp, otlp_json_file, both, or none"):
        tracing("gateway")


@pytest.mark.parametrize(("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_switched_off_nothing_is_recorded(
    name: str, value: str, trace_folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    started = tracing("gateway")
    assert name in started.destination
    with started.tracer.start_as_current_span("conserve.turn") as span:
        assert not span.is_recording()
    assert started.shutdown()
    assert not trace_folder.exists()


def test_a_folder_that_cannot_be_written_is_named_with_the_fix(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONSERVE_TRACE_DIR", str(tmp_path / "file" / "traces"))
    with pytest.raises(ConfigError, match="set CONSERVE_TRACE_DIR to a folder that can be written"):
        tracing("gateway")


def test_shutdown_does_not_wait_for_a_collector_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        started = tracing("gateway")
        started.tracer.start_span("conserve.turn").end()
        assert not started.shutdown(timeout_s=0.05)
    for thread in threading.enumerate():
        if thread.name == "conserve-trace-flush":
            thread.join(10)


def test_the_global_provider_is_left_alone() -> None:
    before = trace.get_tracer_provider()
    tracing("gateway").shutdown()
    assert trace.get_tracer_provider() is before
