"""The gateway's routes that are not turns, and its errors."""

from __future__ import annotations

from typing import Any

import pytest

from conserve_sdk.protocol import ConversationReport, Outcome
from conserve_server.engines.engine import Role

from .conftest import MODEL, Serve, Served, engine_config


async def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_models_are_those_that_the_decoders_serve(gateway: Served) -> None:
    document = (await gateway.client.get("/v1/models")).json()
    assert [card["id"] for card in document["data"]] == [MODEL]


async def test_health_shows_each_engine_and_its_load(gateway: Served) -> None:
    response = await gateway.client.get("/health")
    engines = {engine["name"]: engine for engine in response.json()["engines"]}
    assert response.status_code == 200
    assert set(engines) == {"prefill-0", "decode-0", "decode-1"}
    assert engines["decode-0"]["kv_capacity_tokens"] == 320_000
    assert engines["decode-0"]["emulated"] is True


async def test_health_is_503_when_no_decoder_is_up(serve: Serve) -> None:
    async with serve(decode=[engine_config(Role.DECODE, "decode-0")]) as gateway:
        await gateway.engines["decode-0"].stop()
        await gateway.eventually(lambda: _is_unhealthy(gateway))


async def _is_unhealthy(gateway: Served) -> bool:
    return (await gateway.client.get("/health")).status_code == 503


async def test_a_report_is_what_the_sdk_reads(gateway: Served) -> None:
    await gateway.ask("a", "hello")
    report = ConversationReport.from_json(await gateway.report("a"))
    assert (report.id, report.state, report.model, len(report.turns)) == ("a", "tool-gap", MODEL, 1)
    assert report.turns[0].outcome is Outcome.COMPLETED
    assert report.ttfet_s is not None
    assert report.reserved_kv_tokens > 0
    assert report.emulated


async def test_an_engines_own_timing_tells_the_first_token_of_an_answer_that_was_not_streamed(
    gateway: Served,
) -> None:
    await gateway.ask("a", "hello " * 50)
    turn = ConversationReport.from_json(await gateway.report("a")).turns[0]
    assert turn.ttft_s is not None
    assert turn.transfer_s is not None
    assert turn.prefill_s is not None
    assert turn.duration_s is not None
    assert 0 < turn.prefill_s + turn.transfer_s <= turn.ttft_s < turn.duration_s


async def test_release_frees_the_reservation_and_keeps_the_report(gateway: Served) -> None:
    await gateway.ask("a", "hello")
    released = await gateway.client.delete("/v1/conversations/a")
    assert released.json()["state"] == "ended"
    report = await gateway.report("a")
    assert (report["state"], report["reserved_kv_tokens"]) == ("ended", 0)
    assert (await gateway.client.delete("/v1/conversations/a")).status_code == 200


async def test_identifiers_with_slashes_and_spaces_are_found(gateway: Served) -> None:
    await gateway.ask("team/a b", "hello")
    response = await gateway.client.get("/v1/conversations/team%2Fa%20b")
    assert response.json()["id"] == "team/a b"


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/events")])
async def test_an_unknown_conversation_is_a_404_that_names_it(
    gateway: Served, method: str, path: str
) -> None:
    response = await gateway.client.request(method, f"/v1/conversations/nobody{path}", json={"events": []})
    error = await error_of(response, 404)
    assert "nobody" in error["message"]
    assert error["code"] == "conversation_not_found"


async def test_tool_boundaries_are_taken_and_reported(gateway: Served) -> None:
    await gateway.ask("a", "hello")
    events = [
        {"kind": "start", "call_id": "c1", "name": "search"},
        {"kind": "end", "call_id": "c1", "name": "search", "duration_s": 0.25, "outcome": "completed"},
        {"kind": "start", "call_id": "c2", "name": "open"},
    ]
    taken = await gateway.client.post("/v1/conversations/a/events", json={"events": events})
    assert taken.status_code == 204
    tools = ConversationReport.from_json(await gateway.report("a")).tools
    assert [(t.name, t.duration_s) for t in tools] == [("search", 0.25), ("open", None)]


@pytest.mark.parametrize(
    "events",
    [
        {},
        {"events": [{"kind": "start"}]},
        {"events": [{"kind": "maybe", "call_id": "c", "name": "n"}]},
        {"events": [{"kind": "end", "call_id": "c", "name": "n", "outcome": "odd"}]},
    ],
)
async def test_events_that_are_wrong_are_refused(gateway: Served, events: object) -> None:
    await gateway.ask("a", "hello")
    response = await gateway.client.post("/v1/conversations/a/events", json=events)
    assert (await error_of(response, 400))["code"] == "invalid_events"


async def test_a_body_that_is_not_json_is_a_400(gateway: Served) -> None:
    response = await gateway.client.post("/v1/chat/completions", content=b"{oops")
    assert (await error_of(response, 400))["code"] == "invalid_json"


async def test_a_body_that_is_too_large_is_a_413_that_names_the_setting(serve: Serve) -> None:
    async with serve(max_body_bytes=100) as gateway:
        error = await error_of(await gateway.ask("a", "x" * 200), 413)
        assert "gateway.max_body_bytes" in error["message"]


async def test_an_unknown_model_is_a_404_that_lists_the_served_ones(gateway: Served) -> None:
    error = await error_of(await gateway.ask("a", "hello", model="other"), 404)
    assert MODEL in error["message"]


async def test_an_unknown_route_is_a_404_that_says_where_the_routes_are(gateway: Served) -> None:
    error = await error_of(await gateway.client.get("/v2/nothing"), 404)
    assert "/openapi.json" in error["message"]


async def test_a_wrong_method_is_a_405(gateway: Served) -> None:
    await error_of(await gateway.client.get("/v1/chat/completions"), 405)


async def test_metrics_count_turns_and_name_no_conversation(gateway: Served) -> None:
    await gateway.ask("secret-id", "hello")
    page = (await gateway.client.get("/metrics")).text
    assert 'conserve_turns_total{outcome="completed",path="remote-prefill"} 1.0' in page
    assert "conserve_kv_transfers_total 1.0" in page
    assert "secret-id" not in page


async def test_events_that_are_too_large_are_refused_before_they_are_read(gateway: Served) -> None:
    await gateway.ask("a", "hello")
    response = await gateway.client.post("/v1/conversations/a/events", content=b" " * (1024 * 1024 + 1))
    assert (await error_of(response, 413))["code"] == "body_too_large"
