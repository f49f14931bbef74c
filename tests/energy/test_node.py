"""The node agent and the meter that reads it, over HTTP; and as a process over the fake driver."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from conserve_sdk.protocol import EnergySource
from conserve_server.core.clock import SystemClock
from conserve_server.core.errors import ConfigError
from conserve_server.energy.node import NodeMeter
from conserve_server.energy.node_agent import node_app
from conserve_server.energy.nvml import NvmlMeter
from tests.energy.conftest import FakeDriver
from tests.gateway.conftest import serve_app
from tests.processes import LIMIT_S


async def test_a_nodes_devices_are_read_as_its_agent_sees_them(driver: FakeDriver) -> None:
    driver.gpus("75 400 -", "75 400 m")
    driver.energy(0, 12.5)
    driver.energy(1, 3.0)
    async with serve_app(node_app(NvmlMeter(0.1), SystemClock().now_s)) as url:
        meter = await asyncio.to_thread(NodeMeter, "node-a", url)
        whole, sliced = meter.devices
        assert (whole.name, whole.aliases) == ("node-a/0", ("node-a/GPU-000000000000",))
        assert (whole.source, whole.how) == (
            EnergySource.MEASURED,
            "NVML energy counter, by its node agent",
        )
        assert (whole.idle_w, whole.limit_w) == (75, 700)
        assert "MIG is on" in (sliced.note or "")
        driver.gpus("75 400 -", "75 400 l")
        first, lost = await asyncio.to_thread(meter.read, 5.0)
        assert (first.energy_j, first.time_s) == (12.5, 5.0)
        assert (lost.energy_j, lost.error) == (None, "GPU is lost")
    gone = await asyncio.to_thread(meter.read, 6.0)
    assert [reading.energy_j for reading in gone] == [None, None]
    meter.close()


def test_an_agent_that_is_not_there_names_the_fix() -> None:
    with pytest.raises(ConfigError, match="start conserve node-agent there"):
        NodeMeter("node-a", "http://127.0.0.1:9")


WELL = {"name": "0", "label": "GPU", "how": "counter", "source": "measured"}
WRONG_PAGES = {
    "no JSON": b"<html>",
    "nested": b"[" * 100_000,
    "no device": b'{"devices": [1]}',
    "an unknown source": json.dumps({"devices": [{**WELL, "source": "guessed"}]}).encode(),
    "a name of a megabyte": json.dumps({"devices": [{**WELL, "name": "x" * 1_000_000}]}).encode(),
    "a million devices": json.dumps({"devices": [WELL] * 5_000}).encode(),
}


@pytest.mark.parametrize("page", WRONG_PAGES.values(), ids=WRONG_PAGES)
async def test_a_page_that_is_no_agents_is_named_at_the_start_and_costs_readings_later(page: bytes) -> None:
    pages = [json.dumps({"devices": [{**WELL, "energy_j": 1.0}]}).encode(), page, page]

    async def answer(_request: Request) -> Response:
        return Response(pages.pop(0))

    async with serve_app(Starlette(routes=[Route("/v1/devices", answer)])) as url:
        meter = await asyncio.to_thread(NodeMeter, "node-a", url)
        (reading,) = await asyncio.to_thread(meter.read, 0.0)
        if b"guessed" not in page:  # what a device's joules are called is asked once
            assert (reading.energy_j, url in (reading.error or "")) == (None, True)
        with pytest.raises(ConfigError, match=r"energy\.nodes\.node-a"):
            await asyncio.to_thread(NodeMeter, "node-a", url)
        meter.close()


@asynccontextmanager
async def agent(driver: FakeDriver) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """`conserve node-agent` as a process, and its URL."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "conserve_server.cli.main", "node-agent", "--port", "0"),
        stdout=PIPE,
        stderr=PIPE,
        env=driver.env,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            announced = (await process.stdout.readline()).decode()
        found = re.search(r"http://[\d.:]+", announced)
        assert found is not None, announced
        yield process, found.group()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.slow
async def test_the_agent_serves_the_real_binding_until_it_is_told_to_stop(built_driver: FakeDriver) -> None:
    built_driver.gpus("75 400 -", "75 200 n NVIDIA A40")
    built_driver.energy(0, 100.0)
    async with agent(built_driver) as (process, url):
        meter = await asyncio.to_thread(NodeMeter, "gpu-node", url)
        assert [device.how for device in meter.devices] == [
            "NVML energy counter, by its node agent",
            "NVML power, integrated every 0.1 s, by its node agent",
        ]
        before = await asyncio.to_thread(meter.read, 0.0)
        built_driver.energy(0, 160.0)
        await asyncio.sleep(0.5)
        after = await asyncio.to_thread(meter.read, 0.5)
        assert (after[0].energy_j or 0) - (before[0].energy_j or 0) == 60
        integrated_j = (after[1].energy_j or 0) - (before[1].energy_j or 0)
        assert integrated_j == pytest.approx(100, rel=0.5)  # 200 W for about half a second
        meter.close()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(LIMIT_S):
            await process.wait()
    assert process.returncode in (0, -signal.SIGTERM)
