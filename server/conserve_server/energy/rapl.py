"""CPU packages through Linux's powercap (Intel and AMD RAPL), where the kernel shows them.

`energy_uj` counts microjoules and wraps at `max_energy_range_uj`. Since Linux 5.10 only root
may read it: without the right to, there is no meter, and the reason says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conserve_sdk.protocol import EnergySource
from conserve_server.core.errors import ConfigError
from conserve_server.energy.meter import Device, Reading

POWERCAP: Final = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True)
class _Package:
    device: Device
    counter: Path


class RaplMeter:
    """The machine's CPU packages, named `cpu-0`, `cpu-1`, …

    All that runs on them is in their joules, not the engines alone. Raises ConfigError, with
    the fix, where none can be read.
    """

    can_block = True
    interval_s = None

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._packages = _packages(powercap)
        self.devices: Sequence[Device] = tuple(package.device for package in self._packages)

    def read(self, now_s: float) -> Sequence[Reading]:
        return [_read(package, now_s) for package in self._packages]

    def close(self) -> None:
        pass


def _read(package: _Package, now_s: float) -> Reading:
    try:
        return Reading(package.device.name, now_s, int(package.counter.read_text()) / 1e6)
    except (OSError, ValueError) as error:
        return Reading(package.device.name, now_s, None, str(error))


def _packages(powercap: Path) -> list[_Package]:
    zones = sorted(z for z in powercap.glob("*-rapl:*") if z.name.count(":") == 1)
    if not zones:
        raise ConfigError(f"RAPL: the kernel shows no CPU package under {powercap}")
    found = []
    for index, zone in enumerate(zones):
        counter = zone / "energy_uj"
        try:
            int(counter.read_text())
            wraps_at_j = int((zone / "max_energy_range_uj").read_text()) / 1e6
            label = (zone / "name").read_text().strip()
        except PermissionError as error:
            raise ConfigError(f"RAPL: {counter} is for root only: chmod a+r it, or run as root") from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"RAPL: {counter} can't be read: {error}") from error
        note = "the whole package: other programs on it are in its joules"
        device = Device(
            f"cpu-{index}", label, EnergySource.MEASURED, "RAPL counter", wraps_at_j=wraps_at_j, note=note
        )
        found.append(_Package(device, counter))
    return found
