"""What engines are told of conversations, over emulated engines that take signals as real ones do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from conserve_server.core.errors import EngineFailed
from conserve_server.engines.conversation_kv import Capabilities, ConversationKv, Fetched, NoPlugin
from conserve_server.engines.engine import Role
from tests.gateway.conftest import Serve, Served, engine_config

LONG = "words of a long prompt " * 40
SIGNALS = "conserve_kv_signals_total"


async def resident(gateway: Served, engine: str) -> dict[str, int]:
    """Tokens cached on an engine, of the conversations that have some."""
    answer = await gateway.client.get(gateway.engines[engine].url + "/v1/conserve/resident")
    return {name: tokens for name, tokens in answer.json()["tokens"].items() if tokens}


async def decoder_of(gateway: Served, conversation: str) -> str:
    return str((await gateway.report(conversation))["decoder"])


async def tool(gateway: Served, conversation: str, kind: str, **fields: Any) -> None:
    event = {"kind": kind, "call_id": "call", "name": "search", **fields}
    answer = await gateway.client.post(f"/v1/conversations/{conversation}/events", json={"events": [event]})
    assert answer.status_code == 204


async def told(gateway: Served, engine: str, signal: str) -> float:
    return await gateway.metric(f'{SIGNALS}{{engine="{engine}",outcome="sent",signal="{signal}"}}')


async def test_the_end_of_a_conversation_frees_its_kv_on_its_decoder_and_its_prefiller(
    gateway: Served,
) -> None:
    await gateway.ask("a", LONG)
    decoder = await decoder_of(gateway, "a")
    assert "a" in await resident(gateway, decoder)
    assert "a" in await resident(gateway, "prefill-0")
    await gateway.client.delete("/v1/conversations/a")

    async def is_gone() -> bool:
        return not await resident(gateway, decoder) and not await resident(gateway, "prefill-0")

    await gateway.eventually(is_gone)


async def test_a_final_turn_releases_at_its_end(gateway: Served) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": LONG}], "max_tokens": 8}
    headers = {"x-conserve-conversation-id": "a", "x-conserve-final": "true"}
    await gateway.client.post("/v1/chat/completions", json=body, headers=headers)

    async def is_told() -> bool:
        return await told(gateway, "prefill-0", "release") == 1

    await gateway.eventually(is_told)


async def test_a_conversation_that_expires_is_released(serve: Serve) -> None:
    async with serve(idle_timeout_s=0.2) as gateway:
        await gateway.ask("a", LONG)

        async def is_gone() -> bool:
            return not await resident(gateway, "prefill-0")

        await gateway.eventually(is_gone)


async def test_a_tool_s_start_keeps_its_end_and_the_next_turn_keep_on(gateway: Served) -> None:
    await gateway.ask("a", LONG)
    decoder = await decoder_of(gateway, "a")

    async def kept(times: int) -> None:
        async def holds() -> bool:
            return await told(gateway, decoder, "keep") == times

        await gateway.eventually(holds)

    await tool(gateway, "a", "start")
    await kept(1)
    await tool(gateway, "a", "end", duration_s=0.5)
    await kept(2)
    await gateway.ask("a", LONG + "and more")
    await kept(3)


async def test_a_conversation_beyond_its_decoder_s_budget_is_refreshed_and_not_kept(serve: Serve) -> None:
    decode = [engine_config(Role.DECODE, "decode-0", kv_blocks=40)]
    async with serve(prefill=[], decode=decode, scheduler={"kv_budget_fraction": 0.05}) as gateway:
        await gateway.ask("a", LONG)
        await tool(gateway, "a", "start")

        async def is_refreshed() -> bool:
            return await told(gateway, "decode-0", "refresh") == 1

        await gateway.eventually(is_refreshed)
        assert await told(gateway, "decode-0", "keep") == 0


async def test_an_engine_without_the_plugin_serves_as_before(serve: Serve) -> None:
    plain = {"follows_conversations": False}
    decode = [engine_config(Role.DECODE, "decode-0", **plain)]
    async with serve(prefill=[engine_config(Role.PREFILL, "prefill-0", **plain)], decode=decode) as gateway:
        assert (await gateway.ask("a", LONG)).status_code == 200
        await tool(gateway, "a", "start")
        await gateway.client.delete("/v1/conversations/a")
        assert (await gateway.ask("b", LONG)).status_code == 200
        page = (await gateway.client.get("/metrics")).text
    assert 'conserve_engine_follows_conversations{engine="decode-0"} 0.0' in page
    assert SIGNALS + "{" not in page


@pytest.mark.parametrize(("switch", "signal"), [("sends_releases", "release"), ("sends_keeps", "keep")])
async def test_each_kind_of_signal_can_be_switched_off(serve: Serve, switch: str, signal: str) -> None:
    other = {"release": "keep", "keep": "release"}[signal]
    async with serve(kv={switch: False}) as gateway:
        await gateway.ask("a", LONG)
        decoder = await decoder_of(gateway, "a")
        await tool(gateway, "a", "start")

        async def has_kept() -> bool:
            return signal == "keep" or await told(gateway, decoder, "keep") == 1

        await gateway.eventually(has_kept)
        await gateway.client.delete("/v1/conversations/a")

        async def is_told() -> bool:
            return await told(gateway, decoder, other) >= 1

        await gateway.eventually(is_told)
        assert await told(gateway, decoder, signal) == 0


async def test_tool_events_of_a_conversation_that_has_ended_tell_nobody(gateway: Served) -> None:
    await gateway.ask("a", LONG)
    await gateway.client.delete("/v1/conversations/a")
    await tool(gateway, "a", "start")
    await gateway.ask("b", LONG)
    decoder = await decoder_of(gateway, "a")
    assert await told(gateway, decoder, "keep") == 0


class HostTier:
    """What emulated engines have not: a host tier, of which it is noted what it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> None:
        self.offloaded: list[str] = []
        self.fetched: list[str] = []
        plain = ConversationKv.capabilities

        async def capabilities(plugin: ConversationKv) -> Capabilities | NoPlugin:
            found = await plain(plugin)
            assert isinstance(found, Capabilities)
            calls = (*found.calls, "offload", "fetch")
            return Capabilities(found.api_version, calls, found.block_size, found.blocks)

        async def offload(_: ConversationKv, conversations: Sequence[str]) -> None:
            self.offloaded += conversations

        async def fetch(plugin: ConversationKv, conversations: Sequence[str]) -> Fetched:
            self.fetched += conversations
            if fails:
                raise EngineFailed("no", code="engine_error", engine=plugin.spec.name)
            return Fetched(dict.fromkeys(conversations, 320))

        for name, call in (("capabilities", capabilities), ("offload", offload), ("fetch", fetch)):
            monkeypatch.setattr(ConversationKv, name, call)


