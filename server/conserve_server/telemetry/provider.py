"""Where the gateway's spans go: a collector, a folder of JSON lines, or nowhere.

Decided by OpenTelemetry's standard environment variables. No global provider is set: what
`tracing` returns is passed along.
"""

from __future__ import annotations

import os
import pathlib
import threading
from dataclasses import dataclass
from typing import IO, cast

from opentelemetry.exporter.otlp.json.file import FileSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NoOpTracer, Tracer

from conserve_sdk.protocol import trace_dir
from conserve_server.core.errors import ConfigError
from conserve_server.telemetry.rotating import RotatingFile
from conserve_server.telemetry.sampling import sampler_from_environment

_SCOPE = "conserve_server"
FILE_DELAY_MS = 1000
"""A process that is killed loses the spans of its last second; OpenTelemetry's own default is five."""
_EXPORTER = "OTEL_TRACES_EXPORTER"
_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
_SENT = frozenset({"otlp", "otlp_proto_http"})
_KEPT = "otlp_json_file"
_TRACES_PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"


@dataclass(frozen=True, slots=True)
class Tracing:
    """A tracer, and a line for the log that says where its spans go. End it with `shutdown`."""

    tracer: Tracer
    destination: str
    _provider: TracerProvider | None = None
    _file: RotatingFile | None = None

    def shutdown(self, timeout_s: float = 5.0) -> bool:
        """Write out what is queued; True if that was done within `timeout_s`.

        The SDK's own bound is 30 s (a collector that does not answer is tried again), too
        long for a server that was told to stop. What is left then is lost.
        """
        if self._provider is None:
            return True
        flush = threading.Thread(target=self._provider.shutdown, name="conserve-trace-flush", daemon=True)
        flush.start()
        flush.join(timeout_s)
        if flush.is_alive():
            return False
        if self._file is not None:
            self._file.close()
        return True


def tracing(service_name: str) -> Tracing:
    """A tracer for the process called `service_name`, as the environment says.

    Raises ConfigError where the environment asks for what is not there.
    """
    wanted = _wanted_exporters()
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Tracing(NoOpTracer(), "spans are not recorded (OTEL_SDK_DISABLED is true)")
    if "none" in wanted:
        return Tracing(NoOpTracer(), f"spans are not recorded ({_EXPORTER} is none)")
    is_sent = bool(wanted & _SENT) or (not wanted and (_is_set(_ENDPOINT) or _is_set(_TRACES_ENDPOINT)))
    provider, places, file = _provider(service_name), [], None
    if is_sent:
        places.append(_send(provider))
    if not is_sent or _KEPT in wanted:
        place, file = _keep(provider, service_name, trace_dir())
        places.append(place)
    return Tracing(provider.get_tracer(_SCOPE), f"spans are {' and '.join(places)}", provider, file)


def _wanted_exporters() -> set[str]:
    """The names in OTEL_TRACES_EXPORTER, which separates them by commas."""
    wanted = {name.strip().lower() for name in os.environ.get(_EXPORTER, "").split(",")} - {""}
    unknown = sorted(wanted - {"none", _KEPT} - _SENT)
    if unknown:
        raise ConfigError(
            f"{_EXPORTER}={','.join(unknown)} is not supported: set otlp, {_KEPT}, both, or none"
        )
    return wanted


def _send(provider: TracerProvider) -> str:
    """Export to the collector that the environment names; the words that say so."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    name = _TRACES_PROTOCOL if _is_set(_TRACES_PROTOCOL) else _PROTOCOL
    protocol = os.environ.get(name, "").strip().lower()
    if protocol not in ("", "http/protobuf"):
        raise ConfigError(
            f"{name}={protocol} is not supported: set it to http/protobuf, "
            "and the endpoint to the collector's OTLP/HTTP port (4318 as a rule)"
        )
    endpoint = os.environ.get(_TRACES_ENDPOINT) or os.environ.get(_ENDPOINT) or "http://localhost:4318"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return f"sent by OTLP/HTTP to {endpoint}"


def _keep(provider: TracerProvider, service_name: str, folder: pathlib.Path) -> tuple[str, RotatingFile]:
    """Export to a file of this process in `folder`; the words that say so, and the file."""
    path = folder / f"{service_name}-{os.getpid()}.jsonl"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = RotatingFile(path)
    except OSError as error:
        raise ConfigError(
            f"spans can't be written to {path} ({error.strerror}): "
            f"set CONSERVE_TRACE_DIR to a folder that can be written, or {_EXPORTER}=none"
        ) from error
    # The exporter writes lines, flushes, and asks whether it is closed: no more of IO is needed.
    exporter = FileSpanExporter(stream=cast(IO[str], file))
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=FILE_DELAY_MS))
    return f"written to {path} (see `conserve trace`)", file


def _provider(service_name: str) -> TracerProvider:
    # What the user says in OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES wins over our name.
    resource = Resource.create({SERVICE_NAME: service_name}).merge(OTELResourceDetector().detect())
    return TracerProvider(resource=resource, shutdown_on_exit=False, sampler=sampler_from_environment())


def _is_set(name: str) -> bool:
    return bool(os.environ.get(name, "").strip())
