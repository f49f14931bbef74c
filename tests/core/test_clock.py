"""The virtual clock."""

import asyncio

from conserve_server.core.clock import VirtualClock


async def test_sleepers_wake_in_order_at_their_own_time() -> None:
    clock = VirtualClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, delay_s: float) -> None:
        await clock.sleep(delay_s)
        woken.append((name, clock.now_s()))

    async with asyncio.TaskGroup() as group:
        group.create_task(sleeper("late", 5.0))
        group.create_task(sleeper("early", 1.0))
        await clock.advance(10.0)
    assert woken == [("early", 1.0), ("late", 5.0)]
    assert clock.now_s() == 10.0


async def test_a_cancelled_sleeper_does_not_hold_time_up() -> None:
    clock = VirtualClock()
    task = asyncio.create_task(clock.sleep(1.0))
    await asyncio.sleep(0)
    task.cancel()
    await clock.advance(2.0)
    assert clock.now_s() == 2.0
