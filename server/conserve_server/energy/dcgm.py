"""GPUs of another machine, read from its DCGM exporter's Prometheus page.

`DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION` counts millijoules since the driver was loaded, one line
a GPU (one a slice under MIG, all with the GPU's own count). Between two collections of the
exporter (`--collect-interval`, in milliseconds) the page stands still: intervals are as long as that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from conserve_sdk.protocol import EnergySource
from conserve_server.core.errors import ConfigError
from conserve_server.energy.meter import Device, Reading, watts
from conserve_server.energy.meter_page import MeterPage, PageUnreadable
from conserve_server.energy.modelled import gpu_power

ENERGY: Final = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
LIMITS: Final = ("DCGM_FI_DEV_ENFORCED_POWER_LIMIT", "DCGM_FI_DEV_POWER_MGMT_LIMIT")
"""Watts; neither is among the exporter's default counters."""


_LONGEST: Final = 200
"""Characters of a label that are kept."""
_MOST_GPUS: Final = 1024


@dataclass(frozen=True, slots=True)
class _Seen:
    """One GPU on the page."""

    index: str
    uuid: str
    label: str
    energy_j: float
    is_sliced: bool
    limit_w: float | None = None


class DcgmMeter:
    """The GPUs of one node, named `NODE/INDEX`; `NODE/UUID` is an alias.

    Raises ConfigError if the page can't be read at the start.
    """

    can_block = True
    interval_s = None

    def __init__(self, node: str, url: str) -> None:
        self._node = node
        self._page = MeterPage(url)
        try:
            seen = self._look()
        except (PageUnreadable, ValueError) as error:
            self._page.close()
            raise ConfigError(f"energy.nodes.{node}: {url} can't be read: {error}") from error
        if not seen:
            self._page.close()
            raise ConfigError(
                f"energy.nodes.{node}: {url} has no {ENERGY}: add it to the exporter's counters"
            )
        self.devices: Sequence[Device] = tuple(self._device(gpu) for gpu in seen)

    def read(self, now_s: float) -> Sequence[Reading]:
        try:
            seen = {f"{self._node}/{gpu.index}": gpu.energy_j for gpu in self._look()}
        except (PageUnreadable, ValueError) as error:
            return [Reading(d.name, now_s, None, f"{self._page.url}: {error}") for d in self.devices]
        return [self._reading(device.name, seen, now_s) for device in self.devices]

    def close(self) -> None:
        self._page.close()

    def _reading(self, name: str, seen: dict[str, float], now_s: float) -> Reading:
        if name not in seen:
            return Reading(name, now_s, None, f"it is not on {self._page.url} any more")
        return Reading(name, now_s, seen[name])

    def _look(self) -> list[_Seen]:
        return gpus_on(self._page.read().decode(errors="replace"))

    def _device(self, gpu: _Seen) -> Device:
        known = gpu_power(gpu.label)
        return Device(
            f"{self._node}/{gpu.index}",
            gpu.label,
            EnergySource.MEASURED,
            "DCGM energy counter",
            aliases=(f"{self._node}/{gpu.uuid}",),
            idle_w=known.idle_w if known and not known.is_assumed else None,
            limit_w=watts(gpu.limit_w),
            note="MIG is on: its meter is the whole GPU's, not a slice's" if gpu.is_sliced else None,
        )


def gpus_on(page: str) -> list[_Seen]:
    """The GPUs on an exporter's page, each once. Raises ValueError for a page that is none."""
    lines = [line for line in page.split("\n") if line.startswith((ENERGY, *LIMITS))]
    try:
        families = tuple(text_string_to_metric_families("\n".join(lines) + "\n"))
    except ValueError:
        raise
    except Exception as error:  # the parser promises nothing about pages that are none
        raise ValueError(f"{type(error).__name__}: {error}") from error
    samples = [s for family in families for s in family.samples]
    limits = {s.labels.get("gpu"): s.value for s in samples if s.name in LIMITS}
    found: dict[str, _Seen] = {}
    for sample in samples:
        if sample.name.removesuffix("_total") != ENERGY:  # the parser names counters so
            continue
        index = sample.labels.get("gpu", "?")[:_LONGEST]
        found[index] = _Seen(
            index,
            sample.labels.get("UUID", index)[:_LONGEST],
            sample.labels.get("modelName", "GPU")[:_LONGEST],
            sample.value / 1000,
            is_sliced="GPU_I_ID" in sample.labels,
            limit_w=limits.get(index),
        )
    if len(found) > _MOST_GPUS:
        raise ValueError(f"{len(found)} GPUs are on one page, more than {_MOST_GPUS}")
    return list(found.values())
