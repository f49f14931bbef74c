"""Where an agent's spans go, how much disk they may fill, and how long the exit waits for them.

OpenTelemetry's standard variables decide, as they do for the gateway; but what can't be done
is a warning here and never an error: an agent runs on untraced.
"""

from __future__ import annotations

import atexit
import logging
import os
import pathlib
import re
import threading
from collections.abc import Callable, Sequence
from typing import Final

from opentelemetry.exporter.otlp.json.file import FileSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from conserve_sdk.protocol import trace_dir

_log = logging.getLogger("conserve_sdk")

LIMIT_BYTES: Final = 64 * 1024 * 1024
EXIT_WAIT_S: Final = 5.0

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SENT: Final = ("otlp", "otlp_proto_http")
_KEPT: Final = "otlp_json_file"


def span_exporters(service_name: str) -> tuple[list[SpanExporter], pathlib.Path | None]:
    """The exporters that the environment asks for, and the local file if one is; none records nothing."""
    wanted = _wanted()
    if wanted == {"none"}:
        return [], None
    exporters: list[SpanExporter] = []
    if not wanted.isdisjoint(_SENT) or (not wanted and any(_read(variable) for variable in _ENDPOINTS)):
        if _speaks_http():
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporters.append(OTLPSpanExporter())
        else:
            wanted.add(_KEPT)
    if exporters and _KEPT not in wanted:
        return exporters, None
    file, path = _local_file(service_name)
    return [*exporters, file] if file is not None else exporters, path


def _wanted() -> set[str]:
    """The names in OTEL_TRACES_EXPORTER, which separates them by commas."""
    wanted = {name.strip() for name in _read("OTEL_TRACES_EXPORTER").split(",")} - {""}
    if "none" in wanted:
        return {"none"}
    unknown = sorted(wanted - {_KEPT, *_SENT})
    if unknown:
        _log.warning(
            "OTEL_TRACES_EXPORTER=%s is not supported, spans go to a local file: set otlp, %s or none",
            ",".join(unknown),
            _KEPT,
        )
        wanted.add(_KEPT)
    return wanted


def _speaks_http() -> bool:
    """Whether the collector is to be spoken to in the one protocol that is spoken here."""
    name = next((variable for variable in _PROTOCOLS if _read(variable)), _PROTOCOLS[-1])
    if _read(name) in ("", "http/protobuf"):
        return True
    _log.warning(
        "%s=%s is not supported, spans go to a local file: set it to http/protobuf, and the endpoint to the "
        "collector's OTLP/HTTP port (4318 as a rule)",
        name,
        _read(name),
    )
    return False


def _local_file(service_name: str) -> tuple[SpanExporter | None, pathlib.Path | None]:
    folder = trace_dir()
    path = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', service_name)}-{os.getpid()}.jsonl"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return BoundedFileExporter(path), path
    except OSError as error:
        _log.warning(
            "no span is recorded, %s can't be written (%s): set CONSERVE_TRACE_DIR to a folder that can",
            path,
            error.strerror,
        )
        return None, None


def _read(variable: str) -> str:
    return os.environ.get(variable, "").strip().lower()


class BoundedFileExporter(SpanExporter):
    """Writes OTLP JSON lines to `path`; past `limit_bytes` the file becomes `{stem}.1{suffix}`.

    Looked at before each batch, so that at most two files exist, each of `limit_bytes` and
    one batch; a file that was deleted is begun anew. Batches come one at a time.
    """

    def __init__(self, path: pathlib.Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._file = _private_file(path)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Append one line."""
        is_there = self._path.exists()
        if is_there and self._path.stat().st_size < self._limit_bytes:
            return self._file.export(spans)
        self._file.shutdown()
        if is_there:
            self._path.replace(self._path.with_suffix(f".1{self._path.suffix}"))
        self._file = _private_file(self._path)
        return self._file.export(spans)

    def shutdown(self) -> None:
        """Close the file."""
        self._file.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Every batch is flushed as it is written."""
        del timeout_millis
        return True


def _private_file(path: pathlib.Path) -> FileSpanExporter:
    """An exporter to the file, which is its owner's alone where it is new."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    return FileSpanExporter(path)


class FlushAtExit:
    """Calls `flush` when the interpreter exits, which waits for it `wait_s` at most.

    The provider's own bound is 30 s, long for an agent whose work is done. The thread is
    there from the beginning, because an interpreter that exits starts none.
    """

    def __init__(self, flush: Callable[[], object], *, wait_s: float = EXIT_WAIT_S) -> None:
        self._flush = flush
        self._wait_s = wait_s
        self._start()
        os.register_at_fork(after_in_child=self._start)
        atexit.register(self._exit)

    def _start(self) -> None:
        self._is_exiting = threading.Event()
        self._thread = threading.Thread(target=self._run, name="conserve-trace-flush", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._is_exiting.wait()
        self._flush()

    def _exit(self) -> None:
        self._is_exiting.set()
        self._thread.join(self._wait_s)
        if self._thread.is_alive():
            _log.warning("spans that no collector took within %g s are lost", self._wait_s)
