"""The stream of what happens now: complete, coalesced, scoped, and free for those who don't watch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from conserve_sdk.protocol import LIVE_PATH, Phase, Update
from conserve_server.engines.emulated import Fault
from conserve_server.engines.engine import Role
from conserve_server.gateway.routes.live import MAX_WATCHERS

from .conftest import WAIT_S, Serve, Served, engine_config

TEXT = "the ferry sails fourteen times a day and carries two hundred passengers " * 8


@asynccontextmanager
async def watching(
    gateway: Served, query: str = "", key: str | None = None
) -> AsyncIterator[AsyncIterator[Update]]:
    """The updates of one watcher, as they come."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    async with gateway.client.stream("GET", f"{LIVE_PATH}?{query}", headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")

        async def updates() -> AsyncIterator[Update]:
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    yield Update.from_json(json.loads(line.removeprefix("data: ")))

        yield updates()


async def until(updates: AsyncIterator[Update], holds: Any) -> Update:
    """The first update for which `holds`."""
    async with asyncio.timeout(WAIT_S):
        async for update in updates:
            if holds(update):
                return update
    raise AssertionError("the stream ended")


async def test_the_first_update_holds_everything(gateway: Served) -> None:
    for _ in range(2):
        await gateway.ask("a", TEXT)
    async with watching(gateway) as updates:
        first = await until(updates, lambda _: True)
    (found,) = first.conversations
    assert (found.report.id, len(found.report.turns), found.running) == ("a", 2, ())
    assert found.report.turns[0].started_s == 0
    assert (found.report.turns[1].started_s or 0) >= (found.report.turns[0].duration_s or 0)
    assert found.first_arrival_s < first.now_s
    engines = {engine.name: engine for engine in first.engines or ()}
    assert engines["decode-0"].kv_reserved_tokens == found.report.reserved_kv_tokens
    assert engines["decode-0"].conversations == 1
    assert (engines["prefill-0"].role, engines["prefill-0"].kv_reserved_tokens) == ("prefill", None)


async def test_later_updates_hold_what_has_changed_and_no_more(gateway: Served) -> None:
    await gateway.ask("a", TEXT)
    async with watching(gateway) as updates:
        await until(updates, lambda update: update.conversations)
        await gateway.ask("b", TEXT)
        found = await until(updates, lambda update: any(c.report.turns for c in update.conversations))
        assert [c.report.id for c in found.conversations] == ["b"]
        await gateway.ask("b", TEXT)
        found = await until(updates, lambda update: any(c.report.turns for c in update.conversations))
        assert [turn.index for c in found.conversations for turn in c.report.turns] == [2]


async def test_a_running_turn_says_what_it_is_doing(serve: Serve) -> None:
    hanging = [engine_config(Role.PREFILL, "prefill-0", faults=(Fault("hang", delay_s=60.0),))]
    async with serve(prefill=hanging) as gateway, watching(gateway) as updates:
        asking = asyncio.create_task(gateway.ask("a", TEXT))
        found = await until(updates, lambda u: any(c.running for c in u.conversations))
        (running,) = found.conversations[0].running
        assert (running.index, running.phase, running.prefiller) == (1, Phase.PREFILL, "prefill-0")
        asking.cancel()
        found = await until(updates, lambda u: any(c.report.turns for c in u.conversations))
        assert (found.conversations[0].running, found.conversations[0].report.turns[0].outcome) == (
            (),
            "cancelled",
        )


async def test_a_conversation_that_others_push_out_is_gone(gateway: Served) -> None:
    await gateway.ask("a", TEXT)
    async with watching(gateway, "limit=1") as updates:
        await until(updates, lambda update: update.conversations)
        await gateway.ask("b", TEXT)
        found = await until(updates, lambda update: update.gone)
    assert [name[1] for name in found.gone] == ["a"]


async def test_one_conversation_can_be_watched(gateway: Served) -> None:
    async with watching(gateway, "conversation=b") as updates:
        await gateway.ask("a", TEXT)
        await gateway.ask("b", TEXT)
        found = await until(updates, lambda update: update.conversations)
    assert [c.report.id for c in found.conversations] == ["b"]


async def test_a_tenant_sees_its_own_and_the_administrator_all(serve: Serve) -> None:
    tenants = {name: {"api_keys": (f"key-{name}",)} for name in ("one", "two")}
    async with serve(tenants=tenants, admin_key="key-admin", is_ready=True) as gateway:
        for name in tenants:
            headers = {"authorization": f"Bearer key-{name}", "x-session-id": name}
            body = {"model": "tiny", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 4}
            await gateway.client.post("/v1/chat/completions", json=body, headers=headers)
        async with watching(gateway, key="key-one") as updates:
            own = await until(updates, lambda _: True)
        async with watching(gateway, key="key-admin") as updates:
            every = await until(updates, lambda _: True)
        assert ([c.report.id for c in own.conversations], own.engines) == (["one"], None)
        assert sorted(c.report.id for c in every.conversations) == ["one", "two"]
        assert every.engines
        assert (await gateway.client.get(LIVE_PATH)).status_code == 401


async def test_where_only_an_admin_key_is_configured_all_at_once_is_behind_it(serve: Serve) -> None:
    async with serve(admin_key="key-admin") as gateway:
        refused = await gateway.client.get(LIVE_PATH)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "admin_key_needed")
        async with watching(gateway, key="key-admin") as updates:
            assert (await until(updates, lambda _: True)).engines
        await gateway.ask("a", TEXT)
        async with watching(gateway, "conversation=a") as updates:
            own = await until(updates, lambda _: True)
        assert (len(own.conversations), own.engines) == (1, None)


async def test_watchers_are_bounded_and_leave_their_place(gateway: Served) -> None:
    first = [gateway.client.stream("GET", LIVE_PATH) for _ in range(MAX_WATCHERS)]
    for each in first:
        await each.__aenter__()
    refused = await gateway.client.get(LIVE_PATH)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_watchers")
    for each in first:
        await each.__aexit__(None, None, None)
    await gateway.eventually(lambda: _may_watch(gateway))


async def _may_watch(gateway: Served) -> bool:
    async with gateway.client.stream("GET", LIVE_PATH) as answer:
        return answer.status_code == 200


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=x"])
async def test_a_limit_out_of_range_is_refused(gateway: Served, query: str) -> None:
    assert (await gateway.client.get(f"{LIVE_PATH}?{query}")).status_code == 400


async def test_a_gateway_that_stops_ends_its_watchers(gateway: Served) -> None:
    async with watching(gateway) as updates:
        await until(updates, lambda _: True)
        gateway.app.state.is_stopping = lambda: True
        async with asyncio.timeout(WAIT_S):
            assert [update async for update in updates if update.gone] == []
