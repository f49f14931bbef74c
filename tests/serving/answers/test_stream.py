"""Reading an answer in passing."""

import itertools
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_server.engines.wire import Api
from conserve_server.serving.answers.stream import AnswerReader, EventStreamReader
from conserve_server.serving.answers.typed_stream import NamedAnswerReader, NamedEventReader

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"say \\"usage\\": 1"}}]}\n\n'
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":40,"completion_tokens":3,'
    b'"prompt_tokens_details":{"cached_tokens":32}},"metrics":{"queue_time_ms":2.5}}\n\n'
)
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def test_the_usage_event_that_only_the_gateway_asked_for_is_hidden() -> None:
    reader = EventStreamReader(hides_usage=True)
    seen = b"".join(reader.feed(part) for part in (ROLE, TEXT, USAGE, DONE)) + reader.rest()
    assert seen == ROLE + TEXT + DONE


def test_usage_and_engine_timing_are_read_in_passing() -> None:
    reader = EventStreamReader(hides_usage=True)
    for part in (ROLE, TEXT, USAGE, DONE):
        reader.feed(part)
    assert reader.usage is not None
    assert (reader.usage.prompt_tokens, reader.usage.completion_tokens, reader.usage.cached_tokens) == (
        40,
        3,
        32,
    )
    assert reader.timing is not None
    assert reader.timing.queue_time_ms == 2.5


@given(st.lists(st.integers(0, len(ROLE + TEXT + USAGE + DONE)), max_size=8), st.booleans())
def test_how_the_network_cuts_the_stream_changes_nothing(cuts: list[int], hides: bool) -> None:
    whole = ROLE + TEXT + USAGE + DONE
    edges = [0, *sorted(cuts), len(whole)]
    reader = EventStreamReader(hides_usage=hides)
    parts = [whole[a:b] for a, b in itertools.pairwise(edges)]
    seen = b"".join(reader.feed(part) for part in parts) + reader.rest()
    assert seen == (ROLE + TEXT + DONE if hides else whole)
    assert reader.usage is not None
    assert reader.usage.prompt_tokens == 40


def test_a_client_that_asked_for_usage_gets_each_byte_when_it_comes() -> None:
    reader = EventStreamReader(hides_usage=False)
    assert reader.feed(USAGE[:10]) == USAGE[:10]
    assert reader.feed(USAGE[10:]) == USAGE[10:]


def test_the_last_token_with_usage_beside_it_is_not_hidden() -> None:
    both = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}],"usage":{"prompt_tokens":1}}\n\n'
    assert EventStreamReader(hides_usage=True).feed(both) == both


def test_what_is_not_json_goes_through() -> None:
    odd = b'data: "usage": oops\n\n'
    assert EventStreamReader(hides_usage=True).feed(odd) == odd


def test_an_event_that_never_ends_is_not_lost() -> None:
    reader = EventStreamReader(hides_usage=True)
    assert reader.feed(b"data: {") == b""
    assert reader.rest() == b"data: {"


def test_a_whole_document_is_read() -> None:
    reader = AnswerReader()
    reader.read_document(msgspec.json.encode({"choices": [{}], "usage": {"prompt_tokens": 7}}))
    assert reader.usage is not None
    assert reader.usage.prompt_tokens == 7


def test_the_role_event_of_a_chat_is_no_output() -> None:
    reader = EventStreamReader(hides_usage=True)
    reader.feed(ROLE)
    assert not reader.has_output
    reader.feed(TEXT)
    assert reader.has_output


def test_a_tool_call_an_end_and_a_completions_text_are_output() -> None:
    for choice in (
        b'{"delta":{"tool_calls":[{"index":0}]}}',
        b'{"delta":{},"finish_reason":"stop"}',
        b'{"text":""}',
    ):
        reader = EventStreamReader(hides_usage=True)
        reader.feed(b'data: {"choices":[' + choice + b"]}\n\n")
        assert reader.has_output


def test_an_error_event_of_the_engine_is_noted_and_goes_through() -> None:
    reader = EventStreamReader(hides_usage=True)
    event = b'data: {"error":{"message":"KV load failed","code":500}}\n\n'
    assert reader.feed(ROLE + event) == ROLE + event
    assert reader.error == "KV load failed"
    assert not reader.has_output


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
def test_other_line_ends_are_read_and_passed_on_at_once(end: bytes) -> None:
    reader = EventStreamReader(hides_usage=True)
    seen = [reader.feed(part.replace(b"\n", end)) for part in (ROLE, TEXT, USAGE, DONE)]
    assert seen == [part.replace(b"\n", end) for part in (ROLE, TEXT)] + [b"", DONE.replace(b"\n", end)]
    assert reader.usage is not None


@pytest.mark.parametrize("last", [FINISH, DONE, FINISH.replace(b'":"', b'": "')])
def test_a_finish_reason_or_the_end_mark_finishes_an_answer(last: bytes) -> None:
    reader = EventStreamReader(hides_usage=True)
    reader.feed(ROLE + TEXT)
    assert not reader.is_finished
    reader.feed(last)
    assert reader.is_finished


@given(st.text())
def test_no_text_of_a_model_finishes_its_answer(text: str) -> None:
    for content in (text, f'"finish_reason":"stop"{text}', f"\ndata: [DONE]\n\n{text}"):
        chunk = {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}]}
        reader = EventStreamReader(hides_usage=True)
        reader.feed(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        assert not reader.is_finished


@pytest.mark.parametrize("usage", [b"[" * 50_000, b'"nine"', b"-1", b"9" * 400, b"1e400", b"null", b"\xff"])
def test_counts_that_are_none_are_not_read(usage: bytes) -> None:
    event = b'data: {"choices":[],"usage":{"prompt_tokens":' + usage + b"}}\n\n"
    for reader in (EventStreamReader(hides_usage=False), EventStreamReader(hides_usage=True)):
        reader.feed(event)
        assert reader.usage is None
    whole = AnswerReader()
    whole.read_document(event[6:-2])
    assert whole.usage is None


@given(st.lists(st.binary(max_size=60)))
def test_no_bytes_of_an_engine_raise(chunks: list[bytes]) -> None:
    named = [NamedEventReader(api) for api in (Api.RESPONSES, Api.MESSAGES)]
    for reader in (EventStreamReader(hides_usage=True), EventStreamReader(hides_usage=False), *named):
        for chunk in chunks:
            reader.feed(b"data: " + chunk)
            reader.feed(b"\n\n")
        reader.rest()


@pytest.mark.parametrize("body", [b"", b"noon", b"[]", b"[" * 100_000, b'{"a":' + b"[" * 100_000, b"\xff"])
def test_an_answer_that_is_no_object_is_none(body: bytes) -> None:
    assert AnswerReader().read_document(body) is False
    assert NamedAnswerReader().read_document(body) is False


@pytest.mark.parametrize(
    ("api", "kind"),
    [
        (Api.RESPONSES, "response.completed"),
        (Api.RESPONSES, "response.incomplete"),
        (Api.RESPONSES, "response.failed"),
        (Api.MESSAGES, "message_stop"),
    ],
)
def test_each_named_stream_has_an_end_of_its_own(api: Api, kind: str) -> None:
    reader = NamedEventReader(api)
    reader.feed(b'event: content_block_delta\ndata: {"type":"content_block_delta"}\n\n')
    assert not reader.is_finished
    reader.feed(f'event: {kind}\ndata: {{"type":"{kind}"}}\n\n'.encode())
    assert reader.is_finished
