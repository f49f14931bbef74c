"""Which conversations are traced: the same ones for the agent and for the gateway, each whole."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased
from opentelemetry.trace import SpanContext, TraceFlags

from conserve_sdk.protocol import is_kept, kept_share
from conserve_server.core.errors import ConfigError
from conserve_server.telemetry import names
from conserve_server.telemetry.provider import tracing
from conserve_server.telemetry.sampling import ConversationSampler
from conserve_server.telemetry.spans import TurnTrace, write_conversation_span

SHARE = 0.5
KEPT = next(f"c-{n}" for n in count() if is_kept(f"c-{n}", SHARE))
DROPPED = next(f"c-{n}" for n in count() if not is_kept(f"c-{n}", SHARE))
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0{}"


def fail(error: Exception) -> None:
    raise error


def trace_turn(conversation_id: str, carrier: Mapping[str, str]) -> list[str]:
    """The names of the spans that are left of a turn with one step."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(ConversationSampler(SHARE)))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace = TurnTrace(provider.get_tracer("test"), carrier, conversation_id, {}, fail)
    with trace.step(names.SPAN_DECODE, {}):
        pass
    trace.end({}, error_type=None, message=None)
    write_conversation_span(
        provider.get_tracer("test"), conversation_id, {}, turns=[trace.span_context], start_ns=1, end_ns=2
    )
    return [span.name for span in exporter.get_finished_spans()]


WHOLE = [names.SPAN_DECODE, names.SPAN_TURN, names.SPAN_CONVERSATION]


def test_a_conversation_is_kept_or_dropped_whole() -> None:
    assert trace_turn(KEPT, {}) == WHOLE
    assert trace_turn(DROPPED, {}) == []


def test_the_clients_decision_holds_whatever_the_id_says() -> None:
    assert trace_turn(DROPPED, {"traceparent": PARENT.format(1)}) == WHOLE
    assert trace_turn(KEPT, {"traceparent": PARENT.format(0)}) == []


def test_a_summary_follows_the_turns_that_it_links_to() -> None:
    sampler = ConversationSampler(0.0)
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    turn = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    write_conversation_span(provider.get_tracer("t"), KEPT, {}, turns=[turn], start_ns=1, end_ns=2)
    assert [span.name for span in exporter.get_finished_spans()] == [names.SPAN_CONVERSATION]


@given(st.text(min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_what_a_smaller_share_keeps_a_larger_one_keeps_too(text: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert is_kept(text, large) or not is_kept(text, small)
    assert is_kept(text, 1.0)
    assert not is_kept(text, 0.0)


def test_the_share_is_about_what_was_asked_for() -> None:
    kept = sum(is_kept(f"conversation-{n}", 0.25) for n in range(4000))
    assert 900 < kept < 1100


@pytest.mark.parametrize("text", ["1.5", "-0.1", "some", "nan"])
def test_a_share_that_is_none_is_refused_with_the_range(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        kept_share(text)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "conserve_conversation")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", text)
    with pytest.raises(ConfigError, match="OTEL_TRACES_SAMPLER_ARG"):
        tracing("gateway")


def test_the_gateways_provider_takes_the_sampler_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "conserve_conversation")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    monkeypatch.setenv("CONSERVE_TRACE_DIR", str(tmp_path))
    found = tracing("gateway")
    kept = TurnTrace(found.tracer, {}, KEPT, {}, fail)
    dropped = TurnTrace(found.tracer, {}, DROPPED, {}, fail)
    assert kept.span_context.trace_flags.sampled
    assert not dropped.span_context.trace_flags.sampled
    assert found.shutdown()
