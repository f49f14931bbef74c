"""Which meters a configuration means, and which devices each engine runs on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from conserve_server.core.energy_config import EnergyConfig
from conserve_server.core.errors import ConfigError
from conserve_server.core.policy_config import TierConfig
from conserve_server.energy.dcgm import DcgmMeter
from conserve_server.energy.meter import Device, Meter, ReplayMeter
from conserve_server.energy.modelled import GPU_POWER, GpuPower, gpu_power
from conserve_server.energy.modelled_meter import ModelledMeter
from conserve_server.energy.node import NodeMeter
from conserve_server.energy.nvml import NvmlMeter
from conserve_server.energy.rapl import RaplMeter

EngineKind = Literal["emulated", "local", "listed"]
NO_METER: Final = "no energy meter is configured"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Engines:
    """What is known of the engines before any device is looked at.

    `gpus`: by engine, those that it was started on, as CUDA names them; empty where unknown.
    `tiers`: by engine, of those that have one.
    """

    kind: EngineKind
    gpus: Mapping[str, Sequence[str]]
    are_on_cpus: bool = False
    tiers: Mapping[str, TierConfig] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DomainPlan:
    """Devices that the same engines run on."""

    name: str
    engines: tuple[str, ...]
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class MeterPlan:
    """The meters, what is read together, and why an engine has nothing that can be read."""

    meters: tuple[Meter, ...] = ()
    domains: tuple[DomainPlan, ...] = ()
    unmetered: Mapping[str, str] = field(default_factory=dict)

    @property
    def modelled(self) -> ModelledMeter | None:
        return next((m for m in self.meters if isinstance(m, ModelledMeter)), None)

    @property
    def reason(self) -> str | None:
        """Why nothing at all is measured; None if something is."""
        return None if self.domains else next(iter(self.unmetered.values()), NO_METER)

    def why_unmetered(self, engine: str) -> str:
        return self.unmetered.get(engine, f"{engine} has no energy meter")


def plan_meters(config: EnergyConfig, engines: Engines, now_s: float) -> MeterPlan:
    """Look at what is there. Raises ConfigError for what was asked for by name and can't be had."""
    unknown = sorted(set(config.devices) - set(engines.gpus))
    if unknown:
        there = ", ".join(engines.gpus)
        raise ConfigError(f"energy.devices names {', '.join(unknown)}: the engines are {there}")
    local, reason = _local_meter(config, engines, now_s)
    meters = [local] if local is not None else []
    problems: dict[str, str] = {}
    for node, part in config.nodes.items():
        try:
            meters.append(DcgmMeter(node, part.url) if part.kind == "dcgm" else NodeMeter(node, part.url))
        except ConfigError as error:  # another machine's fault must not keep this one from serving
            log.warning("%s: its engines are not measured", error)
            problems[node] = str(error)
    wanted = {engine: _devices_of(engine, config, engines, local) for engine in engines.gpus}
    return _assigned(tuple(meters), wanted, reason, problems)


# -- this machine's meter ----------------------------------------------------------------------


def _local_meter(config: EnergyConfig, engines: Engines, now_s: float) -> tuple[Meter | None, str]:
    """The meter, or None and why there is none."""
    if config.meter == "off":
        return None, "energy.meter is off"
    if config.meter == "auto":
        return _discovered(config, engines, now_s)
    return _named(config, engines, now_s, config.meter), NO_METER


def _discovered(config: EnergyConfig, engines: Engines, now_s: float) -> tuple[Meter | None, str]:
    if engines.kind == "emulated":
        return _named(config, engines, now_s, "modelled"), NO_METER
    names = _local_names(config, engines)
    if engines.kind == "listed" and not names:
        return None, NO_METER
    kinds: tuple[Literal["nvml", "rapl"], ...] = ("rapl",) if engines.are_on_cpus else ("nvml",)
    try:
        return _named(config, engines, now_s, kinds[0]), NO_METER
    except ConfigError as error:
        return None, str(error)


def _named(
    config: EnergyConfig,
    engines: Engines,
    now_s: float,
    kind: Literal["nvml", "rapl", "modelled", "replay"],
) -> Meter:
    if kind == "modelled":
        power_of = {e: _modelled_gpu(config, engines.tiers.get(e, TierConfig())) for e in engines.gpus}
        return ModelledMeter(power_of, now_s)
    if kind == "replay":
        if config.replay_file is None:
            raise ConfigError('energy.meter = "replay" needs energy.replay_file')
        return ReplayMeter(Path(config.replay_file), now_s)
    return (
        NvmlMeter(config.sample_s, _local_names(config, engines) or None) if kind == "nvml" else RaplMeter()
    )


def _modelled_gpu(config: EnergyConfig, tier: TierConfig) -> GpuPower:
    name, cap_w = tier.gpu or config.gpu, tier.power_cap_w or config.power_cap_w
    power = gpu_power(name)
    if power is None:
        key = "energy.gpu" if tier.gpu is None else "tiers.NAME.gpu"
        raise ConfigError(f"{key}: no watts are known of {name!r}, only of {', '.join(GPU_POWER)}")
    return power if cap_w is None else power.capped(cap_w)


def _local_names(config: EnergyConfig, engines: Engines) -> list[str]:
    """The GPUs of this machine that engines run on, each once."""
    named = [d for engine in engines.gpus for d in config.devices.get(engine, engines.gpus[engine])]
    return list(dict.fromkeys(name for name in named if "/" not in name))


# -- which engine runs on what -----------------------------------------------------------------


def _devices_of(engine: str, config: EnergyConfig, engines: Engines, local: Meter | None) -> tuple[str, ...]:
    """The devices of an engine as configured, else as it was started, else as its meter implies."""
    if engine in config.devices:
        return config.devices[engine]
    if isinstance(local, RaplMeter):
        return tuple(device.name for device in local.devices)
    if isinstance(local, NvmlMeter) and engines.gpus[engine]:
        return tuple(engines.gpus[engine])
    return (engine,)


def _assigned(
    meters: tuple[Meter, ...],
    wanted: Mapping[str, Sequence[str]],
    reason: str,
    problems: Mapping[str, str],
) -> MeterPlan:
    there = {name: d for meter in meters for d in meter.devices for name in (d.name, *d.aliases)}
    unmetered: dict[str, str] = {}
    engines_on: dict[Device, list[str]] = {}
    for engine, names in wanted.items():
        missing = [name for name in names if name not in there]
        if missing or not names:
            unmetered[engine] = _why(engine, missing, reason, problems, has_meters=bool(meters))
            continue
        for device in dict.fromkeys(there[name] for name in names):
            engines_on.setdefault(device, []).append(engine)
    return MeterPlan(meters, _grouped(engines_on), unmetered)


def _grouped(engines_on: Mapping[Device, Sequence[str]]) -> tuple[DomainPlan, ...]:
    groups: dict[tuple[str, ...], list[Device]] = {}
    for device, engines in engines_on.items():
        groups.setdefault(tuple(engines), []).append(device)
    return tuple(
        DomainPlan("+".join(device.name for device in devices), engines, tuple(devices))
        for engines, devices in groups.items()
    )


def _why(
    engine: str, missing: Iterable[str], reason: str, problems: Mapping[str, str], *, has_meters: bool
) -> str:
    for name in missing:
        node, slash, _ = name.partition("/")
        if slash and node in problems:
            return problems[node]
        if slash or (has_meters and name != engine):
            return f"{engine}: no meter knows a device {name!r}"
    return f"{engine}: its devices are not named in energy.devices" if has_meters else reason
