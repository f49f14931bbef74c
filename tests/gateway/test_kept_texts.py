"""What others write is kept in a stated length, and names that were apart stay apart."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_sdk.protocol.headers import MAX_ID_LENGTH
from conserve_server.core.errors import EngineFailed, InvalidRequest, NoCapacity
from conserve_server.core.texts import MAX_TEXT_LENGTH, cut
from conserve_server.gateway.routes.conversations import MAX_EVENTS
from conserve_server.gateway.routes.live import MAX_TENANT_WATCHERS, MAX_WATCHERS
from conserve_server.serving.records.stored_responses import StoredResponse, StoredResponses
from tests.gateway.conftest import Serve, Served
from tests.gateway.http.test_turn_protocol import connected

KEYS = {"research": {"api_keys": ["sk-research"]}, "product": {"api_keys": ["sk-product"]}}


@given(st.text(max_size=50), st.integers(20, 40))
def test_a_text_is_itself_or_its_beginning(text: str, limit: int) -> None:
    kept = cut(text, limit)
    assert len(kept) <= limit
    assert kept == text or (text.startswith(kept.removesuffix(" … (cut)")) and len(text) > limit)


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("m" * 1_000_000, code="model_not_found"),
        NoCapacity("m" * 1_000_000, code="no_decode_engine"),
        EngineFailed("m" * 1_000_000, code="engine_error", engine="decode-0"),
    ],
)
def test_no_error_repeats_an_endless_text(error: Exception) -> None:
    assert len(str(error)) == MAX_TEXT_LENGTH


async def note(gateway: Served, *events: dict[str, object]) -> int:
    answer = await gateway.client.post("/v1/conversations/harbour/events", json={"events": events})
    return answer.status_code


async def test_tool_calls_with_endless_names_are_kept_apart_in_a_bounded_length(gateway: Served) -> None:
    await gateway.ask("harbour", "hello")
    for last in "ab":
        call = {"call_id": "i" * 400_000 + last, "name": "n" * 400_000 + last}
        assert await note(gateway, {"kind": "start", **call}) == 204
        assert await note(gateway, {"kind": "end", **call, "duration_s": 1.0}) == 204
    tools = (await gateway.report("harbour"))["tools"]
    assert isinstance(tools, list)
    assert [tool["duration_s"] for tool in tools] == [1.0, 1.0]
    assert len({tool["call_id"] for tool in tools}) == len({tool["name"] for tool in tools}) == 2
    assert all(len(tool[name]) <= MAX_ID_LENGTH for tool in tools for name in ("call_id", "name"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"call_id": ""},
        {"name": "\n\u0000"},
        {"elapsed_s": -1},
        {"duration_s": -0.1},
        {"duration_s": 1e300},
        {"name": 1},
    ],
)
async def test_an_event_that_says_nothing_sensible_is_refused(
    gateway: Served, wrong: dict[str, object]
) -> None:
    await gateway.ask("harbour", "hello")
    assert await note(gateway, {"kind": "end", "call_id": "1", "name": "search", **wrong}) == 400
    assert (await gateway.report("harbour"))["tools"] == []


async def test_more_events_than_an_agent_has_at_once_are_refused_whole(gateway: Served) -> None:
    await gateway.ask("harbour", "hello")
    events: list[dict[str, object]] = [
        {"kind": "start", "call_id": str(n), "name": "search"} for n in range(MAX_EVENTS + 1)
    ]
    assert await note(gateway, *events) == 400
    assert (await gateway.report("harbour"))["tools"] == []
    assert await note(gateway, *events[:-1]) == 204


async def test_events_that_are_nested_too_deeply_are_a_400(gateway: Served) -> None:
    await gateway.ask("harbour", "hello")
    deep = b'{"events": [{"other": ' + b"[" * 50_000 + b"]" * 50_000 + b"}]}"
    answer = await gateway.client.post("/v1/conversations/harbour/events", content=deep)
    assert answer.status_code == 400
    assert "nested too deeply" in answer.json()["error"]["message"]


def test_responses_are_found_by_the_ids_that_engines_gave_them_however_long() -> None:
    stored = StoredResponses(10)
    for last in "ab":
        stored.note("default", "r" * 1_000_000 + last, StoredResponse(last, "m", "decode-0", False))
    stored.note("default", "\n", StoredResponse("c", "m", "decode-0", False))
    found = [stored.find("default", "r" * 1_000_000 + last) for last in "ab"]
    assert [each.conversation_id for each in found if each is not None] == ["a", "b"]
    assert stored.find("default", "\n") is None


async def test_no_tenant_keeps_the_others_from_watching(serve: Serve) -> None:
    async with serve(tenants=KEYS) as gateway, AsyncExitStack() as stack:

        async def watch(key: str) -> int:
            client = await stack.enter_async_context(connected(gateway.url))
            client.send(f"GET /v1/events HTTP/1.1\r\nhost: gateway\r\nx-api-key: {key}\r\n\r\n".encode())
            return (await client.answer())[0]

        found = [await watch("sk-research") for _ in range(MAX_TENANT_WATCHERS + 2)]
        assert found == [200] * MAX_TENANT_WATCHERS + [429] * 2
        assert await watch("sk-product") == 200


async def test_beyond_the_places_of_all_no_one_more_watches_until_one_leaves(serve: Serve) -> None:
    async with serve() as gateway, AsyncExitStack() as stack:
        for _ in range(MAX_WATCHERS):
            client = await stack.enter_async_context(connected(gateway.url))
            client.send(b"GET /v1/events HTTP/1.1\r\nhost: gateway\r\n\r\n")
            assert (await client.answer())[0] == 200
        async with connected(gateway.url) as beyond:
            beyond.send(b"GET /v1/events HTTP/1.1\r\nhost: gateway\r\n\r\n")
            status, headers, body = await beyond.answer()
            assert (status, headers["retry-after"]) == (429, "1")
            assert json.loads(body)["error"]["code"] == "too_many_watchers"
        await client.hang_up()

        async def is_let_in() -> bool:
            async with connected(gateway.url) as next_one:
                next_one.send(b"GET /v1/events HTTP/1.1\r\nhost: gateway\r\n\r\n")
                return (await next_one.answer())[0] == 200

        await gateway.eventually(is_let_in)
