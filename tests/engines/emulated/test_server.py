"""Serving: every response is marked, a stop is clean, an address can be used again."""

from __future__ import annotations

import dataclasses

import httpx2
import pytest

from conserve_server.core.errors import EngineStartError
from conserve_server.engines.emulated import EmulatedConfig, EmulatedEngineServer, serve_emulated


@pytest.mark.parametrize(
    ("path", "status"),
    [("/health", 200), ("/version", 200), ("/metrics", 200), ("/v1/models", 200), ("/x", 404)],
)
async def test_every_response_says_that_it_is_emulated(path: str, status: int) -> None:
    async with serve_emulated(EmulatedConfig()) as url, httpx2.AsyncClient() as client:
        answer = await client.get(url + path)
    assert (answer.status_code, answer.headers["x-conserve-emulated"]) == (status, "true")


async def test_the_version_is_emulated() -> None:
    async with serve_emulated(EmulatedConfig()) as url, httpx2.AsyncClient() as client:
        assert (await client.get(f"{url}/version")).json() == {"version": "emulated"}


async def test_an_engine_can_be_restarted_at_its_address() -> None:
    async with EmulatedEngineServer(EmulatedConfig()) as first:
        config = first.config
    async with EmulatedEngineServer(config) as second, httpx2.AsyncClient() as client:
        assert second.url == first.url
        assert (await client.get(f"{second.url}/health")).status_code == 200


async def test_a_taken_port_is_named() -> None:
    async with EmulatedEngineServer(EmulatedConfig()) as engine:
        with pytest.raises(EngineStartError, match=str(engine.config.port)):
            EmulatedEngineServer(dataclasses.replace(engine.config, name="second"))


async def test_a_second_stop_does_nothing() -> None:
    async with EmulatedEngineServer(EmulatedConfig()) as engine:
        await engine.stop()
        await engine.stop()
