"""Tenants that want more KV than there is: who waits is served, who rests goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2

from conserve_server.engines.engine import Role

from .conftest import MODEL, Serve, Served, engine_config

TEXT = "the ferry sails at noon and carries two hundred passengers " * 20
TENANTS: dict[str, Any] = {"tenants": {"alpha": {"api_keys": ["a"]}, "beta": {"api_keys": ["b"]}}}
ADMIN = {"authorization": "Bearer admin"}


async def ask(gateway: Served, name: str, key: str) -> httpx2.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"{name}: {TEXT}"}], "max_tokens": 4}
    headers = {"authorization": f"Bearer {key}", "x-session-id": name}
    return await gateway.client.post("/v1/chat/completions", json=body, headers=headers)


def small() -> list[Any]:
    return [engine_config(Role.DECODE, "decode-0", kv_blocks=50)]


async def test_a_tenant_that_holds_everything_gives_to_one_that_waits(serve: Serve) -> None:
    async with serve(
        prefill=[], decode=small(), is_ready=False, max_wait_s=9.0, yield_after_s=0.2, **TENANTS
    ) as gateway:
        hoarding = [asyncio.create_task(ask(gateway, f"hoard-{n}", "a")) for n in range(12)]
        await asyncio.wait(hoarding, return_when=asyncio.FIRST_COMPLETED)
        assert (await ask(gateway, "guest", "b")).status_code == 200
        for each in hoarding:
            each.cancel()
        await asyncio.gather(*hoarding, return_exceptions=True)
        later = await ask(gateway, "hoard-0", "a")
        assert later.status_code == 200
        assert later.headers["x-conserve-turn"] == "2"


async def test_tenants_that_hold_their_share_and_no_more_make_room_for_themselves(serve: Serve) -> None:
    """Both wait, and neither has anything to give to the other."""
    async with serve(
        prefill=[], decode=small(), is_ready=False, max_wait_s=5.0, yield_after_s=0.1, **TENANTS
    ) as gateway:
        for n in range(2):
            for key in "ab":
                assert (await ask(gateway, f"at-rest-{key}-{n}", key)).status_code == 200
        answers = await asyncio.gather(*(ask(gateway, f"next-{key}", key) for key in "ab"))
        assert [answer.status_code for answer in answers] == [200, 200]


async def test_a_conversation_that_yielded_says_so_when_it_goes_on(serve: Serve) -> None:
    async with serve(prefill=[], decode=small(), max_wait_s=9.0, yield_after_s=0.1) as gateway:
        names = [f"c-{n}" for n in range(8)]
        for name in names:
            assert (await ask(gateway, name, "-")).status_code == 200
        again = await ask(gateway, names[0], "-")
        assert again.headers["x-conserve-rebind"] == "yielded"
        assert (await gateway.report(names[0]))["state"] != "ended"


async def test_unnamed_conversations_of_the_tenant_whose_turn_waits_end_before_anothers(serve: Serve) -> None:
    async def unnamed(text: str, key: str) -> str:
        body = {"model": MODEL, "messages": [{"role": "user", "content": f"{text}: {TEXT}"}], "max_tokens": 4}
        headers = {"authorization": f"Bearer {key}"}
        answer = await gateway.client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200
        return str(answer.headers["x-conserve-conversation-id"])

    async with serve(prefill=[], decode=small(), max_wait_s=5.0, **TENANTS) as gateway:
        of_beta = await unnamed("the first", "b")  # idle for longest
        of_alpha = [await unnamed(f"number {n}", "a") for n in range(4)]
        listed = (await gateway.client.get("/v1/conversations", headers={"authorization": "Bearer b"})).json()
    assert [(each["id"], each["state"]) for each in listed["data"]] == [(of_beta, "tool-gap")]
    assert len(set(of_alpha)) == 4


async def test_a_picture_waits_for_no_empty_decoder(serve: Serve) -> None:
    url = "data:image/png;base64," + "iVBORw0KGgo" * 100_000
    content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    decode = [engine_config(Role.DECODE, "decode-0", kv_blocks=100)]
    async with serve(prefill=[], decode=decode, max_wait_s=2.0) as gateway:
        await gateway.ask("other", "hello")
        answer = await gateway.chat("picture", [{"role": "user", "content": content}])  # type: ignore[dict-item]
        assert answer.status_code != 503
