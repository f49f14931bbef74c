"""What no client may do: choose addresses, hold places for ever, read for another origin."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from conserve_server.engines.engine import Role

from .conftest import MODEL, WAIT_S, Serve, Served, engine_config

TEXT = "the ferry sails fourteen times a day and carries two hundred passengers " * 8
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 4},
    "/v1/completions": {"prompt": TEXT, "max_tokens": 4},
    "/v1/responses": {"input": TEXT, "max_output_tokens": 4},
    "/v1/messages": {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 4},
}


@asynccontextmanager
async def listener() -> AsyncIterator[tuple[int, list[bytes]]]:
    """A port that nobody configured, and what was said to it."""
    heard: list[bytes] = []

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heard


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("path", BODIES)
async def test_transfer_parameters_of_a_client_reach_no_engine(
    serve: Serve, path: str, is_streamed: bool
) -> None:
    """In a first turn (both legs) and in a later one (whose bytes go through untouched otherwise)."""
    async with listener() as (port, heard), serve() as gateway:
        pull = {
            "do_remote_prefill": True,
            "remote_engine_id": "x",
            "remote_block_ids": [1],
            "remote_port": port,
        }
        pull |= {"remote_host": "127.0.0.1", "remote_request_id": "x", "tp_size": 1}
        body = {"model": MODEL, **BODIES[path], "stream": is_streamed, "kv_transfer_params": pull}
        body |= {"ec_transfer_params": pull, "remote_host": "127.0.0.1", "remote_port": port}
        for _ in range(2):
            answer = await gateway.client.post(path, json=body, headers={"x-session-id": "a"})
            assert answer.status_code == 200
        report = await gateway.report("a")
        assert [turn["path"] for turn in report["turns"]] == ["remote-prefill", "pinned"]  # type: ignore[attr-defined]
        assert not heard


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params"])
async def test_transfer_parameters_in_vllms_extra_arguments_are_refused(
    gateway: Served, path: str, name: str
) -> None:
    body = {"model": MODEL, **BODIES[path], "vllm_xargs": {name: "x"}}
    answer = await gateway.client.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_field"
    fine = await gateway.client.post(path, json={**body, "vllm_xargs": {"other": 1}})
    assert fine.status_code == 200


async def test_a_response_id_is_no_way_to_another_path_of_an_engine(gateway: Served) -> None:
    for escape in (
        "..%2F..%2Fmetrics",
        "..%2Fmetrics",
        "%2e%2e",
        "x%3Fstream%3Dtrue",
        "http:%2F%2Fexample.org",
    ):
        answer = await gateway.client.get(f"/v1/responses/{escape}")
        assert answer.status_code == 404


async def _slowly(gateway: Served, path: str) -> bytes:
    """All that is answered to a body that never ends."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{{".encode())
    await writer.drain()
    async with asyncio.timeout(WAIT_S):
        found = await reader.read()
    writer.close()
    return found


@pytest.mark.parametrize("path", [*BODIES, "/v1/messages/count_tokens", "/v1/conversations/a/events"])
async def test_a_body_that_never_ends_is_a_408_and_the_connection_is_closed(serve: Serve, path: str) -> None:
    async with serve(body_timeout_s=0.1, max_concurrent_turns=1) as gateway:
        await gateway.ask("a", "hello")
        found = await _slowly(gateway, path)
        head, _, body = found.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408")
        assert json.loads(body)["error"]["code"] == "body_timeout"
        assert (await gateway.ask("a", "hello")).status_code == 200  # its place is free again


async def test_a_page_of_another_origin_is_told_nothing_unless_configured(serve: Serve) -> None:
    origin = {"origin": "https://app.example.org"}
    ask = {
        **origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    async with serve() as gateway:
        assert (
            "access-control-allow-origin"
            not in (await gateway.client.get("/v1/models", headers=origin)).headers
        )
        assert (await gateway.client.options("/v1/chat/completions", headers=ask)).status_code == 405
    async with serve(cors_origins=("https://app.example.org",)) as gateway:
        asked = await gateway.client.options("/v1/chat/completions", headers=ask)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-headers"] == "authorization"
        allowed = await gateway.client.get("/v1/models", headers=origin)
        assert allowed.headers["access-control-allow-origin"] == "https://app.example.org"
        assert "x-request-id" in allowed.headers["access-control-expose-headers"]
        other = await gateway.client.get("/v1/models", headers={"origin": "https://other.example.org"})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/chat/completions", {"message", "type", "param", "code"}),
        ("/v1/messages", {"message", "type", "code"}),
    ],
)
async def test_a_turn_without_room_is_a_503_with_a_reason_and_a_time(
    serve: Serve, path: str, shape: set[str]
) -> None:
    tiny = [engine_config(Role.DECODE, "decode-0", kv_blocks=16)]
    async with serve(decode=tiny, max_wait_s=0.1) as gateway:
        answers = []
        for name in "abcdef":  # prompts that share nothing
            own = [{"role": "user", "content": f"{name}: {TEXT}"}]
            body = {"model": MODEL, **BODIES[path], "messages": own}
            answers.append(await gateway.client.post(path, json=body, headers={"x-session-id": name}))
        refused = [answer for answer in answers if answer.status_code != 200]
        assert refused
        for answer in refused:
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert set(answer.json()["error"]) == shape
            assert answer.json()["error"]["code"] == "no_kv_capacity"
