"""The energy part of the configuration: which meters there are, and what runs on which device."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, field_validator

from conserve_server.core.config_part import Part, Seconds

NodeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class EnergyNodeConfig(Part):
    """Another machine whose devices are read over HTTP."""

    url: str
    """A DCGM exporter's page, or the base URL of a `conserve node-agent`."""
    kind: Literal["dcgm", "agent"] = "dcgm"

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not a URL such as http://10.0.0.7:9400/metrics")
        return url


class EnergyConfig(Part):
    """Where joules are read, and how they are split."""

    meter: Literal["auto", "off", "nvml", "rapl", "modelled", "replay"] = "auto"
    """This machine's meter. `auto`: modelled for emulated engines, else NVML, else (on CPUs) RAPL."""
    devices: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """The devices of each engine, by the engine's name, where they can't be discovered."""
    nodes: dict[NodeName, EnergyNodeConfig] = Field(default_factory=dict)
    gpu: str = "h100"
    """The GPU whose watts `modelled` uses."""
    power_cap_w: float | None = Field(default=None, gt=0)
    """A power cap of the modelled GPUs."""
    replay_file: str | None = None
    window_s: Seconds = 1.0
    """Length of an interval. Counters are refreshed every 20 to 100 ms: shorter ones tell little."""
    sample_s: Seconds = 0.1
    """How often power is read on a GPU without an energy counter."""
    idle_w: float | None = Field(default=None, ge=0)
    """What one device draws when idle; None: learned while nothing runs."""
    patience_s: Seconds = 30.0
    """How long an interval waits for turns that still run before they are estimated."""
    fits_weights: bool = True
    """Whether the worth of prefill against decode is learned from the meter, or the timing model's."""
    carbon_g_per_kwh: float | None = Field(default=None, ge=0)
    price_per_kwh: float | None = Field(default=None, ge=0)
    currency: str | None = None

    @field_validator("devices", mode="before")
    @classmethod
    def _from_lists(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {name: tuple(listed) if isinstance(listed, list) else listed for name, listed in value.items()}
