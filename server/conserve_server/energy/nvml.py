"""NVIDIA GPUs of this machine, read through NVML by nvidia-ml-py (the `nvml` extra).

The energy counter (Volta or newer; millijoules since the driver was loaded, refreshed every 20
to 100 ms) where there is one. Else power is integrated, which is rougher: NVML's power is an
average over up to a second on many GPUs. What a GPU can do is found out once, at the start.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Final

from conserve_sdk.protocol import EnergySource
from conserve_server.core.errors import ConfigError
from conserve_server.energy.meter import Device, Reading
from conserve_server.energy.modelled import gpu_power

COUNTER: Final = "NVML energy counter"
_WRAP_J: Final = 2**32 / 1000
"""Some drivers keep the millijoules in 32 bits."""
_LONGEST_GAP_S: Final = 5.0
"""Watts are not carried over a longer silence."""


@dataclass(slots=True)
class _Gpu:
    """One GPU: its handle, and its integral where power is all there is."""

    device: Device
    handle: Any
    has_counter: bool
    integral_j: float = 0.0
    last: tuple[float, float] | None = None

    def integrate(self, time_s: float, power_w: float) -> float:
        """Trapezoids; the joules so far."""
        if self.last is not None and 0 < time_s - self.last[0] <= _LONGEST_GAP_S:
            self.integral_j += (power_w + self.last[1]) / 2 * (time_s - self.last[0])
        self.last = time_s, power_w
        return self.integral_j


class NvmlMeter:
    """Every NVIDIA GPU that the driver shows. Raises ConfigError, with the fix, where NVML can't be used.

    `sample_s`: how often power is read where it has to be integrated. `wanted` are indexes or
    UUIDs, also those of MIG slices, whose GPU is then read; None reads all.
    """

    can_block = True

    def __init__(self, sample_s: float, wanted: Sequence[str] | None = None) -> None:
        self._nvml = _load()
        self._sample_s = sample_s
        try:
            self._gpus = _found(self._nvml, sample_s, wanted)
        except self._nvml.NVMLError as error:
            self._nvml.nvmlShutdown()
            raise ConfigError(f"NVML: {error}: check nvidia-smi on this machine") from error
        except ConfigError:
            self._nvml.nvmlShutdown()
            raise
        self.devices: Sequence[Device] = tuple(gpu.device for gpu in self._gpus)

    @property
    def interval_s(self) -> float | None:
        return None if all(gpu.has_counter for gpu in self._gpus) else self._sample_s

    def read(self, now_s: float) -> Sequence[Reading]:
        return [self._read(gpu, now_s) for gpu in self._gpus]

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def _read(self, gpu: _Gpu, now_s: float) -> Reading:
        name = gpu.device.name
        try:
            if gpu.has_counter:
                return Reading(name, now_s, self._nvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle) / 1000)
            power_w = self._nvml.nvmlDeviceGetPowerUsage(gpu.handle) / 1000
            return Reading(name, now_s, gpu.integrate(now_s, power_w))
        except self._nvml.NVMLError as error:
            gpu.last = None
            return Reading(name, now_s, None, str(error))


def _load() -> ModuleType:
    try:
        nvml = importlib.import_module("pynvml")
    except ModuleNotFoundError as error:
        raise ConfigError("NVML needs nvidia-ml-py: pip install 'conserve-sdk[nvml]'") from error
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise ConfigError(f"NVML: {error}: is an NVIDIA driver installed?") from error
    return nvml


def _found(nvml: ModuleType, sample_s: float, wanted: Sequence[str] | None) -> list[_Gpu]:
    count: int = nvml.nvmlDeviceGetCount()
    if not count:
        raise ConfigError("NVML: the driver shows no GPU")
    gpus = [
        _gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(index), str(index), sample_s) for index in range(count)
    ]
    if wanted is None:
        return gpus
    by_name = {name: gpu for gpu in gpus for name in (gpu.device.name, *gpu.device.aliases)}
    kept: dict[str, _Gpu] = {}
    for name in wanted:
        gpu = by_name.get(name) or _of_slice(nvml, name, by_name)
        kept[gpu.device.name] = _also_called(kept.get(gpu.device.name, gpu), name)
    return list(kept.values())


def _of_slice(nvml: ModuleType, name: str, by_name: dict[str, _Gpu]) -> _Gpu:
    """The GPU that a MIG slice is a part of."""
    try:
        slice_handle = nvml.nvmlDeviceGetHandleByUUID(name)
        parent = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(slice_handle)
        return by_name[nvml.nvmlDeviceGetUUID(parent)]
    except (nvml.NVMLError, KeyError) as error:
        there = ", ".join(sorted(by_name)) or "none"
        raise ConfigError(f"NVML knows no GPU {name!r}: there are {there}") from error


def _also_called(gpu: _Gpu, name: str) -> _Gpu:
    if name not in (gpu.device.name, *gpu.device.aliases):
        gpu.device = replace(gpu.device, aliases=(*gpu.device.aliases, name))
    return gpu


def _gpu(nvml: ModuleType, handle: Any, name: str, sample_s: float) -> _Gpu:
    """What the GPU is and how it can be read. A GPU that is lost already is kept, and reads as such."""
    label: str = _ask(nvml, nvml.nvmlDeviceGetName, handle) or "GPU"
    uuid: str | None = _ask(nvml, nvml.nvmlDeviceGetUUID, handle)
    limit_mw: int | None = _ask(nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    mig: list[int] | None = _ask(nvml, nvml.nvmlDeviceGetMigMode, handle)
    has_counter = _has_counter(nvml, handle)
    known = gpu_power(label)
    device = Device(
        name,
        label,
        EnergySource.MEASURED,
        COUNTER if has_counter else f"NVML power, integrated every {sample_s:g} s",
        aliases=(uuid,) if uuid else (),
        idle_w=known.idle_w if known and not known.is_assumed else None,
        limit_w=limit_mw / 1000 if limit_mw else None,
        wraps_at_j=_WRAP_J if has_counter else None,
        note="MIG is on: its meter is the whole GPU's, not a slice's" if mig and mig[0] else None,
    )
    return _Gpu(device, handle, has_counter)


def _has_counter(nvml: ModuleType, handle: Any) -> bool:
    """False only where NVML says that there is none; other errors may pass."""
    try:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError_NotSupported:
        return False
    except nvml.NVMLError:
        return True
    return True


def _ask(nvml: ModuleType, function: Callable[[Any], Any], handle: Any) -> Any:
    """The answer, or None where this GPU has none."""
    try:
        return function(handle)
    except nvml.NVMLError:
        return None
