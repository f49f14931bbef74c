"""The application's own turns, and what it says of a conversation, as they are traced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import conserve_sdk as conserve
from tests.sdk.conftest import FakeModel, Spans

CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


def test_a_turns_calls_and_tools_are_one_trace_below_it(spans: Spans, model: FakeModel) -> None:
    conserve.instrument()
    client = conserve.wrap(model.client())
    with conserve.conversation("c-1", agent="researcher") as conversation:
        for _ in range(2):
            with conversation.turn():
                client.chat.completions.create(model="m", messages=[])
                with conversation.tool("search"):
                    pass
                client.chat.completions.create(model="m", messages=[])
    turns = spans.named("invoke_agent researcher")
    assert [(turn.attributes or {})["conserve.agent_turn.index"] for turn in turns] == [1, 2]
    assert [turn.parent for turn in turns] == [None, None]
    for turn in turns:
        trace = [span for span in spans.all() if span.context.trace_id == turn.context.trace_id]
        assert sorted(span.name for span in trace) == [
            "chat m",
            "chat m",
            "execute_tool search",
            "invoke_agent researcher",
        ]
        assert {(span.attributes or {})["session.id"] for span in trace} == {"c-1"}


async def test_a_turn_that_fails_says_how_without_the_message(spans: Spans) -> None:
    with pytest.raises(ValueError, match="secret"):
        async with conserve.conversation("c-1") as conversation, conversation.turn():
            raise ValueError("secret")
    (turn,) = spans.named("invoke_agent")
    assert (turn.attributes or {})["error.type"] == "ValueError"
    assert "secret" not in str(turn.to_json())


def test_a_turn_left_open_by_a_generator_that_is_dropped_ends_with_it(spans: Spans) -> None:
    def agent(conversation: conserve.Conversation) -> Iterator[int]:
        with conversation.turn():
            yield 1

    with conserve.conversation() as conversation:
        for _ in agent(conversation):
            break
    assert len(spans.named("invoke_agent")) == 1


@pytest.mark.parametrize(("switch", "is_kept"), [("", False), ("no_content", False), ("span_only", True)])
def test_the_text_of_a_turn_is_kept_only_where_content_is_asked_for(
    spans: Spans, monkeypatch: pytest.MonkeyPatch, switch: str, is_kept: bool
) -> None:
    monkeypatch.setenv(CONTENT, switch)
    with conserve.conversation() as conversation, conversation.turn() as turn:
        turn.record(question="1 + 2?", answer="3")
    (span,) = spans.named("invoke_agent")
    found: Any = span.attributes
    assert (found.get("input.value"), found.get("output.value")) == (
        ("1 + 2?", "3") if is_kept else (None, None)
    )


def test_metadata_is_on_spans_and_not_on_the_wire(spans: Spans, model: FakeModel) -> None:
    conserve.instrument()
    client = conserve.wrap(model.client())
    with conserve.conversation("c-1", metadata={"customer": "harbour", "tier": 2}):
        client.chat.completions.create(model="m", messages=[])
    attributes = spans.named("chat")[0].attributes or {}
    assert attributes["conserve.conversation.metadata.customer"] == "harbour"
    assert attributes["conserve.conversation.metadata.tier"] == 2
    assert "harbour" not in str(model.requests[0].headers)


def test_metadata_that_no_span_can_hold_is_refused_by_its_name() -> None:
    with pytest.raises(TypeError, match=r"metadata\['who'\] is a list"):
        conserve.conversation(metadata={"who": []})  # type: ignore[dict-item]


def test_switched_off_a_turn_is_a_block_and_nothing_else(
    spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSERVE_DISABLED", "1")
    with conserve.conversation() as conversation, conversation.turn() as turn:
        turn.record(question="?")
    assert spans.all() == []
