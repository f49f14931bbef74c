"""Turning on OpenTelemetry for an agent's process."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import pathlib
import sys
from typing import TYPE_CHECKING, Final

from conserve_sdk._settings import is_disabled, is_set

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_log = logging.getLogger("conserve_sdk")

_INSTRUMENTORS: Final = (
    # Its `chat` spans keep the OpenAI instrumentation quiet underneath: one tree, no doubles.
    ("langchain_core", "opentelemetry.instrumentation.genai.langchain", "LangChainInstrumentor"),
    ("openai", "opentelemetry.instrumentation.genai.openai", "OpenAIInstrumentor"),
)
"""Library, module and class of each official instrumentation that is turned on where installed."""


def instrument(service_name: str | None = None) -> pathlib.Path | None:
    """Trace this process; the file that its spans go to, None where they go elsewhere.

    Sets up a tracer provider unless the process has one: exporting over OTLP/HTTP where the
    standard variables name an endpoint, else as OTLP JSON lines to
    `<trace folder>/<service>-<pid>.jsonl` and its older half `….1.jsonl`, at most 64 MiB
    each. The trace folder is `$CONSERVE_TRACE_DIR`, else `conserve/traces` under
    `$XDG_STATE_HOME`; `OTEL_TRACES_EXPORTER=none` sets up no provider. A provider that is
    there keeps its exporters and gains the conversation on its spans. Then the official
    instrumentations of OpenAI and LangChain are turned on, those that are installed and not
    active; no message content is recorded unless their own variables ask for it.

    `service_name` is `$OTEL_SERVICE_NAME`, else the script's name, unless given. Nothing
    happens with `OTEL_SDK_DISABLED` or `CONSERVE_DISABLED` set. Call it once, early; a
    second call changes nothing.
    """
    if is_disabled() or is_set("OTEL_SDK_DISABLED"):
        return None
    path = _ensure_provider(service_name or _default_service_name())
    for library, module, name in _INSTRUMENTORS:
        if _is_installed(library) and _is_installed(module):
            _activate(module, name)
    return path


def _ensure_provider(service_name: str) -> pathlib.Path | None:
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from conserve_sdk._trace_export import FlushAtExit, span_exporters

    present = trace.get_tracer_provider()
    if isinstance(present, TracerProvider):
        _stamp(present)
        return None
    if not isinstance(present, trace.ProxyTracerProvider):
        _log.warning("spans get no conversation: %s is not the OpenTelemetry SDK's provider", type(present))
        return None
    exporters, path = span_exporters(service_name)
    if not exporters:
        return None
    resource = Resource.create({"service.name": service_name})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    _stamp(provider)
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    FlushAtExit(provider.shutdown)
    trace.set_tracer_provider(provider)
    return path


def _stamp(provider: TracerProvider) -> None:
    """Add the stamp once; the provider itself remembers that it has it."""
    from conserve_sdk._stamp import ConversationStamp

    mark = "_conserve_sdk_stamped"
    if not getattr(provider, mark, False):
        provider.add_span_processor(ConversationStamp())
        setattr(provider, mark, True)


def _default_service_name() -> str:
    return os.environ.get("OTEL_SERVICE_NAME") or pathlib.Path(sys.argv[0]).stem or "agent"


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _activate(module: str, name: str) -> None:
    """Turn an instrumentation on, unless it is; one that fails leaves the agent untraced, not broken."""
    try:
        instrumentor = getattr(importlib.import_module(module), name)()
        if not instrumentor.is_instrumented_by_opentelemetry:
            # The check asks for distributions that the instrumentation does not need, such as
            # `langchain` where `langchain-core` and `langgraph` are enough.
            instrumentor.instrument(skip_dep_check=True)
    except Exception:  # noqa: BLE001 - a foreign package, anything may come
        _log.warning("could not turn on %s.%s", module, name, exc_info=True)
