"""Tenants over a real gateway: keys, what each sees, and how much each may have."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from conserve_server.core.config import TenantConfig
from conserve_server.engines.emulated import Fault
from conserve_server.engines.engine import Role
from conserve_server.telemetry import names

from .conftest import MODEL, Serve, Served, engine_config, served

KEYS = {"a": "sk-of-a", "b": "sk-of-b"}
ADMIN = "sk-of-admin"
TENANTS = {name: TenantConfig(api_keys=(SecretStr(key),)) for name, key in KEYS.items()}


def authorization(key: str | None) -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer {key}"}


async def ask(
    gateway: Served, key: str | None, conversation: str, text: str = "hello", **fields: object
) -> httpx2.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 4, **fields}
    headers = {"x-session-id": conversation, **authorization(key)}
    return await gateway.client.post("/v1/chat/completions", json=body, headers=headers)


async def call(gateway: Served, key: str | None, method: str, path: str, **options: Any) -> httpx2.Response:
    return await gateway.client.request(method, path, headers=authorization(key), **options)


@pytest.fixture
async def shared() -> AsyncIterator[Served]:
    """A gateway with two tenants and an administrator."""
    async with served(tenants=TENANTS, admin_key=SecretStr(ADMIN)) as found:
        yield found


@pytest.mark.parametrize("key", [None, "sk-wrong"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/conversations"),
        ("GET", "/v1/conversations/c"),
        ("DELETE", "/v1/conversations/c"),
        ("POST", "/v1/conversations/c/events"),
    ],
)
async def test_without_a_key_everything_but_health_and_metrics_is_a_401(
    shared: Served, method: str, path: str, key: str | None
) -> None:
    answer = await call(shared, key, method, path)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (401, "invalid_request_error")
    assert "Authorization: Bearer" in error["message"]
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "sk-wrong" not in answer.text


async def test_health_and_metrics_are_open_unless_they_are_closed(shared: Served, serve: Serve) -> None:
    for path in ("/health", "/metrics"):
        assert (await call(shared, None, "GET", path)).status_code == 200


async def test_closed_metrics_need_the_admin_key_and_health_hides_the_engines() -> None:
    async with served(is_ready=False, admin_key=SecretStr(ADMIN), metrics_need_admin_key=True) as gateway:
        assert (await call(gateway, "wrong", "GET", "/metrics")).status_code == 401
        assert (await call(gateway, ADMIN, "GET", "/metrics")).status_code == 200
        assert set((await call(gateway, None, "GET", "/health")).json()) == {"status"}
        assert (await call(gateway, ADMIN, "GET", "/health")).json()["engines"]


async def test_two_tenants_with_one_id_share_nothing(shared: Served) -> None:
    first, second = await ask(shared, KEYS["a"], "c"), await ask(shared, KEYS["b"], "c")
    assert first.headers["x-conserve-conversation-id"] == second.headers["x-conserve-conversation-id"] == "c"
    assert second.headers["x-conserve-turn"] == "1"
    assert second.headers["x-conserve-path"] == "remote-prefill"
    assert await shared.engine_metric("prefill-0", "vllm:request_success_total") == 2
    released = await call(shared, KEYS["a"], "DELETE", "/v1/conversations/c")
    other = await call(shared, KEYS["b"], "GET", "/v1/conversations/c")
    assert (released.json()["state"], other.json()["state"]) == ("ended", "tool-gap")


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/events")])
async def test_anothers_conversation_is_a_404_like_one_that_never_was(
    shared: Served, method: str, path: str
) -> None:
    await ask(shared, KEYS["a"], "private")
    theirs, none = [
        await call(shared, KEYS["b"], method, f"/v1/conversations/{name}{path}?tenant=a", json={"events": []})
        for name in ("private", "nothing")
    ]
    assert theirs.status_code == none.status_code == 404
    assert theirs.text.replace("private", "nothing") == none.text


async def test_a_tenant_lists_its_own_and_the_admin_all(shared: Served) -> None:
    for tenant, name in (("a", "one"), ("b", "two"), ("a", "three")):
        await ask(shared, KEYS[tenant], name)

    async def listed(key: str, query: str = "") -> list[dict[str, Any]]:
        document = (await call(shared, key, "GET", "/v1/conversations" + query)).json()
        assert document["object"] == "list"
        found: list[dict[str, Any]] = document["data"]
        return found

    assert [c["id"] for c in await listed(KEYS["a"])] == ["three", "one"]
    assert [(c["tenant"], c["id"]) for c in await listed(ADMIN)] == [
        ("a", "three"),
        ("b", "two"),
        ("a", "one"),
    ]
    assert [c["id"] for c in await listed(ADMIN, "?tenant=b")] == ["two"]
    (only,) = await listed(KEYS["a"], "?limit=1&tenant=b")
    assert (only["id"], only["turn_count"], only["tool_count"]) == ("three", 1, 0)
    assert "turns" not in only


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "", "\u0663", "1" * 5000])
async def test_a_limit_that_is_no_such_number_is_refused(gateway: Served, limit: str) -> None:
    answer = await gateway.client.get("/v1/conversations", params={"limit": limit})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_limit")


async def test_the_admin_must_say_whose_conversation_where_several_have_it(shared: Served) -> None:
    for key in KEYS.values():
        await ask(shared, key, "c")
    vague = await call(shared, ADMIN, "DELETE", "/v1/conversations/c")
    assert (vague.status_code, vague.json()["error"]["code"]) == (409, "ambiguous_conversation")
    report = (await call(shared, ADMIN, "GET", "/v1/conversations/c?tenant=b")).json()
    assert (report["tenant"], report["state"]) == ("b", "tool-gap")


async def test_the_admin_key_sends_no_turns(shared: Served) -> None:
    answer = await ask(shared, ADMIN, "c")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_a_tenant")


async def test_one_id_with_two_models_is_two_conversations(serve: Serve) -> None:
    engines = [engine_config(Role.DECODE, "decode-0")]
    async with serve(prefill=[], decode=engines) as gateway:
        await ask(gateway, None, "c")
        report = (await gateway.client.get(f"/v1/conversations/c?model={MODEL}")).json()
        other = await gateway.client.get("/v1/conversations/c?model=other")
        assert (report["model"], other.status_code) == (MODEL, 404)


async def test_keys_are_in_no_span_and_no_log(shared: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        await ask(shared, KEYS["a"], "c")
        await ask(shared, "sk-wrong", "c")
    shown = caplog.text + "".join(span.to_json() for span in shared.spans)
    assert "sk-" not in shown


async def test_the_turns_span_names_the_tenant(shared: Served, gateway: Served) -> None:
    await ask(shared, KEYS["a"], "c")
    await ask(gateway, None, "c")
    found = [
        [(span.attributes or {}).get(names.TENANT) for span in each.spans if span.name == names.SPAN_TURN]
        for each in (shared, gateway)
    ]
    assert found == [["a"], [None]]


async def test_turns_beyond_the_limit_are_a_429_and_leave_room_for_other_tenants() -> None:
    slow = [engine_config(Role.DECODE, "decode-0", faults=(Fault("hang", delay_s=60.0),))]
    limited = {**TENANTS, "a": TENANTS["a"].model_copy(update={"max_concurrent_turns": 1})}
    async with served(prefill=[], decode=slow, tenants=limited) as gateway:
        hanging = asyncio.create_task(ask(gateway, KEYS["a"], "c1"))
        await gateway.eventually(lambda: _runs(gateway, "c1"))
        refused, other = await ask(gateway, KEYS["a"], "c2"), await ask(gateway, KEYS["b"], "c2")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_turns")
        assert int(refused.headers["retry-after"]) >= 1
        assert other.status_code == 200
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)
        await gateway.eventually(lambda: _answers(gateway))


async def _runs(gateway: Served, conversation: str) -> bool:
    return (await call(gateway, KEYS["a"], "GET", f"/v1/conversations/{conversation}")).status_code == 200


async def _answers(gateway: Served) -> bool:
    return (await ask(gateway, KEYS["a"], "c3")).status_code == 200


async def test_new_conversations_beyond_the_limit_are_a_429_and_live_ones_go_on(serve: Serve) -> None:
    async with serve(max_conversations=1) as gateway:
        await ask(gateway, None, "c1")
        refused, again = await ask(gateway, None, "c2"), await ask(gateway, None, "c1")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_conversations")
        assert int(refused.headers["retry-after"]) >= 1
        assert again.headers["x-conserve-turn"] == "2"
        await gateway.client.delete("/v1/conversations/c1")
        assert (await ask(gateway, None, "c2")).status_code == 200
