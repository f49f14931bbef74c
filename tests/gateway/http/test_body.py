"""Reading bodies: what their heads say is believed early, and what is held is counted."""

from __future__ import annotations

import json
from collections.abc import Awaitable

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_server.core.config import parse_config
from conserve_server.core.errors import ConfigError, NoCapacity
from conserve_server.gateway.http.body import BodyMemory
from tests.gateway.conftest import MODEL, Serve
from tests.gateway.http.test_turn_protocol import BODY, PATH, connected, request

ROUTES = [PATH, "/v1/messages/count_tokens", "/v1/conversations/harbour/events"]


@given(st.lists(st.lists(st.integers(0, 40), max_size=5), max_size=8))
def test_what_bodies_hold_never_passes_the_limit_and_is_given_back(bodies: list[list[int]]) -> None:
    memory, blocks = BodyMemory(100), []
    for pieces in bodies:
        held = memory.hold()
        blocks.append(held)
        try:
            for size in pieces:
                held.grow(size)
        except NoCapacity:
            held.__exit__(None, None, None)
        assert 0 <= memory.held_bytes <= 100
    for held in blocks:
        held.__exit__(None, None, None)
    assert memory.held_bytes == 0


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "GZIP"])
@pytest.mark.parametrize("path", ROUTES)
async def test_an_encoded_body_is_a_415_that_says_so(serve: Serve, path: str, coding: str) -> None:
    async with serve() as gateway:
        await gateway.ask("harbour", "hello")
        headers = {"content-encoding": coding}
        answer = await gateway.client.post(path, content=b"\x1f\x8b", headers=headers)
        assert answer.status_code == 415
        assert answer.json()["error"]["code"] == "unsupported_encoding"
        assert coding.lower() in answer.json()["error"]["message"]


async def test_a_body_in_its_own_form_may_say_so(serve: Serve) -> None:
    async with serve() as gateway:
        headers = {"content-encoding": "identity"}
        assert (await gateway.client.post(PATH, content=BODY, headers=headers)).status_code == 200


@pytest.mark.parametrize("path", ROUTES)
async def test_a_body_that_is_no_utf_8_is_a_400_that_names_the_place(serve: Serve, path: str) -> None:
    async with serve() as gateway:
        await gateway.ask("harbour", "hello")
        answer = await gateway.client.post(path, content=b'{"model": "\xff"}')
        assert answer.status_code == 400
        assert "not UTF-8: byte 11 is 0xff" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ROUTES)
async def test_a_length_beyond_the_limit_is_refused_before_a_byte_of_it_comes(
    serve: Serve, path: str
) -> None:
    async with serve() as gateway, connected(gateway.url) as client:
        await gateway.ask("harbour", "hello")
        head = f"POST {path} HTTP/1.1\r\nhost: gateway\r\ncontent-length: 99999999999\r\n\r\n"
        client.send(head.encode())
        status, _, body = await client.answer()
        assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")


async def test_bodies_beyond_what_the_gateway_may_hold_are_refused_until_others_have_ended(
    serve: Serve,
) -> None:
    async with serve(max_body_bytes=1000, max_held_body_bytes=1000) as gateway:
        async with connected(gateway.url) as slow:
            slow.send(request(body=b" " * 900)[:-1])
            await gateway.eventually(lambda: _is_refused(gateway.client.post(PATH, content=BODY * 2)))
        line = 'conserve_refused_total{reason="too_many_body_bytes"}'
        assert await gateway.metric(line) >= 1.0
        body = {"model": MODEL, "messages": [{"role": "user", "content": "a" * 800}], "max_tokens": 2}
        for _ in range(3):
            assert (await gateway.client.post(PATH, json=body)).status_code == 200


async def _is_refused(asking: Awaitable[httpx2.Response]) -> bool:
    answer = await asking
    return answer.status_code == 503 and answer.json()["error"]["code"] == "too_many_body_bytes"


def test_a_gateway_that_could_not_hold_its_largest_body_is_refused() -> None:
    document = {
        "pools": {"decode": {"engines": ["http://127.0.0.1:1"]}},
        "gateway": {"max_body_bytes": 1000, "max_held_body_bytes": 999},
    }
    with pytest.raises(ConfigError, match="max_held_body_bytes is less than max_body_bytes"):
        parse_config(document)
