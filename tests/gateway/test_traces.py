"""The spans of a turn, as a dashboard receives them."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from conserve_server.engines.emulated import Fault
from conserve_server.engines.engine import Role
from conserve_server.telemetry import names

from .conftest import MODEL, Serve, Served, engine_config

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def named(gateway: Served, name: str) -> list[ReadableSpan]:
    return [span for span in gateway.spans if span.name == name]


async def test_a_first_turn_is_one_tree_under_the_clients_span(gateway: Served) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
    headers = {"x-conserve-conversation-id": "a", "traceparent": TRACEPARENT}
    await gateway.client.post("/v1/chat/completions", json=body, headers=headers)
    (turn,) = named(gateway, names.SPAN_TURN)
    assert turn.parent is not None
    assert f"{turn.parent.trace_id:032x}-{turn.parent.span_id:016x}" in TRACEPARENT
    steps = {
        span.name for span in gateway.spans if span.parent and span.parent.span_id == turn.context.span_id
    }
    assert steps == {names.SPAN_ADMISSION, names.SPAN_PREFILL, names.SPAN_TRANSFER, names.SPAN_DECODE}
    assert {span.context.trace_id for span in gateway.spans} == {turn.context.trace_id}


async def test_every_span_carries_the_conversation(gateway: Served) -> None:
    await gateway.ask("a", "hello")
    for span in gateway.spans:
        assert span.attributes is not None
        assert span.attributes[names.CONVERSATION_ID] == "a"
        assert span.attributes[names.SESSION_ID] == "a"


async def test_the_turns_span_says_where_it_ran_and_what_it_cost(gateway: Served) -> None:
    await gateway.ask("a", "hello")
    (turn,) = named(gateway, names.SPAN_TURN)
    found = dict(turn.attributes or {})
    assert found[names.TURN_PATH] == "remote-prefill"
    assert (found[names.PREFILLER], found[names.DECODER]) == ("prefill-0", "decode-0")
    assert found[names.OUTPUT_TOKENS] == 8
    assert found[names.EMULATED] is True


@pytest.mark.parametrize(
    ("has_parent", "body", "is_counted_by_client"),
    [
        (True, {}, True),
        (True, {"stream": True, "stream_options": {"include_usage": True}}, True),
        (True, {"stream": True}, False),
        (False, {}, False),
    ],
)
async def test_tokens_are_counted_by_the_clients_span_or_by_the_turns_never_by_both(
    has_parent: bool, body: dict[str, object], is_counted_by_client: bool, gateway: Served
) -> None:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, **body}
    headers = {"traceparent": TRACEPARENT} if has_parent else {}
    await gateway.client.post("/v1/chat/completions", json=asked, headers=headers)
    (turn,) = named(gateway, names.SPAN_TURN)
    found = dict(turn.attributes or {})
    own, shared = names.TURN_OUTPUT_TOKENS, names.OUTPUT_TOKENS
    expected, absent = (own, shared) if is_counted_by_client else (shared, own)
    assert found[expected] == 8
    assert absent not in found
    assert found[names.OPENINFERENCE_KIND] == ("CHAIN" if is_counted_by_client else "LLM")
    assert not any(
        names.INPUT_TOKENS in (span.attributes or {}) for span in named(gateway, names.SPAN_PREFILL)
    )


async def test_the_transfer_lies_inside_the_decode_leg(gateway: Served) -> None:
    await gateway.ask("a", "hello", stream=True)
    (transfer,), (decode,) = named(gateway, names.SPAN_TRANSFER), named(gateway, names.SPAN_DECODE)
    assert transfer.start_time is not None
    assert transfer.end_time is not None
    assert decode.start_time is not None
    assert decode.end_time is not None
    assert decode.start_time <= transfer.start_time <= transfer.end_time <= decode.end_time
    assert (transfer.attributes or {})[names.TRANSFER_OBSERVED_BY] == "engine"


async def test_a_later_turn_has_no_prefill_and_no_transfer(gateway: Served) -> None:
    await gateway.ask("a", "hello")
    gateway.exporter.clear()
    await gateway.ask("a", "hello")
    assert {span.name for span in gateway.spans} == {names.SPAN_TURN, names.SPAN_ADMISSION, names.SPAN_DECODE}


async def test_a_failed_leg_is_marked_with_its_cause(serve: Serve) -> None:
    broken = [engine_config(Role.DECODE, "decode-0", faults=(Fault("status", status=500),))]
    async with serve(decode=broken, max_placements=1) as gateway:
        await gateway.ask("a", "hello")
        (turn,) = named(gateway, names.SPAN_TURN)
        assert turn.status.status_code is StatusCode.ERROR
        assert (turn.attributes or {})[names.ERROR_TYPE] == "engine_error"
