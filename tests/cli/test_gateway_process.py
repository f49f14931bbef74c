"""The demo's gateway: up when its block is entered, gone when it is left."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from conserve_server.cli.gateway_process import running_gateway
from conserve_server.core.errors import ConserveError
from conserve_server.engines.emulated import EmulatedConfig, EmulatedEngineServer
from conserve_server.engines.engine import Role
from conserve_server.engines.engine_log import log_tail
from conserve_server.engines.guardian import descendants
from tests.processes import eventually, is_running, wait_for

pytestmark = pytest.mark.slow
NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"CONSERVE_TRACE_DIR": str(tmp_path / "traces")}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "logs" / "gateway.log"
    wait_for(lambda: descendants(os.getpid()) == [], "processes that were killed to be gone")


def config(folder: Path, url: str, more: str = "") -> Path:
    path = folder / "conserve.toml"
    path.write_text(f'[pools.decode]\nengines = ["{url}"]\n{more}')
    return path


async def test_it_can_serve_inside_and_is_gone_after(tmp_path: Path, env: dict[str, str], log: Path) -> None:
    async with EmulatedEngineServer(EmulatedConfig(name="decode-0", role=Role.DECODE)) as engine:
        # A port of the configuration's own is not touched: another gateway may be there.
        path = config(tmp_path, engine.url, "[gateway]\nport = 1\n")
        async with running_gateway(path, env, log) as url, httpx2.AsyncClient() as client:
            assert (await client.get(url + "/health")).status_code == 200
            pids = descendants(os.getpid())
            assert len(pids) == 2  # the guardian and the gateway
    assert not any(map(is_running, pids))
    assert any(f"conserve gateway on {url}/v1" in line for line in log_tail(log))


async def test_one_that_ends_is_an_error_with_the_end_of_its_log(
    tmp_path: Path, env: dict[str, str], log: Path
) -> None:
    with pytest.raises(ConserveError) as error:
        async with running_gateway(config(tmp_path, NOBODY, "[gateway]\nprot = 1\n"), env, log):
            pass
    assert "the gateway ended with exit status 2; the end of" in str(error.value)
    assert "gateway.prot: no such key" in str(error.value)


async def test_one_without_an_engine_is_given_up_in_time(
    tmp_path: Path, env: dict[str, str], log: Path
) -> None:
    with pytest.raises(
        ConserveError, match=r"the gateway was not ready within 2 s; the end of .*gateway\.log"
    ):
        async with running_gateway(config(tmp_path, NOBODY), env, log, start_timeout_s=2.0):
            pass


async def test_cancelled_while_it_starts_it_is_stopped(
    tmp_path: Path, env: dict[str, str], log: Path
) -> None:
    async def enter() -> None:
        async with running_gateway(config(tmp_path, NOBODY), env, log):
            pass

    starting = asyncio.create_task(enter())
    await eventually(lambda: len(descendants(os.getpid())) == 2, "the gateway's process")
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
