"""The gateway's loops: they go on after a failure, alone, and are seen to have failed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from conserve_server.core.clock import VirtualClock
from conserve_server.serving.driving.background import LONGEST_PAUSE_S, MAX_REASON, WELL_AFTER_S, Background


class Failing:
    """Work that fails so often, then goes on for ever."""

    def __init__(self, *errors: BaseException) -> None:
        self._errors = list(errors)
        self.begun = 0

    async def __call__(self) -> None:
        self.begun += 1
        if self._errors:
            raise self._errors.pop(0)
        await asyncio.Event().wait()


class Counted:
    """A gateway's loops, and the names of those that failed."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.background = Background(self.clock)
        self.failed: list[str] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.background.running(self.failed.append):
            yield


async def test_a_loop_that_fails_is_counted_shown_and_begun_again(caplog: pytest.LogCaptureFixture) -> None:
    found, work = Counted(), Failing(ValueError("nan"), ZeroDivisionError())
    async with found.running():
        found.background.keep("looks", work, engine="decode-0")
        await found.clock.advance(1.0)
        (shown,) = found.background.describe()
        assert shown == {
            "loop": "looks",
            "engine": "decode-0",
            "runs": True,
            "failures": 2,
            "last_failure": "ZeroDivisionError: ",
        }
        assert work.begun == 3
    assert found.failed == ["looks", "looks"]
    assert "looks of decode-0 failed and goes on: ValueError: nan" in caplog.text


async def test_a_loop_that_fails_ends_no_other() -> None:
    found, broken, well = Counted(), Failing(*[OSError()] * 1000), Failing()
    async with found.running():
        found.background.keep("a", broken)
        found.background.keep("b", well)
        await found.clock.advance(60.0)
        assert well.begun == 1
        assert found.background.problem is None


async def test_the_pause_between_two_beginnings_is_bounded_and_grows() -> None:
    found, broken = Counted(), Failing(*[OSError()] * 10_000)
    async with found.running():
        found.background.keep("a", broken)
        await found.clock.advance(100.0)
        assert 100.0 / LONGEST_PAUSE_S < broken.begun < 30


async def test_a_loop_that_ran_well_for_a_while_begins_again_at_once() -> None:
    found = Counted()
    begun_s: list[float] = []

    async def work() -> None:
        begun_s.append(found.clock.now_s())
        await found.clock.sleep(0.0 if len(begun_s) < 5 else WELL_AFTER_S)
        raise OSError

    async with found.running():
        found.background.keep("a", work)
        await found.clock.advance(500.0)
    assert begun_s[-1] - begun_s[-2] == pytest.approx(WELL_AFTER_S + 0.1)


@pytest.mark.parametrize("cancelled", [True, False], ids=["what it waits for is cancelled", "it returns"])
async def test_a_loop_that_ends_without_an_error_has_failed_as_well(*, cancelled: bool) -> None:
    found = Counted()
    begun = 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun > 1:
            await asyncio.Event().wait()
        if cancelled:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

    async with found.running():
        found.background.keep("a", work)
        await found.clock.advance(1.0)
        assert (begun, found.failed, found.background.problem) == (2, ["a"], None)


async def test_what_is_kept_of_a_failure_is_bounded() -> None:
    found = Counted()
    async with found.running():
        loop = found.background.keep("a", Failing(ValueError("x" * 100_000)))
        await found.clock.advance(1.0)
        assert len(loop.last_failure or "") == MAX_REASON


async def test_a_loop_that_is_told_to_stop_is_forgotten_and_no_problem() -> None:
    found = Counted()
    async with found.running():
        loop = found.background.keep("a", Failing())
        await found.clock.advance(0.0)
        loop.stop()
        await found.clock.advance(0.0)
        assert (found.background.describe(), loop.runs, found.background.problem) == ([], False, None)


async def test_loops_that_end_with_the_gateway_are_no_problem() -> None:
    found, work = Counted(), Failing()
    async with found.running():
        found.background.keep("a", work)
        await found.clock.advance(0.0)
    assert (found.background.problem, found.background.describe()) == (None, [])


async def test_a_loop_that_somebody_else_ends_is_a_problem(caplog: pytest.LogCaptureFixture) -> None:
    found = Counted()
    async with found.running():
        loop = found.background.keep("a", Failing())
        await found.clock.advance(0.0)
        assert loop.task is not None
        loop.task.cancel()
        await found.clock.advance(0.0)
        assert found.background.problem == "a loop has ended: a"
        assert [each["runs"] for each in found.background.describe()] == [False]
    assert "a loop has ended: a: this gateway must be restarted" in caplog.text


async def test_background_work_that_ends_as_a_whole_is_a_problem() -> None:
    found = Counted()

    def count(_loop: str) -> None:
        raise RuntimeError("the guard itself is broken")

    async def serve() -> None:
        async with found.background.running(count):
            found.background.keep("a", Failing(OSError()))
            await asyncio.Event().wait()

    with pytest.raises(BaseExceptionGroup):
        await serve()
    assert found.background.problem is not None
