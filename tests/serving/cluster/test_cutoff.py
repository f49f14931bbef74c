"""A block that another task ends: its own reason, once, and nobody else's cancellation swallowed."""

from __future__ import annotations

import asyncio

import pytest

from conserve_server.serving.cluster.cutoff import Cutoff


class Over(Exception):
    """Why the block ended."""


def block(running: set[Cutoff[str]]) -> Cutoff[str]:
    return Cutoff("value", running, Over)


async def until_cut(running: set[Cutoff[str]], entered: asyncio.Event) -> None:
    with block(running) as value:
        assert value == "value"
        entered.set()
        await asyncio.Event().wait()


async def test_a_cut_block_raises_its_reason_and_the_task_goes_on() -> None:
    running: set[Cutoff[str]] = set()
    entered = asyncio.Event()

    async def serve() -> str:
        with pytest.raises(Over):
            await until_cut(running, entered)
        await asyncio.sleep(0)  # is cancelled no more
        return "went on"

    task = asyncio.ensure_future(serve())
    await entered.wait()
    (one,) = running
    one.cut()
    one.cut()
    assert await task == "went on"
    assert not running


async def test_a_block_that_ends_by_itself_is_out_of_reach() -> None:
    running: set[Cutoff[str]] = set()
    with block(running):
        assert len(running) == 1
    assert not running
    with pytest.raises(ZeroDivisionError), block(running):
        1 / 0  # noqa: B018 - raises
    assert not running


@pytest.mark.parametrize("is_cut_too", [False, True])
async def test_a_task_that_is_cancelled_stays_cancelled(is_cut_too: bool) -> None:
    running: set[Cutoff[str]] = set()
    entered = asyncio.Event()
    task = asyncio.ensure_future(until_cut(running, entered))
    await entered.wait()
    (one,) = running
    task.cancel()
    if is_cut_too:
        one.cut()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not running


async def test_an_inner_block_that_is_cut_does_not_end_the_outer_one() -> None:
    outer: set[Cutoff[str]] = set()
    inner: set[Cutoff[str]] = set()
    entered = asyncio.Event()

    async def serve() -> str:
        with block(outer):
            with pytest.raises(Over):
                await until_cut(inner, entered)
            await asyncio.sleep(0)
            return "outer"

    task = asyncio.ensure_future(serve())
    await entered.wait()
    next(iter(inner)).cut()
    assert await task == "outer"
