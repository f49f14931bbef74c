"""Where joules are read: one Protocol, a meter that has none, and one that reads them back from a file.

A meter counts each device's energy up from some start of its own. What it counts over an
interval is the difference of two readings; `counter.py` knows when there is none.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from conserve_sdk.protocol import EnergySource
from conserve_server.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Device:
    """One device that can be read, as it was found at the start.

    `name` is how configurations and reports call it, unique in a gateway; `aliases` name it too
    (a GPU's UUID). `how` says where the joules come from ("energy counter", "power, integrated
    at 0.1 s"), `note` what a reader of the figures must know. `idle_w` and `limit_w` (the power
    cap in force) are None where they are not known. `wraps_at_j`: where its counter starts anew.
    """

    name: str
    label: str
    source: EnergySource
    how: str
    aliases: tuple[str, ...] = ()
    idle_w: float | None = None
    limit_w: float | None = None
    wraps_at_j: float | None = None
    note: str | None = None


def watts(told: float | None) -> float | None:
    """What a driver or another machine tells of a device, watts or joules; None unless that can be."""
    return told if told is not None and math.isfinite(told) and told >= 0 else None


@dataclass(frozen=True, slots=True)
class Reading:
    """A device's counter at a time: joules since a start of its own, monotonic seconds.

    `energy_j` is None where the device could not be read, and `error` says why.
    """

    device: str
    time_s: float
    energy_j: float | None
    error: str | None = None


class Meter(Protocol):
    """Reads devices. Built once, after it has looked at what is there.

    `can_block`: reading waits for a driver, a file system or a network, and belongs in a thread.
    `interval_s`: how often it must be read for its own sake, because it adds up watts; None
    leaves that to the reader.
    """

    @property
    def devices(self) -> Sequence[Device]: ...

    @property
    def can_block(self) -> bool: ...

    @property
    def interval_s(self) -> float | None: ...

    def read(self, now_s: float) -> Sequence[Reading]:
        """Every device's counter now, in the order of `devices`. Never raises for a device that is gone."""
        ...

    def close(self) -> None:
        """Let go of whatever was opened. Nothing is read afterwards."""
        ...


class NullMeter:
    """No device at all: the same path for everything else where nothing can be read."""

    devices: Sequence[Device] = ()
    can_block = False
    interval_s = None

    def read(self, now_s: float) -> Sequence[Reading]:  # noqa: ARG002 - the Protocol's
        return ()

    def close(self) -> None:
        pass


class ReplayMeter:
    """Joules read back from a JSON file: what devices drew once, from the replay's start on.

    The document: `{"devices": {"NAME": {"label": …, "idle_w": …, "energy": [[seconds, joules], …]}}}`,
    both counted from the record's start and never falling; in between it is interpolated, after
    the last entry nothing can be read. Raises ConfigError for any other document.
    """

    can_block = False
    interval_s = None

    def __init__(self, path: Path, now_s: float) -> None:
        self._start_s = now_s
        self._tracks = _tracks(path)
        self.devices: Sequence[Device] = tuple(track.device for track in self._tracks)

    def read(self, now_s: float) -> Sequence[Reading]:
        return [track.read(now_s - self._start_s, now_s) for track in self._tracks]

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Track:
    device: Device
    seconds: tuple[float, ...]
    joules: tuple[float, ...]

    def read(self, at_s: float, now_s: float) -> Reading:
        after = bisect.bisect_left(self.seconds, at_s)
        if after == len(self.seconds):
            return Reading(self.device.name, now_s, None, "the record is over")
        if after == 0:
            return Reading(self.device.name, now_s, self.joules[0])
        (t0, t1), (j0, j1) = self.seconds[after - 1 : after + 1], self.joules[after - 1 : after + 1]
        return Reading(self.device.name, now_s, j0 + (j1 - j0) * (at_s - t0) / (t1 - t0))


def _tracks(path: Path) -> list[_Track]:
    try:
        devices = json.loads(path.read_text())["devices"]
        return [_track(path, name, entry) for name, entry in devices.items()]
    except OSError as error:
        raise ConfigError(f"energy.replay_file: {path} can't be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"energy.replay_file: {path} is no energy record: {error}") from error


def _track(path: Path, name: str, entry: dict[str, object]) -> _Track:
    energy = entry["energy"]
    if not isinstance(energy, list) or len(energy) < 2:
        raise ValueError(f"device {name!r} needs at least 2 entries of [seconds, joules]")
    seconds, joules = zip(*((float(s), float(j)) for s, j in energy), strict=True)
    if list(joules) != sorted(joules) or list(seconds) != sorted(set(seconds)):
        raise ValueError(f"device {name!r}: its seconds must rise and its joules must not fall")
    device = Device(
        name,
        str(entry.get("label", name)),
        EnergySource.REPLAYED,
        f"the record {path.name}",
        idle_w=_number(entry.get("idle_w")),
        limit_w=_number(entry.get("limit_w")),
    )
    return _Track(device, seconds, joules)


def _number(value: object) -> float | None:
    return watts(float(value)) if isinstance(value, int | float) else None
