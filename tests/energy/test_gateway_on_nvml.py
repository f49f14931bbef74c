"""A gateway process that reads GPUs through the real NVML binding, over the fake driver.

What each GPU draws is written by the test from what it makes the engines do, so that every
conversation's true energy is known: idle watts while it holds KV, and the watts beyond idle while
its turns run. The gateway knows none of that; it sees counters and its own traffic.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from conserve_sdk.protocol import ConversationReport, EnergySource
from conserve_server.engines.emulated import EmulatedConfig, EmulatedEngineServer, EmulatedTiming
from conserve_server.engines.engine import Role
from tests.energy.conftest import FakeDriver
from tests.processes import LIMIT_S

IDLE_W, DECODE_W = 100.0, 420.0
QUANTUM_S = 0.02
WINDOW_S = 1.0
MODEL = "tiny"


@dataclass
class Gpu:
    """What one GPU draws now and has drawn."""

    watts: float = IDLE_W
    energy_j: float = 10_000.0
    since_s: float = field(default_factory=time.monotonic)

    def draws(self, watts: float) -> None:
        self.advance()
        self.watts = watts

    def advance(self) -> float:
        now_s = time.monotonic()
        self.energy_j += self.watts * (now_s - self.since_s)
        self.since_s = now_s
        return self.energy_j


@dataclass
class Truth:
    """What a conversation really cost, as the test made it happen."""

    busy_s: float = 0.0
    held_s: float = 0.0

    @property
    def energy_j(self) -> float:
        return IDLE_W * self.held_s + (DECODE_W - IDLE_W) * self.busy_s


async def keep_counting(driver: FakeDriver, gpus: list[Gpu]) -> None:
    """Refresh the counters every 20 ms, as drivers do."""
    while True:
        for index, gpu in enumerate(gpus):
            driver.energy(index, gpu.advance())
        await asyncio.sleep(QUANTUM_S)


@asynccontextmanager
async def counting(driver: FakeDriver, gpus: list[Gpu]) -> AsyncIterator[None]:
    driver.gpus(*(f"{IDLE_W} {IDLE_W} -" for _ in gpus))
    task = asyncio.create_task(keep_counting(driver, gpus))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def serving(folder: Path, driver: FakeDriver, engines: list[str]) -> AsyncIterator[str]:
    """`conserve serve` over these decode engines, each on the GPU of its number."""
    config = folder / "conserve.toml"
    devices = "\n".join(f'decode-{i} = ["{i}"]' for i in range(len(engines)))
    config.write_text(
        f"[pools.decode]\nengines = {json.dumps(engines)}\n[gateway]\nprobe_interval_s = 0.2\n"
        f'[energy]\nmeter = "nvml"\nidle_w = {IDLE_W}\nwindow_s = {WINDOW_S}\n[energy.devices]\n{devices}\n'
    )
    with (folder / "gateway.log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "conserve_server.cli.main", "serve", str(config), "--port", "0"),
            stdout=PIPE,
            stderr=log,
            env={**os.environ, **driver.env, "OTEL_TRACES_EXPORTER": "none"},
        )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            announced = (await process.stdout.readuntil(b"traces")).decode()
        found = re.search(r"http://[\d.:]+", announced)
        assert found is not None
        yield found.group()
    finally:
        process.terminate()
        async with asyncio.timeout(LIMIT_S):
            await process.communicate()


@dataclass
class Bench:
    """A gateway, its GPUs, and what is true."""

    client: httpx2.AsyncClient
    gpus: list[Gpu]

    async def health(self) -> dict[str, Any]:
        document: dict[str, Any] = (await self.client.get("/health")).json()
        return document

    async def ready(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not all(engine["up"] for engine in (await self.health())["engines"]):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def turn(self, conversation: str, truth: Truth, tokens: int) -> str:
        """One streamed turn, alone on its GPU while it runs; the engine that served it."""
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "max_tokens": tokens,
        }
        headers = {"x-conserve-conversation-id": conversation}
        started_s = time.monotonic()
        async with self.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            decoder = answer.headers["x-conserve-decoder"]
            gpu = self.gpus[int(decoder.removeprefix("decode-"))]
            gpu.draws(DECODE_W)
            drawing_s = time.monotonic()
            async for _ in answer.aiter_bytes():
                pass
        gpu.draws(IDLE_W)
        truth.busy_s += time.monotonic() - drawing_s
        truth.held_s += time.monotonic() - started_s
        return decoder

    async def converse(self, conversation: str, turns: int) -> Truth:
        """Turns with tool gaps between them, then its release."""
        truth = Truth()
        for number in range(turns):
            await self.turn(conversation, truth, tokens=120)
            if number + 1 < turns:
                gap_s = time.monotonic()
                await asyncio.sleep(0.7)
                truth.held_s += time.monotonic() - gap_s
        await self.client.delete(f"/v1/conversations/{conversation}")
        return truth

    async def report(self, conversation: str) -> ConversationReport:
        """The report once the last interval was read."""
        await asyncio.sleep(2.5 * WINDOW_S)
        answer = await self.client.get(f"/v1/conversations/{conversation}")
        return ConversationReport.from_json(answer.json())


@asynccontextmanager
async def bench(folder: Path, driver: FakeDriver, engines: int) -> AsyncIterator[Bench]:
    timing = EmulatedTiming(decode_s=12e-3)
    async with AsyncExitStack() as stack:
        urls = []
        for number in range(engines):
            config = EmulatedConfig(model=MODEL, name=f"decode-{number}", role=Role.DECODE, timing=timing)
            urls.append((await stack.enter_async_context(EmulatedEngineServer(config))).url)
        gpus = [Gpu() for _ in urls]
        await stack.enter_async_context(counting(driver, gpus))
        url = await stack.enter_async_context(serving(folder, driver, urls))
        client = await stack.enter_async_context(httpx2.AsyncClient(base_url=url, timeout=LIMIT_S))
        found = Bench(client, gpus)
        await found.ready()
        yield found


@pytest.mark.slow
async def test_conversations_are_charged_their_true_energy_within_one_percent_and_one_interval(
    tmp_path: Path, built_driver: FakeDriver
) -> None:
    async with bench(tmp_path, built_driver, engines=2) as found:
        await asyncio.sleep(1.5 * WINDOW_S)
        truths = await asyncio.gather(*(found.converse(name, turns=4) for name in ("a", "b")))
        reports = [await found.report(name) for name in ("a", "b")]
        domains = (await found.health())["energy"]["domains"]
    assert {report.decoder for report in reports} == {"decode-0", "decode-1"}
    for report, truth in zip(reports, truths, strict=True):
        energy = report.energy
        assert (energy.source, energy.reason, energy.pending) == (EnergySource.MEASURED, None, False)
        assert energy.total_j is not None
        allowed_j = 0.01 * truth.energy_j + DECODE_W * QUANTUM_S
        print(f"charged {energy.total_j:.1f} J, true {truth.energy_j:.1f} J, allowed ±{allowed_j:.1f} J")
        assert energy.total_j == pytest.approx(truth.energy_j, abs=allowed_j)
        assert energy.gap_j == pytest.approx(3 * 0.7 * IDLE_W, rel=0.1)
    for domain in domains:
        placed_j = domain["charged_j"] + domain["unallocated_idle_j"] + domain["unallocated_dynamic_j"]
        assert placed_j == pytest.approx(domain["metered_j"], rel=1e-9)
        assert domain["devices"][0]["how"] == "NVML energy counter"


@pytest.mark.slow
async def test_a_driver_that_is_loaded_again_makes_its_turns_unknown_and_later_ones_known(
    tmp_path: Path, built_driver: FakeDriver
) -> None:
    async with bench(tmp_path, built_driver, engines=1) as found:
        await asyncio.sleep(1.5 * WINDOW_S)
        await found.turn("before", Truth(), tokens=40)
        found.gpus[0].energy_j = 0.0
        before = await found.report("before")
        await found.turn("after", Truth(), tokens=40)
        after = await found.report("after")
    (turn,) = before.turns
    assert turn.energy.total_j is None or turn.energy.source is EnergySource.MEASURED
    assert "missing: a meter was reset" in (before.energy.reason or "")
    assert after.turns[0].energy.total_j is not None