async def test_the_end_of_the_last_open_tool_brings_kv_back_from_the_host_and_keeps_it(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = HostTier(monkeypatch)
    async with serve() as gateway:
        await gateway.ask("a", LONG)
        decoder = await decoder_of(gateway, "a")
        await tool(gateway, "a", "start")
        await tool(gateway, "a", "start", call_id="second")
        await tool(gateway, "a", "end", duration_s=0.5)
        await tool(gateway, "a", "end", call_id="second", duration_s=0.5)

        async def is_back() -> bool:
            return await gateway.metric(f'conserve_kv_fetched_tokens_total{{engine="{decoder}"}}') == 320

        await gateway.eventually(is_back)
        kept = await told(gateway, decoder, "keep")

        async def is_kept() -> bool:
            return await told(gateway, decoder, "keep") >= max(kept, 2)

        await gateway.eventually(is_kept)
        assert await told(gateway, decoder, "fetch") == 1
    assert (host.fetched, host.offloaded) == (["a"], [])


async def test_beyond_the_budget_kv_leaves_for_the_host_while_a_tool_runs(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = HostTier(monkeypatch)
    decode = [engine_config(Role.DECODE, "decode-0", kv_blocks=40)]
    async with serve(prefill=[], decode=decode, scheduler={"kv_budget_fraction": 0.05}) as gateway:
        await gateway.ask("a", LONG)
        await tool(gateway, "a", "start")

        async def is_offloaded() -> bool:
            return await told(gateway, "decode-0", "offload") == 1

        await gateway.eventually(is_offloaded)
        await tool(gateway, "a", "end", duration_s=0.5)

        async def is_refreshed() -> bool:
            return await told(gateway, "decode-0", "refresh") >= 1

        await gateway.eventually(is_refreshed)
    assert (host.offloaded, host.fetched) == (["a"], ["a"])


async def test_a_fetch_that_fails_is_counted_and_the_turn_is_served(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    HostTier(monkeypatch, fails=True)
    async with serve() as gateway:
        await gateway.ask("a", LONG)
        decoder = await decoder_of(gateway, "a")
        await tool(gateway, "a", "start")
        await tool(gateway, "a", "end", duration_s=0.5)
        failed = f'{SIGNALS}{{engine="{decoder}",outcome="failed",signal="fetch"}}'

        async def is_counted() -> bool:
            return await gateway.metric(failed) == 1

        await gateway.eventually(is_counted)
        assert (await gateway.ask("a", LONG + "and more")).status_code == 200


async def test_the_host_tier_can_be_left_alone(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    host = HostTier(monkeypatch)
    async with serve(kv={"uses_host_tier": False}) as gateway:
        await gateway.ask("a", LONG)
        decoder = await decoder_of(gateway, "a")
        await tool(gateway, "a", "start")
        await tool(gateway, "a", "end", duration_s=0.5)
        await gateway.ask("a", LONG + "and more")

        async def is_kept() -> bool:
            return await told(gateway, decoder, "keep") >= 1

        await gateway.eventually(is_kept)
    assert host.fetched == []
