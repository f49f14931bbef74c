"""Bodies that cost more than they say, and bodies that are no text: refused for what is wrong with them."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_server.core.errors import InvalidRequest
from conserve_server.serving.asked.identity import read_identity
from conserve_server.serving.asked.json_text import MAX_ITEMS, has_more_items
from conserve_server.serving.asked.request import MAX_FIELDS, MAX_MODEL_LENGTH, parse_fields, parse_request
from conserve_server.serving.recognition.recognition import MAX_RECOGNISED_ITEMS, Recognition

CHAT = "/v1/chat/completions"
TEXTS = st.text(st.sampled_from('ab"\\{}[],:é'), max_size=8)
JSON = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


def items(value: object, commas: bool = False) -> int:
    """Strings, objects and lists of a document; with `commas` those between their parts as well."""
    if isinstance(value, str):
        return 1
    if isinstance(value, dict):
        between = max(0, len(value) - 1) if commas else 0
        return 1 + between + sum(1 + items(each, commas) for each in value.values())
    if isinstance(value, list):
        between = max(0, len(value) - 1) if commas else 0
        return 1 + between + sum(items(each, commas) for each in value)
    return 0


@given(JSON, st.integers(0, 40), st.booleans(), st.booleans())
def test_items_are_counted_as_a_reader_would(value: object, limit: int, escapes: bool, commas: bool) -> None:
    text = json.dumps(value, ensure_ascii=escapes).encode()
    assert has_more_items(text, limit, counts_commas=commas) == (items(value, commas) > limit)


@given(st.binary(max_size=200))
def test_any_bytes_are_counted_in_one_pass(text: bytes) -> None:
    has_more_items(b'"' * 3 + text, 1)


def test_a_text_without_an_end_is_looked_through_once() -> None:
    assert not has_more_items(b'"' + b'\\"' * 1_000_000, 10)


def chat(**fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "a"}], **fields}).encode()


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{}] * MAX_ITEMS},
        {"messages": [{"role": "user", "content": "a"}] * (MAX_ITEMS // 5)},
        {"messages": [{"role": "user", "content": ["a"] * MAX_ITEMS}]},
        {"metadata": {f"k{n}": n for n in range(MAX_ITEMS)}},
        {f"k{n}": n for n in range(MAX_ITEMS)},
        {"other": [[]] * MAX_ITEMS},
        {f"k{n}": n for n in range(MAX_FIELDS)},
    ],
    ids=["messages", "whole messages", "parts", "metadata", "fields", "lists", "a thousand fields"],
)
def test_a_body_of_too_many_items_is_refused_wherever_they_are(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_request(CHAT, chat(**fields))
    assert (refused.value.status, refused.value.code) == (400, "too_many_items")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": list(range(100_000)) * 10},
        {"messages": [{"role": "user", "content": '{"a": [1, 2]}, ' * 200_000}]},
        {"logit_bias": {str(token): 1 for token in range(150_000)}},
    ],
    ids=["tokens", "a text of quotes and brackets", "a vocabulary"],
)
def test_long_texts_and_lists_of_numbers_are_few_items(fields: dict[str, object]) -> None:
    assert parse_request(CHAT, chat(**fields)).model == "m"


@pytest.mark.parametrize(
    "content",
    [["a"] * MAX_RECOGNISED_ITEMS, [1] * MAX_RECOGNISED_ITEMS, [{}] * MAX_RECOGNISED_ITEMS],
    ids=["texts", "numbers", "objects"],
)
def test_a_history_of_too_many_items_is_served_and_not_looked_at(content: list[object]) -> None:
    request = parse_request(CHAT, chat(messages=[{"role": "user", "content": content}]))
    identity = read_identity({}, request.fields, tenant="default", model="m")
    _, watch = Recognition(10).recognise(identity, request)
    assert watch is not None
    assert watch.history is None


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"a": "\xff"}', "not UTF-8: byte 7 is 0xff"),
        (b'{"a\xfe": 1}', "not UTF-8: byte 3 is 0xfe"),
        (b'{"a": "\xc3', "not UTF-8: byte 7 is 0xc3"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8: byte 0 is 0xff"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"a": "x\\ud800"}', "byte 8 begins half of a character, \\ud800"),
        (b'{"a": "\\ud83d\\ude00 \\\\ud800 \\uDC00"}', "byte 28 begins half of a character, \\uDC00"),
        (b'{"\\ud800": 1}', "half of a character"),
        (gzip.compress(b"{}")[:3], "not UTF-8"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b"[1]", "Expected `object`"),
        (b'{"a": 1', "truncated"),
    ],
)
def test_what_is_no_text_is_refused_for_what_is_wrong_with_it(body: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_fields(body)
    assert (refused.value.status, refused.value.code) == (400, "invalid_json")
    assert why in str(refused.value)


@pytest.mark.parametrize("text", ["naïve ferry ⛴", "\U0001f6a2", "\x00", "日本"])
@pytest.mark.parametrize("escapes", [True, False])
def test_every_character_is_let_through(text: str, escapes: bool) -> None:
    body = json.dumps({"model": "m", "user": text}, ensure_ascii=escapes).encode()
    assert parse_request(CHAT, body).model == "m"


def test_a_model_with_an_endless_name_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_request(CHAT, chat(model="m" * (MAX_MODEL_LENGTH + 1)))
    assert refused.value.code == "invalid_field"
    assert len(str(refused.value)) < 200
