"""Gathering an answer in passing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_server.serving.answers.answer import MAX_ANSWER_CHARS, AnswerGatherer
from conserve_server.serving.recognition.history import canonical_message

DONE = b"data: [DONE]"


def event(delta: dict[str, Any], index: int = 0) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": index, "delta": delta}]}).encode()


def streamed(*events: bytes) -> bytes | None:
    gatherer = AnswerGatherer()
    gatherer.read_events([*events, DONE])
    return gatherer.canonical()


def whole(message: dict[str, Any]) -> bytes:
    return canonical_message(json.dumps({"role": "assistant", **message}).encode())


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(st.lists(texts, min_size=1))
def test_streamed_text_is_the_text_that_the_client_sends_back(pieces: list[str]) -> None:
    events = [event({"role": "assistant", "content": ""}), *(event({"content": p}) for p in pieces)]
    assert streamed(*events) == whole({"content": "".join(pieces)})


def test_streamed_tool_calls_are_those_that_the_client_sends_back() -> None:
    events = [
        event({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "add", "arguments": ""}}]}),
        event({"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]}),
        event({"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "sub", "arguments": "{}"}}]}),
        event({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}),
    ]
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"id": "c2", "type": "function", "function": {"name": "sub", "arguments": "{}"}},
    ]
    assert streamed(*events) == whole({"content": None, "tool_calls": calls})


def test_an_answer_that_was_not_streamed_has_the_same_form() -> None:
    gatherer = AnswerGatherer()
    message = {"role": "assistant", "content": "x", "refusal": None, "reasoning": None}
    gatherer.read_document(json.dumps({"choices": [{"message": message}]}).encode())
    assert gatherer.canonical() == streamed(event({"content": "x"}))


def test_only_the_first_choice_counts() -> None:
    assert streamed(event({"content": "b"}, 1), event({"content": "a"})) == whole({"content": "a"})


@pytest.mark.parametrize("odd", [b"", b"data: oops", b"data: 3", b": comment", b'data: {"choices": 3}'])
def test_what_is_no_chunk_is_passed_over(odd: bytes) -> None:
    assert streamed(odd, event({"content": "a"})) == whole({"content": "a"})


def test_nothing_said_is_no_answer() -> None:
    assert streamed(event({"role": "assistant", "content": ""})) is None


def test_what_is_gathered_is_bounded() -> None:
    piece = event({"content": "x" * 1024})
    gatherer = AnswerGatherer()
    gatherer.read_events([piece] * (2 * MAX_ANSWER_CHARS // 1024))
    assert gatherer.canonical() is None
    assert sum(map(len, gatherer._text)) <= MAX_ANSWER_CHARS + 1024


def test_the_id_of_a_response_is_read_streamed_or_not() -> None:
    one, other = AnswerGatherer(), AnswerGatherer()
    one.read_document(b'{"object": "response", "id": "resp_1", "output": []}')
    other.read_events([b'event: response.created\ndata: {"response": {"id": "resp_1"}}'])
    assert one.response_id == other.response_id == "resp_1"
