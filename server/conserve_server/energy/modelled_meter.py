"""A meter that reads no device: watts by what each engine does, added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from conserve_sdk.protocol import EnergySource
from conserve_server.energy.meter import Device, Reading
from conserve_server.energy.modelled import GpuPower


class _Gpu:
    """One modelled GPU and what it does now."""

    def __init__(self, power: GpuPower, now_s: float) -> None:
        self.power = power
        self.energy_j = 0.0
        self._watts = power.idle_w
        self._since_s = now_s

    def does(self, prefills: int, decodes: int, now_s: float) -> None:
        self.advance(now_s)
        if prefills:
            self._watts = self.power.prefill_w
        else:
            self._watts = self.power.decode_at_w(decodes) if decodes else self.power.idle_w

    def advance(self, now_s: float) -> None:
        if now_s > self._since_s:
            self.energy_j += self._watts * (now_s - self._since_s)
            self._since_s = now_s


class ModelledMeter:
    """One GPU for each engine, named after it. Tell it what the engines do (`does`).

    An engine that prefills and decodes draws what prefill draws. A turn that waits in an
    engine's queue counts as prefilling: nothing better is known from outside.
    """

    can_block = False
    interval_s = None

    def __init__(self, power_of: Mapping[str, GpuPower], now_s: float) -> None:
        self._gpus = {engine: _Gpu(power, now_s) for engine, power in power_of.items()}
        self.devices: Sequence[Device] = tuple(_device(e, power) for e, power in power_of.items())

    def does(self, engine: str, prefills: int, decodes: int, now_s: float) -> None:
        """From now on the engine prefills and decodes so many turns."""
        gpu = self._gpus.get(engine)
        if gpu is not None:
            gpu.does(prefills, decodes, now_s)

    def read(self, now_s: float) -> Sequence[Reading]:
        for gpu in self._gpus.values():
            gpu.advance(now_s)
        return [Reading(engine, now_s, gpu.energy_j) for engine, gpu in self._gpus.items()]

    def close(self) -> None:
        pass


def _device(engine: str, power: GpuPower) -> Device:
    return Device(
        engine,
        power.name,
        EnergySource.MODELLED,
        f"watts of {power.name} by phase",
        idle_w=power.idle_w,
        limit_w=power.limit_w,
        note="scaled from another GPU: no watts by phase are published" if power.is_assumed else None,
    )
