"""What is noted of a gateway that is watched, in the test's own event loop."""

from __future__ import annotations

import asyncio

import pytest

from conserve_server.simulation.live.recorder import Recording, watch
from conserve_server.simulation.live.replay import replay
from conserve_server.simulation.live.token_client import LiveError, connected
from conserve_server.simulation.workload import Arrival, ConversationShape, TurnShape, Workload
from tests.gateway.conftest import served

TURNS = (TurnShape(120, 4), TurnShape(30, 3))
WORKLOAD = Workload("w", (Arrival(0.0, ConversationShape("a", TURNS)),))


async def test_what_was_served_before_and_what_comes_is_noted_once() -> None:
    recording, knows_one, knows_both = Recording(), asyncio.Event(), asyncio.Event()

    def tell(recording: Recording) -> None:
        knows_one.set()
        if recording.turn_count >= 2 * len(TURNS):
            knows_both.set()

    async with served() as gateway, connected(gateway.url) as client:
        await replay(WORKLOAD, client, run_name="one")
        watching = asyncio.create_task(watch(gateway.url, recording, tell=tell))
        await asyncio.wait_for(knows_one.wait(), 10)
        assert recording.turn_count == len(TURNS)
        await replay(WORKLOAD, client, run_name="two")
        await asyncio.wait_for(knows_both.wait(), 10)
    await asyncio.wait_for(watching, 10)
    assert [[turn.output_tokens for turn in turns] for turns in recording.conversations] == [[4, 3], [4, 3]]


async def test_a_gateway_that_stops_ends_the_recording_and_all_is_kept() -> None:
    recording, knows = Recording(), asyncio.Event()
    async with served() as gateway, connected(gateway.url) as client:
        await replay(WORKLOAD, client)
        watching = asyncio.create_task(watch(gateway.url, recording, tell=lambda _: knows.set()))
        await asyncio.wait_for(knows.wait(), 10)
    await asyncio.wait_for(watching, 10)
    assert recording.lost is not None
    assert recording.lost.startswith("the gateway")
    assert recording.turn_count == 2


async def test_a_key_that_may_not_watch_is_said_so() -> None:
    async with served(admin_key="a-long-secret-key") as gateway:
        with pytest.raises(LiveError, match="answered 401"):
            await watch(gateway.url, Recording(), seconds=1)
