"""Meters over time: intervals that close, wait or are dropped; on a virtual clock."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from conserve_sdk.protocol import EnergySource
from conserve_server.core.clock import SystemClock, VirtualClock
from conserve_server.core.energy_config import EnergyConfig
from conserve_server.energy.accounts import ConversationAccount, Factors, TurnAccount
from conserve_server.energy.idle_watts import IdleWatts
from conserve_server.energy.ledger import EnergyLedger
from conserve_server.energy.legs import Counted
from conserve_server.energy.meter import Device, Reading
from conserve_server.energy.metering import SILENT_S, Metering
from conserve_server.energy.meters import DomainPlan, MeterPlan
from conserve_server.energy.sampler import Sampler


class Scripted:
    """A meter that says what the test wants; None: the device does not answer."""

    can_block = False
    interval_s = None

    def __init__(self, *names: str, idle_w: float | None = None) -> None:
        self.devices: Sequence[Device] = tuple(
            Device(name, "GPU", EnergySource.MEASURED, "a test", idle_w=idle_w) for name in names
        )
        self.energy: dict[str, float | None] = dict.fromkeys(names, 0.0)
        self.is_closed = False

    def read(self, now_s: float) -> Sequence[Reading]:
        return [
            Reading(name, now_s, energy, None if energy is not None else "gone")
            for name, energy in self.energy.items()
        ]

    def close(self) -> None:
        self.is_closed = True


class Bench:
    """A metering over one domain of the scripted devices, and the engine `decode-0` on it."""

    def __init__(self, meter: Scripted, **config: object) -> None:
        self.clock = VirtualClock(100.0)
        self.meter = meter
        self.ledger = EnergyLedger({"d": ("decode-0",)}, self.clock.now_s())
        plan = MeterPlan((meter,), (DomainPlan("d", ("decode-0",), tuple(meter.devices)),))
        self.metering = Metering(plan, self.ledger, self.clock, EnergyConfig(**config))  # type: ignore[arg-type]

    @property
    def totals(self) -> tuple[int, float, int]:
        """Intervals, joules, dropped intervals."""
        found = self.ledger.domains["d"].totals
        return found.intervals, found.metered_j, found.dropped_intervals

    async def second(self, **energy: float | None) -> None:
        """One interval passes, in which the counters came to be these."""
        self.meter.energy |= energy
        await self.clock.advance(1.0)

    def turn(self) -> TurnAccount:
        turn = self.ledger.turn_began(ConversationAccount("t", "m"), self.clock.now_s())
        leg = self.ledger.leg_started(turn, "decode-0", self.clock.now_s(), expected_tokens=10)
        self.ledger.leg_ended(leg, self.clock.now_s(), Counted(10))
        self.ledger.turn_ended(turn, self.clock.now_s())
        return turn


@asynccontextmanager
async def running(*names: str, idle_w: float | None = None, **config: object) -> AsyncIterator[Bench]:
    bench = Bench(Scripted(*names, idle_w=idle_w), **config)
    task = asyncio.create_task(bench.metering.run())
    await bench.clock.advance(0.0)
    try:
        yield bench
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bench.metering.close()
        assert bench.meter.is_closed


async def test_each_interval_is_what_the_devices_drew_in_it() -> None:
    async with running("0", "1") as bench:
        await bench.second(**{"0": 100.0, "1": 50.0})
        await bench.second(**{"0": 180.0, "1": 90.0})
        assert bench.totals == (2, 270.0, 0)


async def test_an_interval_waits_for_a_counter_that_was_not_refreshed() -> None:
    async with running("0", "1") as bench:
        await bench.second(**{"0": 100.0})
        assert bench.totals == (0, 0.0, 0)
        await bench.second(**{"0": 200.0, "1": 80.0})
        assert bench.totals == (1, 280.0, 0)


async def test_a_reset_drops_its_interval_alone() -> None:
    async with running("0") as bench:
        await bench.second(**{"0": 100.0})
        turn = bench.turn()
        await bench.second(**{"0": 1.0})
        await bench.second(**{"0": 61.0})
        assert bench.totals == (2, 160.0, 1)
        assert "a meter was reset" in (turn.report(Factors()).reason or "")


async def test_a_device_that_comes_back_in_time_costs_nothing_to_know() -> None:
    async with running("0") as bench:
        await bench.second(**{"0": None})
        await bench.second(**{"0": 300.0})
        assert bench.totals == (1, 300.0, 0)


async def test_a_device_that_stays_away_is_given_up_and_its_turns_told() -> None:
    async with running("0") as bench:
        turn = bench.turn()
        for _ in range(int(SILENT_S)):
            await bench.second(**{"0": None})
        assert bench.totals == (0, 0.0, 1)
        assert bench.metering.domains[0].problems == ["0: gone"]
        assert turn.is_settled


async def test_idle_watts_are_learned_while_nothing_runs() -> None:
    async with running("0", idle_w=75.0) as bench:
        idle = bench.metering.domains[0].idle
        assert (idle.watts, idle.how) == (75.0, "published")
        await bench.second(**{"0": 110.0})
        assert (idle.watts, idle.how) == (110.0, "learned while nothing ran")
        bench.turn()
        await bench.second(**{"0": 600.0})
        assert idle.watts == 110.0


def test_configured_idle_watts_win_and_without_any_the_least_bounds_them() -> None:
    assert IdleWatts(60.0, 75.0).watts == 60.0
    unknown = IdleWatts(None, None)
    assert unknown.watts == 0.0
    unknown.observe(300.0, was_idle=False)
    unknown.observe(200.0, was_idle=False)
    assert (unknown.watts, unknown.how) == (200.0, "the least that was seen")


# -- the thread --------------------------------------------------------------------------------


class Slow(Scripted):
    """A driver that hangs until it is let go."""

    can_block = True

    def __init__(self) -> None:
        super().__init__("0")
        self.let_go = threading.Event()

    def read(self, now_s: float) -> Sequence[Reading]:
        self.let_go.wait(10)
        return super().read(now_s)


async def test_a_meter_that_hangs_stops_nothing_and_answers_again_later() -> None:
    meter = Slow()
    sampler = Sampler(meter, SystemClock().now_s)
    started_s = time.monotonic()
    assert await sampler.read(0.05) == ()
    assert time.monotonic() - started_s < 5
    meter.let_go.set()
    assert [reading.energy_j for reading in await sampler.read(10.0)] == [0.0]
    await sampler.stop()
    assert meter.is_closed


async def test_a_meter_that_adds_up_watts_is_read_between_intervals_too() -> None:
    class Counting(Scripted):
        can_block = True
        interval_s = 0.001  # type: ignore[assignment]
        reads = 0

        def read(self, now_s: float) -> Sequence[Reading]:
            self.reads += 1
            return super().read(now_s)

    meter = Counting("0")
    sampler = Sampler(meter, SystemClock().now_s)
    async with asyncio.timeout(10):
        while meter.reads < 3:  # noqa: ASYNC110 - a thread sets no event
            await asyncio.sleep(0.001)
    await sampler.stop()


async def test_silence_of_a_meter_is_told_for_each_of_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conserve_server.energy.metering.READ_TIMEOUT_S", 0.01)
    meter = Slow()
    ledger = EnergyLedger({"d": ("decode-0",)}, 0.0)
    plan = MeterPlan((meter,), (DomainPlan("d", ("decode-0",), tuple(meter.devices)),))
    metering = Metering(plan, ledger, SystemClock(), EnergyConfig(window_s=0.01))
    task = asyncio.create_task(metering.run())
    async with asyncio.timeout(10):
        while metering.domains[0].problems != ["0: its meter does not answer"]:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    meter.let_go.set()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await metering.close()


async def test_a_meter_that_raises_costs_a_reading_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Scripted):
        can_block = True
        is_broken = True

        def read(self, now_s: float) -> Sequence[Reading]:
            if self.is_broken:
                raise KeyError("gpu")
            return super().read(now_s)

    meter = Broken("0")
    sampler = Sampler(meter, SystemClock().now_s)
    assert await sampler.read(10.0) == ()
    assert "an energy meter failed" in caplog.text
    meter.is_broken = False
    assert len(await sampler.read(10.0)) == 1
    await sampler.stop()


async def test_a_fault_in_the_books_is_raised_and_the_next_run_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(Scripted("0"))
    settle = bench.ledger.settle

    def fail(now_s: float) -> None:
        monkeypatch.setattr(bench.ledger, "settle", settle)
        raise ZeroDivisionError

    monkeypatch.setattr(bench.ledger, "settle", fail)
    first = asyncio.create_task(bench.metering.run())
    await bench.clock.advance(0.0)
    await bench.second(**{"0": 100.0})
    with pytest.raises(ZeroDivisionError):
        await first
    again = asyncio.create_task(bench.metering.run())
    await bench.clock.advance(0.0)
    await bench.second(**{"0": 250.0})
    assert bench.totals == (2, 250.0, 0)
    again.cancel()
    await bench.metering.close()
    assert bench.meter.is_closed


class Raising(Scripted):
    """A meter that is read in the event loop and breaks its promise not to raise, also at its end."""

    def read(self, now_s: float) -> Sequence[Reading]:
        raise KeyError("gpu", now_s)

    def close(self) -> None:
        super().close()
        raise OSError("no such device")


async def test_a_meter_that_raises_is_silent_and_the_other_meters_are_read_and_closed() -> None:
    broken, well = Raising("0"), Scripted("1")
    ledger = EnergyLedger({"a": ("decode-0",), "b": ("decode-1",)}, 100.0)
    domains = (
        DomainPlan("a", ("decode-0",), tuple(broken.devices)),
        DomainPlan("b", ("decode-1",), tuple(well.devices)),
    )
    clock = VirtualClock(100.0)
    metering = Metering(MeterPlan((broken, well), domains), ledger, clock, EnergyConfig())
    task = asyncio.create_task(metering.run())
    await clock.advance(0.0)
    well.energy["1"] = 100.0
    await clock.advance(1.0)
    assert ledger.domains["b"].totals.metered_j == 100.0
    assert metering.domains[0].problems == ["0: its meter failed: KeyError"]
    assert not task.done()
    task.cancel()
    await metering.close()
    assert (broken.is_closed, well.is_closed) == (True, True)


async def test_a_fault_in_one_domains_books_costs_the_other_domain_nothing() -> None:
    meter = Scripted("0", "1")
    ledger = EnergyLedger({"a": ("decode-0",), "b": ("decode-1",)}, 100.0)
    domains = tuple(
        DomainPlan(name, (engine,), (device,))
        for name, engine, device in zip("ab", ("decode-0", "decode-1"), meter.devices, strict=True)
    )
    clock = VirtualClock(100.0)
    metering = Metering(MeterPlan((meter,), domains), ledger, clock, EnergyConfig())
    task = asyncio.create_task(metering.run())
    await clock.advance(0.0)
    del ledger.domains["a"]
    meter.energy |= {"0": 100.0, "1": 100.0}
    await clock.advance(1.0)
    assert ledger.domains["b"].totals.metered_j == 100.0
    with pytest.raises(ExceptionGroup, match="was not attributed"):
        await task
    await metering.close()


@pytest.mark.parametrize("energy", [float("nan"), float("inf"), float("-inf")])
async def test_a_counter_that_is_no_number_is_no_reading(energy: float) -> None:
    async with running("0") as bench:
        await bench.second(**{"0": 100.0})
        await bench.second(**{"0": energy})
        assert bench.metering.domains[0].problems == [f"0: its counter says {energy}"]
        await bench.second(**{"0": 130.0})
        assert bench.totals == (2, 130.0, 0)
