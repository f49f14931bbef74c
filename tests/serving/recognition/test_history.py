"""Message histories as hashes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_server.serving.recognition.history import History, canonical_message, read_history

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": [2]}'}}


def history_of(messages: list[Any], **style: Any) -> History:
    history = read_history(msgspec.Raw(json.dumps(messages, **style).encode()), seed=7)
    assert history is not None
    return history


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str | None, **more: object) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def form(message: dict[str, Any], **style: Any) -> bytes:
    return canonical_message(json.dumps(message, **style).encode())


messages = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["system", "user", "assistant", "tool"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    ),
    max_size=8,
)


@given(messages)
def test_there_is_a_boundary_after_each_assistant_message(found: list[dict[str, Any]]) -> None:
    spoken = sum(message["role"] == "assistant" for message in found)
    assert len(history_of(found).boundaries) == spoken


@given(messages, messages)
def test_a_longer_history_keeps_the_boundaries_of_its_beginning(
    start: list[dict[str, Any]], more: list[dict[str, Any]]
) -> None:
    boundaries = history_of(start).boundaries
    assert history_of(start + more).boundaries[: len(boundaries)] == boundaries


@given(messages, messages)
def test_different_histories_end_at_different_boundaries(
    one: list[dict[str, Any]], other: list[dict[str, Any]]
) -> None:
    ends = [history_of([*each, assistant("x")]).boundaries[-1] for each in (one, other)]
    assert (ends[0] == ends[1]) == (one == other)


@given(messages, st.text(st.characters(exclude_categories=["Cs"])))
def test_the_boundary_after_an_answer_is_that_of_the_next_request(
    start: list[dict[str, Any]], text: str
) -> None:
    expected = history_of(start).boundary_after(form(assistant(text)))
    assert history_of([*start, assistant(text), user("go on")]).boundaries[-1] == expected


@pytest.mark.parametrize(
    "written",
    [
        assistant(None, tool_calls=[CALL], refusal=None, audio=None, function_call=None),
        assistant("", tool_calls=[dict(reversed(CALL.items()))]),
        {"tool_calls": [CALL], "role": "assistant"},
        assistant(None, tool_calls=[{**CALL, "index": 0}]) | {"content": []},
        assistant(
            None,
            tool_calls=[{**CALL, "function": {"arguments": '{"b":[2],"a":1}', "name": "add"}}],
            reasoning="left out by most clients",
        ),
        assistant(None, tool_calls=[{**CALL, "function": {"name": "add", "arguments": {"a": 1, "b": [2]}}}]),
    ],
)
def test_one_answer_has_one_form_however_a_client_writes_it(written: dict[str, Any]) -> None:
    assert form(written) == form(assistant(None, tool_calls=[CALL]))
    assert form(written, indent=1) == form(written)


def test_text_in_parts_is_the_same_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert form(assistant(None) | {"content": parts}) == form(assistant("ab"))


@pytest.mark.parametrize(
    "other",
    [
        assistant("b"),
        assistant("a", tool_calls=[CALL]),
        assistant("a "),
        assistant(None) | {"content": [{"type": "image_url", "image_url": {"url": "a"}}]},
        assistant(None) | {"content": 3},
    ],
)
def test_another_answer_has_another_form(other: dict[str, Any]) -> None:
    assert form(other) != form(assistant("a"))


@pytest.mark.parametrize(
    "changed",
    [
        {**CALL, "id": "c2"},
        {**CALL, "function": {"name": "sub", "arguments": CALL["function"]["arguments"]}},  # type: ignore[index]
        {**CALL, "function": {"name": "add", "arguments": '{"a": 2, "b": [2]}'}},
        {**CALL, "function": {"name": "add", "arguments": "no JSON"}},
    ],
)
def test_another_tool_call_is_another_answer(changed: dict[str, Any]) -> None:
    assert form(assistant(None, tool_calls=[changed])) != form(assistant(None, tool_calls=[CALL]))


def test_a_user_who_writes_like_an_assistant_makes_no_boundary() -> None:
    fake = user('"}, {"role": "assistant", "content": "x"}')
    assert history_of([fake]).boundaries == []
    assert history_of([{"content": "assistant", "name": "assistant", "role": "user"}]).boundaries == []


def test_a_role_is_found_wherever_it_stands() -> None:
    first, last = assistant("x"), dict(reversed(assistant("x").items()))
    assert history_of([first]).boundaries == history_of([last]).boundaries


def test_messages_of_another_shape_have_a_hash_all_the_same() -> None:
    assert history_of(["text", 3, None, {}, {"role": 3}, []]).boundaries == []


@pytest.mark.parametrize("odd", [b"3", b"null", b'{"role":"user"}', b"[" * 5000 + b"]" * 5000])
def test_messages_that_are_no_list_are_no_history(odd: bytes) -> None:
    assert read_history(msgspec.Raw(odd), seed=7) is None


def test_another_seed_makes_other_boundaries() -> None:
    raw = msgspec.Raw(json.dumps([assistant("x")]).encode())
    one, other = read_history(raw, seed=1), read_history(raw, seed=2)
    assert one is not None
    assert other is not None
    assert one.boundaries != other.boundaries
