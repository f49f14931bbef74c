"""Turning on OpenTelemetry for an agent's process."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import pathlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Final

from conserve_sdk._settings import is_disabled, is_set

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_log = logging.getLogger("conserve_sdk")


@dataclass(frozen=True, slots=True)
class _Part:
    """What is turned on once `library` is imported: `function` of `module`, if that is installed.

    `mark` is a name in the library: other packages are called `agents` too.
    """

    library: str
    module: str
    function: str
    mark: str | None = None


_SPANS: Final = (
    # Its `chat` spans keep the OpenAI instrumentation quiet underneath: one tree, no doubles.
    _Part("langchain_core", "opentelemetry.instrumentation.genai.langchain", "LangChainInstrumentor"),
    _Part("openai", "opentelemetry.instrumentation.genai.openai", "OpenAIInstrumentor"),
    _Part(
        "agents", "opentelemetry.instrumentation.genai.openai_agents", "OpenAIAgentsInstrumentor", "Runner"
    ),
)
"""OpenTelemetry's own instrumentations, one a library."""

_BOUNDARIES: Final = (
    _Part("langchain_core", "conserve_integrations.langgraph", "activate"),
    _Part("agents", "conserve_integrations.openai_agents", "activate", "Runner"),
    _Part("pydantic_ai", "conserve_integrations.pydantic_ai", "activate"),
)
"""What tells the gateway of a framework's tools."""


def instrument(service_name: str | None = None) -> pathlib.Path | None:
    """Trace this process and report its tools; the file that spans go to, None where they go elsewhere.

    Sets up a tracer provider unless the process has one: exporting over OTLP/HTTP where the
    standard variables name an endpoint, else as OTLP JSON lines to
    `<trace folder>/<service>-<pid>.jsonl` and its older half `….1.jsonl`, at most 64 MiB
    each. The trace folder is `$CONSERVE_TRACE_DIR`, else `conserve/traces` under
    `$XDG_STATE_HOME`; `OTEL_TRACES_EXPORTER=none` sets up no provider. A provider that is
    there keeps its exporters and gains the conversation on its spans. Then, as each library is
    imported (or has been), what is not active yet is turned on: the official instrumentations
    of OpenAI, LangChain and the OpenAI Agents SDK, Pydantic AI's own, and the tool boundaries
    of LangGraph, the Agents SDK and Pydantic AI. No message content is recorded unless the
    instrumentations' own variables ask for it.

    `service_name` is `$OTEL_SERVICE_NAME`, else the script's name, unless given. Nothing
    happens with `CONSERVE_DISABLED` set, and no spans are made with `OTEL_SDK_DISABLED`. Call
    it once, early; a second call changes nothing.
    """
    if is_disabled():
        return None
    path = None
    if not is_set("OTEL_SDK_DISABLED"):
        path = _ensure_provider(service_name or _default_service_name())
        for part in _SPANS:
            _when_imported(part, _turn_on_spans)
    for part in _BOUNDARIES:
        _when_imported(part, _turn_on)
    return path


def _ensure_provider(service_name: str) -> pathlib.Path | None:
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from conserve_sdk._stamp import sampler_from_environment
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
    provider = TracerProvider(resource=resource, shutdown_on_exit=False, sampler=sampler_from_environment())
    _stamp(provider)
    for exporter in exporters:
        # A process that is killed loses the spans of its last second; OpenTelemetry's default is five.
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
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


def _when_imported(part: _Part, turn_on: Callable[[_Part], None]) -> None:
    """Now, or as soon as the library is there: none is imported for being installed."""
    import wrapt

    def imported(module: ModuleType) -> None:
        if (part.mark is None or hasattr(module, part.mark)) and _is_installed(part.module):
            _guarded(part, turn_on)

    wrapt.register_post_import_hook(imported, part.library)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _guarded(part: _Part, turn_on: Callable[[_Part], None]) -> None:
    """What fails leaves the agent untraced, not broken."""
    try:
        turn_on(part)
    except Exception:  # noqa: BLE001 - a foreign package, anything may come
        _log.warning("could not turn on %s.%s", part.module, part.function, exc_info=True)


def _turn_on(part: _Part) -> None:
    getattr(importlib.import_module(part.module), part.function)()


def _turn_on_spans(part: _Part) -> None:
    """Turn an instrumentation on, unless it is."""
    instrumentor = getattr(importlib.import_module(part.module), part.function)()
    if not instrumentor.is_instrumented_by_opentelemetry:
        # The check asks for distributions that the instrumentation does not need, such as
        # `langchain` where `langchain-core` and `langgraph` are enough.
        instrumentor.instrument(skip_dep_check=True)
