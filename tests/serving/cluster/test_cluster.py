"""Engines under watch: legs end with their engine, and doubts are settled at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from conserve_server.core.clock import SystemClock
from conserve_server.core.errors import EngineFailed
from conserve_server.engines.engine import Answer, EngineSpec, EngineStatus, PrefillAnswer, Role
from conserve_server.scheduling.engine_state import EngineProfile
from conserve_server.scheduling.policies.conserve import ConServe
from conserve_server.scheduling.scheduler import Scheduler
from conserve_server.serving.cluster.cluster import Cluster
from conserve_server.serving.driving.coordinator import Coordinator
from conserve_server.serving.driving.telling import BookErrors
from conserve_server.telemetry.metrics import GatewayMetrics

NEVER_S = 60.0


class FakeEngine:
    """An engine that says of itself what the test wants: the name of its generation, or nothing (None)."""

    spec = EngineSpec("d0", Role.DECODE, "http://d0")
    generation: str | None = "1"
    looks = 0

    async def look(self) -> EngineStatus:
        self.looks += 1
        if self.generation is None:
            raise EngineFailed("engine d0 is silent", code="engine_timeout", engine="d0")
        return EngineStatus(("m",), self.generation, 1000, 0.0, 0, 0, emulated=True)

    async def prefill(self, path: str, body: bytes, headers: Mapping[str, str]) -> PrefillAnswer:
        raise NotImplementedError

    def send(
        self, path: str, body: bytes, headers: Mapping[str, str], *, method: str = "POST"
    ) -> AbstractAsyncContextManager[Answer]:
        raise NotImplementedError


@asynccontextmanager
async def watched(engine: FakeEngine, interval_s: float) -> AsyncIterator[Cluster]:
    """A cluster of this engine, which has been seen up."""
    profile = EngineProfile("d0", takes_conversations=True)
    scheduler = Scheduler(ConServe(), engines=[profile], kv_budget_fraction=1.0)
    coordinator = Coordinator(
        scheduler, SystemClock(), BookErrors(GatewayMetrics()), max_wait_s=1.0, leg_timeout_s=1.0
    )
    cluster = Cluster([engine], coordinator, GatewayMetrics())
    watch = asyncio.create_task(cluster.watch(engine, SystemClock(), interval_s))
    async with asyncio.timeout(5.0):
        while not cluster.statuses:  # noqa: ASYNC110 - a look sets no event
            await asyncio.sleep(0.001)
        yield cluster
    watch.cancel()


async def hang(cluster: Cluster) -> None:
    with cluster.leg("d0"):
        await asyncio.Event().wait()


@pytest.mark.parametrize("generation", [None, "2"], ids=["down", "restarted"])
async def test_a_leg_on_an_engine_that_is_found_gone_ends_at_once(generation: str | None) -> None:
    engine = FakeEngine()
    async with watched(engine, 0.005) as cluster:
        leg = asyncio.create_task(hang(cluster))
        await asyncio.sleep(0)
        engine.generation = generation
        with pytest.raises(EngineFailed, match="went down") as failed:
            await leg
        assert failed.value.code == "engine_lost"


async def test_a_doubted_engine_is_known_to_be_down_without_waiting_for_the_next_looks() -> None:
    engine = FakeEngine()
    async with watched(engine, NEVER_S) as cluster:
        leg = asyncio.create_task(hang(cluster))
        await asyncio.sleep(0)
        engine.generation = None
        cluster.doubt("d0")
        with pytest.raises(EngineFailed):
            await leg
        assert engine.looks == 4


async def test_a_doubted_engine_that_is_well_keeps_its_legs() -> None:
    engine = FakeEngine()
    async with watched(engine, NEVER_S) as cluster:
        leg = asyncio.create_task(hang(cluster))
        cluster.doubt("d0")
        while engine.looks < 2:  # noqa: ASYNC110 - a look sets no event
            await asyncio.sleep(0.001)
        assert "d0" in cluster.statuses
        assert not leg.done()
        leg.cancel()


async def test_a_time_limit_within_a_leg_stays_what_it_is() -> None:
    async with watched(FakeEngine(), NEVER_S) as cluster:
        with pytest.raises(TimeoutError), cluster.leg("d0"):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
