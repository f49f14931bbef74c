"""What clients write differently from turn to turn, and what makes another history."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_server.serving.recognition.canonical import canonical, canonical_system
from conserve_server.serving.recognition.history import read_history, read_items

Message = dict[str, Any]
MARK = {"cache_control": {"type": "ephemeral"}}
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
MESSAGES: dict[str, Message] = {
    "user": {"role": "user", "content": "When does the ferry sail?"},
    "tool": {"role": "tool", "tool_call_id": "c1", "content": "at noon"},
    "picture": {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        ],
    },
    "result": {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "at noon"}],
    },
    "item": {"type": "function_call_output", "call_id": "c1", "output": "at noon"},
}


def form(message: Any, **style: Any) -> bytes:
    return canonical(json.dumps(message, **style).encode())


def marked(message: Message) -> Message:
    """With a marker on its last part, which a text becomes for it."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": [{"type": "text", "text": content, **MARK}]}
    if isinstance(content, list):
        return {**message, "content": [*content[:-1], {**content[-1], **MARK}]}
    return {**message, **MARK}


def as_parts(message: Message) -> Message:
    found = copy.deepcopy(message)
    if isinstance(found.get("content"), str):
        found["content"] = [{"type": "input_text", "text": found["content"]}]
    if isinstance(found.get("output"), str):
        found["output"] = [{"type": "input_text", "text": found["output"]}]
    for part in found.get("content", []):
        if isinstance(part.get("content"), str):
            part["content"] = [{"type": "text", "text": part["content"]}]
    return found


def with_names(message: Message) -> Message:
    return {"id": "msg_1", "createdAt": "2026-11-30T00:00:00Z", "status": "completed", **message}


def with_nothing(message: Message) -> Message:
    return {**message, "tool_calls": [], "name": None, "refusal": None, "function_call": {}, "prefix": ""}


def backwards(message: Message) -> Message:
    return dict(reversed(message.items()))


def with_metadata(message: Message) -> Message:
    return {
        **message,
        "metadata": {"run": "r-1"},
        "response_metadata": {"a": [1]},
        "additional_kwargs": {"a": 1},
    }


REWRITES: tuple[Callable[[Message], Message], ...] = (
    marked,
    as_parts,
    with_names,
    with_nothing,
    backwards,
    with_metadata,
)


@pytest.mark.parametrize("rewrite", REWRITES, ids=lambda rewrite: rewrite.__name__)
@pytest.mark.parametrize("name", MESSAGES)
def test_what_a_model_does_not_read_makes_no_difference(
    name: str, rewrite: Callable[[Message], Message]
) -> None:
    assert form(rewrite(MESSAGES[name])) == form(MESSAGES[name])


@given(st.sampled_from(sorted(MESSAGES)), st.lists(st.sampled_from(REWRITES)), st.booleans(), st.booleans())
def test_rewrites_may_come_together_and_in_any_spacing(
    name: str, rewrites: list[Callable[[Message], Message]], is_spaced: bool, is_ascii: bool
) -> None:
    message = MESSAGES[name]
    for rewrite in rewrites:
        message = rewrite(message)
    style = {"indent": 2} if is_spaced else {"separators": (",", ":")}
    assert form(message, ensure_ascii=is_ascii, **style) == form(MESSAGES[name])


@given(texts)
def test_a_text_is_the_same_in_every_way_of_escaping(text: str) -> None:
    message = {"role": "user", "content": text}
    escaped = "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else json.dumps(c)[1:-1] for c in text)
    by_hand = f'{{"role":"user","content":"{escaped}"}}'.encode()
    forms = {form(message), form(message, ensure_ascii=False), canonical(by_hand)}
    assert len(forms) == 1


def test_an_escaped_solidus_is_a_solidus() -> None:
    assert canonical(rb'{"role":"user","content":"a\/b"}') == canonical(b'{"role":"user","content":"a/b"}')


@given(texts, texts)
def test_different_texts_stay_different(one: str, other: str) -> None:
    forms = [form(as_parts({"role": "user", "content": text})) for text in (one, other)]
    assert (forms[0] == forms[1]) == (one == other)


OTHERS: dict[str, tuple[Any, Any]] = {
    "roles": ({"role": "user", "content": "a"}, {"role": "system", "content": "a"}),
    "names": ({"role": "user", "content": "a", "name": "x"}, {"role": "user", "content": "a", "name": "y"}),
    "tools' results": (
        {"role": "tool", "tool_call_id": "1", "content": "a"},
        {"role": "tool", "tool_call_id": "2", "content": "a"},
    ),
    "one text and two": (
        {"role": "user", "content": "ab"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ),
    "a text that looks like parts": (
        {"role": "user", "content": '";"'},
        {"role": "user", "content": [{"type": "text", "text": ""}, {"type": "text", "text": ""}]},
    ),
    "pictures": (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "b"}}]},
    ),
    "an error": (
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "is_error": True}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]},
    ),
    "an id of a part": (
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "1"}}]},
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "2"}}]},
    ),
    "a field that only a template knows": (
        {"role": "user", "content": "a", "mood": "glad"},
        {"role": "user", "content": "a"},
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_model_reads_makes_another_message(name: str) -> None:
    one, other = OTHERS[name]
    assert form(one) != form(other)


@pytest.mark.parametrize("message", [b"3", b'"a"', b"[1]", b"{", b'{"content":' + b"[" * 100_000])
def test_what_is_no_message_is_its_own_form(message: bytes) -> None:
    assert canonical(message) == message


def system(prompt: Any) -> bytes:
    return canonical_system(msgspec.Raw(json.dumps(prompt).encode()))


def test_a_system_prompt_is_the_same_as_a_text_and_as_a_block() -> None:
    assert system("Be brief.") == system([{"type": "text", "text": "Be brief.", **MARK}])
    assert system("Be brief.") != system("Be long.")


def test_a_billing_block_is_no_part_of_a_system_prompt() -> None:
    billing = [{"type": "text", "text": f"x-anthropic-billing-header: cch={n};"} for n in (1, 2)]
    rest = {"type": "text", "text": "Be brief."}
    assert system([billing[0], rest]) == system([billing[1], rest]) == system([rest])


def boundaries(messages: list[Message]) -> list[int]:
    history = read_history(msgspec.Raw(json.dumps(messages).encode()), seed=7)
    assert history is not None
    return history.boundaries


@given(st.lists(texts, min_size=1, max_size=4), st.data())
def test_a_history_rewritten_anywhere_keeps_its_boundaries(said: list[str], data: st.DataObject) -> None:
    """As a client does whose marker moves with each turn."""
    messages: list[Message] = []
    for text in said:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    chosen = [data.draw(st.sampled_from(REWRITES)) for _ in messages]
    rewritten = [rewrite(message) for rewrite, message in zip(chosen, messages, strict=True)]
    assert boundaries(rewritten) == boundaries(messages)


def test_a_text_as_input_is_a_message_of_the_user() -> None:
    found = [
        read_items(msgspec.Raw(json.dumps(given).encode()), seed=7)
        for given in (
            "Where?",
            [{"role": "user", "content": "Where?"}],
            [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Where?"}]}],
        )
    ]
    ends = {history.boundary_after(b"there") for history in found if history is not None}
    assert len(found) == 3
    assert len(ends) == 1
