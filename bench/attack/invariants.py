"""What must hold after every attack, whatever it was."""

from __future__ import annotations

import asyncio
from itertools import count

from bench.attack.case import expect
from bench.attack.ground import Ground

SETTLE_S = 15.0
_names = count(1)


async def check(ground: Ground) -> None:
    """The gateway runs and is healthy, an honest conversation is served, and nothing stays behind."""
    expect(ground.gateway.runs, "the gateway's process ended")
    health = await ground.get("/health", admin=True)
    expect("engines" in health, f"/health says {health}")
    name = f"honest-{next(_names)}"
    for turn in (1, 2):
        answer = await ground.ask(name, "When does the ferry sail? " * turn)
        expect(
            answer.status == 200, f"an honest turn was answered with {answer.status}: {answer.body[:300]!r}"
        )
    await ground.release(name)
    await _settled(ground)


async def _settled(ground: Ground) -> None:
    async with asyncio.timeout(SETTLE_S):
        while (waiting := await _waiting(ground)) > 0:  # noqa: ASYNC110 - seen over HTTP
            await asyncio.sleep(0.2)
    expect(waiting == 0, f"{waiting} turns still wait")


async def _waiting(ground: Ground) -> float:
    page = await ground.page("/metrics")
    rows = [row for row in page.splitlines() if row.startswith("conserve_waiting_turns")]
    return sum(float(row.rsplit(" ", 1)[1]) for row in rows)
