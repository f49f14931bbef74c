"""A recorder of spans as the agent and the gateway write them, at times that the test gives."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping

import pytest
from opentelemetry.trace import Span, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.util.types import AttributeValue

from conserve_server.telemetry import names
from conserve_server.telemetry.provider import tracing

T0_NS = 1_700_000_000_000_000_000
ENVIRONMENT = (
    "OTEL_SDK_DISABLED",
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
)

Interval = tuple[float, float]


class Recorder:
    """Two real tracers writing to one folder; times are seconds after `T0_NS`."""

    def __init__(self, folder: pathlib.Path, conversation_id: str = "conv-1") -> None:
        self.folder = folder
        self.conversation_id = conversation_id
        self._agent = tracing("agent")
        self._gateway = tracing("gateway")

    def model_call(self, at: Interval, **attributes: AttributeValue) -> Span:
        shown = {names.OPERATION: "chat", names.REQUEST_MODEL: "smollm2", names.AGENT_NAME: "researcher"}
        return self._write(self._agent.tracer, "chat smollm2", at, {**shown, **attributes})

    def tool(self, name: str, at: Interval, call_id: str, *, error: str | None = None) -> Span:
        shown: dict[str, AttributeValue] = {
            names.OPERATION: "execute_tool",
            names.TOOL_NAME: name,
            names.TOOL_CALL_ID: call_id,
        }
        return self._write(self._agent.tracer, f"execute_tool {name}", at, shown, error=error)

    def turn(
        self,
        index: int,
        at: Interval,
        steps: Mapping[str, Interval],
        attributes: Mapping[str, AttributeValue],
        *,
        parent: Span | None = None,
        error: str | None = None,
        transfer_observed_by: str = "engine",
    ) -> None:
        shown = {names.TURN_INDEX: index, names.TURN_OUTCOME: "completed", **attributes}
        turn = self._write(self._gateway.tracer, names.SPAN_TURN, at, shown, parent=parent, error=error)
        for name, interval in steps.items():
            seen: dict[str, AttributeValue] = (
                {names.TRANSFER_OBSERVED_BY: transfer_observed_by} if name == names.SPAN_TRANSFER else {}
            )
            if name == names.SPAN_ENERGY:
                seen = {names.ENERGY_J: 12.5, names.ENERGY_SOURCE: "modelled"}
            self._write(self._gateway.tracer, name, interval, seen, parent=turn)

    def close(self) -> pathlib.Path:
        """Flush both files; the folder."""
        for each in (self._agent, self._gateway):
            assert each.shutdown()
        return self.folder

    def _write(
        self,
        tracer: Tracer,
        name: str,
        at: Interval,
        attributes: Mapping[str, AttributeValue],
        *,
        parent: Span | None = None,
        error: str | None = None,
    ) -> Span:
        start_ns, end_ns = (T0_NS + round(s * 1e9) for s in at)
        span = tracer.start_span(
            name,
            context=set_span_in_context(parent) if parent is not None else None,
            start_time=start_ns,
            attributes={names.CONVERSATION_ID: self.conversation_id, **attributes},
        )
        if error is not None:
            span.set_attribute(names.ERROR_TYPE, error)
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_ns)
        return span


@pytest.fixture
def trace_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty folder that the environment names as the place for spans."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CONSERVE_TRACE_DIR", str(tmp_path / "traces"))
    return tmp_path / "traces"


@pytest.fixture
def recorder(trace_folder: pathlib.Path) -> Iterator[Recorder]:
    recorder = Recorder(trace_folder)
    yield recorder
    recorder.close()


@pytest.fixture
def researcher(recorder: Recorder) -> pathlib.Path:
    """The folder of a conversation: a first turn with a KV transfer, two tools at once, a pinned turn."""
    call = recorder.model_call((0.0, 3.0))
    recorder.turn(
        1,
        (0.1, 2.9),
        {
            names.SPAN_ADMISSION: (0.1, 0.5),
            names.SPAN_PREFILL: (0.5, 1.5),
            names.SPAN_DECODE: (1.5, 2.9),
            names.SPAN_TRANSFER: (1.5, 1.9),
        },
        {
            names.TURN_PATH: "remote-prefill",
            names.PREFILLER: "prefill-0",
            names.DECODER: "decode-1",
            names.INPUT_TOKENS: 1024,
            names.CACHE_READ_TOKENS: 0,
            names.OUTPUT_TOKENS: 64,
            names.TURN_TTFT_S: 2.0,
        },
        parent=call,
    )
    recorder.tool("search", (3.0, 5.0), "call_1")
    recorder.tool("fetch", (3.1, 6.1), "call_2", error="TimeoutError")
    call = recorder.model_call((6.2, 8.1))
    recorder.turn(
        2,
        (6.3, 8.0),
        {names.SPAN_DECODE: (6.35, 8.0)},
        {
            names.TURN_PATH: "pinned",
            names.DECODER: "decode-1",
            names.INPUT_TOKENS: 1300,
            names.CACHE_READ_TOKENS: 1088,
            names.OUTPUT_TOKENS: 40,
            names.TURN_TTFT_S: 0.25,
        },
        parent=call,
    )
    return recorder.close()
