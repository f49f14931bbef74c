"""Reads the meters, interval by interval, and hands what they say to the ledger."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from conserve_sdk.protocol import EnergySource
from conserve_server.core.clock import Clock
from conserve_server.core.energy_config import EnergyConfig
from conserve_server.energy.accounts import weakest
from conserve_server.energy.counter import DeviceCounter
from conserve_server.energy.domain import Reading as DomainReading
from conserve_server.energy.idle_watts import IdleWatts
from conserve_server.energy.ledger import EnergyLedger
from conserve_server.energy.meter import Meter, Reading
from conserve_server.energy.meters import DomainPlan, MeterPlan
from conserve_server.energy.sampler import Sampler

READ_TIMEOUT_S: Final = 5.0
"""Longest that an interval waits for a meter; then its devices count as silent."""
SILENT_S: Final = 10.0
"""How long a device may fail to answer before its intervals are dropped."""
STILL_S: Final = 120.0
"""The same for a counter that answers and does not move: exporters look every 30 s or so."""
_LAST_LOOK_S: Final = 1.0
log = logging.getLogger(__name__)


@dataclass(slots=True)
class DomainMeter:
    """One domain's devices between two of its intervals."""

    plan: DomainPlan
    counters: tuple[DeviceCounter, ...]
    idle: IdleWatts
    since_s: float

    @property
    def source(self) -> EnergySource:
        return weakest(frozenset(device.source for device in self.plan.devices))

    @property
    def problems(self) -> list[str]:
        return [f"{c.device.name}: {c.problem}" for c in self.counters if c.problem is not None]

    @property
    def has_moved(self) -> bool:
        """Whether every device can be read, and was refreshed since the interval began."""
        return all(counter.has_moved for counter in self.counters)


class Metering:
    """Reads the meters: `run` in the background, then `close`. Everything it learns is in the ledger."""

    def __init__(self, plan: MeterPlan, ledger: EnergyLedger, clock: Clock, config: EnergyConfig) -> None:
        now_s = clock.now_s()
        self.plan = plan
        self.domains = tuple(_domain(domain, config, now_s) for domain in plan.domains)
        self._ledger = ledger
        self._clock = clock
        self._window_s = config.window_s
        self._counters = {c.device.name: c for domain in self.domains for c in domain.counters}
        self._samplers: dict[Meter, Sampler] = {}
        self._has_begun = False

    async def run(self) -> None:
        """Read for ever. A fault in the books is raised, and costs an interval: run it again then."""
        if not self._has_begun:
            await self._begin()
        while True:
            await self._clock.sleep(self._window_s)
            await self.tick()

    async def close(self) -> None:
        """A last look, so that the last turns are charged; then every meter is closed. Never raises."""
        if self._has_begun:
            await self._last_look()
        for meter in self.plan.meters:
            try:
                await self._close_meter(meter)
            except Exception:
                log.exception("an energy meter could not be closed")

    async def tick(self) -> None:
        """One look at every device; the intervals that end with it.

        A fault in one domain's books is raised once all the others are done.
        """
        await self._look()
        now_s = self._clock.now_s()
        faults: list[Exception] = []
        for domain in self.domains:
            try:
                self._end_interval(domain, now_s)
            except Exception as fault:  # noqa: BLE001 - raised below
                faults.append(fault)
        self._ledger.settle(now_s)
        if faults:
            raise ExceptionGroup("an interval of the energy meters was not attributed", faults)

    def _end_interval(self, domain: DomainMeter, now_s: float) -> None:
        if domain.has_moved:
            self._take(domain, now_s)
        elif now_s - domain.since_s >= (SILENT_S if domain.problems else STILL_S):
            self._give_up(domain, now_s)

    async def _begin(self) -> None:
        for meter in self.plan.meters:
            if meter.can_block and meter not in self._samplers:
                self._samplers[meter] = Sampler(meter, self._clock.now_s)
        await self._look()
        now_s = self._clock.now_s()
        for domain in self.domains:
            for counter in domain.counters:
                counter.take()
            domain.since_s = now_s
            self._ledger.begin(domain.plan.name, now_s)
        self._has_begun = True

    def _take(self, domain: DomainMeter, now_s: float) -> None:
        drawn = [(counter, counter.take()) for counter in domain.counters]
        lost = [f"{c.device.name}: {d.problem}" for c, d in drawn if d.energy_j is None]
        energy_j = None if lost else sum(d.energy_j or 0.0 for _, d in drawn)
        if lost:
            log.warning("an interval of %.1f s is dropped: %s", now_s - domain.since_s, "; ".join(lost))
        elif energy_j is not None and now_s > domain.since_s:
            was_idle = self._ledger.domains[domain.plan.name].was_idle
            domain.idle.observe(energy_j / (now_s - domain.since_s), was_idle=was_idle)
        self._close_interval(domain, energy_j, now_s)

    def _give_up(self, domain: DomainMeter, now_s: float) -> None:
        log.warning(
            "%s is not measured: %s", domain.plan.name, "; ".join(domain.problems) or "it stands still"
        )
        for counter in domain.counters:
            counter.take()
        self._close_interval(domain, None, now_s)

    def _close_interval(self, domain: DomainMeter, energy_j: float | None, now_s: float) -> None:
        reading = DomainReading(energy_j, domain.idle.watts, domain.source)
        self._ledger.close(domain.plan.name, reading, now_s)
        domain.since_s = now_s

    async def _look(self) -> None:
        for readings in await asyncio.gather(*(self._read(meter) for meter in self.plan.meters)):
            for reading in readings:
                counter = self._counters.get(reading.device)
                if counter is not None:
                    counter.look(reading)

    async def _read(self, meter: Meter) -> Sequence[Reading]:
        sampler = self._samplers.get(meter)
        if sampler is None:
            return self._read_here(meter)
        found = await sampler.read(READ_TIMEOUT_S)
        if found:
            return found
        now_s = self._clock.now_s()
        return [Reading(d.name, now_s, None, "its meter does not answer") for d in meter.devices]

    def _read_here(self, meter: Meter) -> Sequence[Reading]:
        """What the meter says; one that breaks its promise not to raise is silent, and no more."""
        now_s = self._clock.now_s()
        try:
            return meter.read(now_s)
        except Exception as error:
            log.exception("an energy meter failed")
            problem = f"its meter failed: {type(error).__name__}"
            return [Reading(device.name, now_s, None, problem) for device in meter.devices]

    async def _last_look(self) -> None:
        try:
            async with asyncio.timeout(_LAST_LOOK_S):
                await self.tick()
        except TimeoutError:
            log.warning("the meters did not answer in time: the last interval is lost")
        except Exception:
            log.exception("the last interval is lost")

    async def _close_meter(self, meter: Meter) -> None:
        sampler = self._samplers.get(meter)
        if sampler is None:
            meter.close()
        else:
            await sampler.stop()


def _domain(plan: DomainPlan, config: EnergyConfig, now_s: float) -> DomainMeter:
    known = [device.idle_w for device in plan.devices]
    published_w = sum(w for w in known if w is not None) if None not in known else None
    configured_w = None if config.idle_w is None else config.idle_w * len(plan.devices)
    counters = tuple(DeviceCounter(device) for device in plan.devices)
    return DomainMeter(plan, counters, IdleWatts(configured_w, published_w), now_s)
