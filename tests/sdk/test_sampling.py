"""Which conversations an agent's process traces: each whole, sub-agents with the one around them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import conserve_sdk as conserve
from conserve_sdk._stamp import ConversationSampler, sampler_from_environment
from conserve_sdk.protocol import is_kept
from tests.sdk.conftest import FakeModel, _uninstrument

SHARE = 0.5
KEPT = next(f"c-{n}" for n in count() if is_kept(f"c-{n}", SHARE))
DROPPED = next(f"c-{n}" for n in count() if not is_kept(f"c-{n}", SHARE))


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ConversationSampler(SHARE))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    conserve.instrument()
    yield exporter
    provider.shutdown()
    _uninstrument()


def names_of(exporter: InMemorySpanExporter) -> list[str]:
    return sorted(span.name for span in exporter.get_finished_spans())


def converse(conversation_id: str, model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    with conserve.conversation(conversation_id, agent="a") as conversation, conversation.turn():
        client.chat.completions.create(model="m", messages=[])
        with conserve.conversation(agent="helper") as child, child.turn():
            client.chat.completions.create(model="m", messages=[])
        with conversation.tool("search"):
            pass


def test_a_conversation_is_traced_whole_with_its_sub_agents(
    exporter: InMemorySpanExporter, model: FakeModel
) -> None:
    converse(KEPT, model)
    whole = ["chat m", "chat m", "execute_tool search", "invoke_agent a", "invoke_agent helper"]
    assert names_of(exporter) == whole


def test_or_not_at_all_and_the_wire_says_so(exporter: InMemorySpanExporter, model: FakeModel) -> None:
    converse(DROPPED, model)
    assert names_of(exporter) == []
    flags = [int(request.headers["traceparent"][-2:], 16) for request in model.requests]
    assert [flag & 1 for flag in flags] == [0, 0]


def test_outside_of_a_conversation_a_span_goes_with_its_parent(exporter: InMemorySpanExporter) -> None:
    tracer = trace.get_tracer("test")
    for _ in range(32):
        with tracer.start_as_current_span("outer") as outer, tracer.start_as_current_span("inner") as inner:
            assert inner.is_recording() == outer.is_recording()


def test_the_environment_chooses_it_and_a_wrong_share_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert sampler_from_environment() is None
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "conserve_conversation")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    found = sampler_from_environment()
    assert found is not None
    assert found.get_description() == "ConversationSampler{0.5}"
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "half")
    assert sampler_from_environment() is not None
    assert "OTEL_TRACES_SAMPLER_ARG=half" in caplog.text
