"""From a counter's readings to an interval's joules: resets, wraps and devices that went silent. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from conserve_server.energy.meter import Device, Reading

_MOST_W: Final = 3000.0
"""More than any single device draws: a wrap that would mean more was none."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Joules between two readings; None, with a `problem`, where nobody can say."""

    energy_j: float | None
    problem: str | None = None


class DeviceCounter:
    """One device's counter between two looks at it.

    A silent device costs nothing by itself: once it answers again, its counter tells what it
    drew meanwhile. `problem` is what is wrong with it now, None while it answers.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.problem: str | None = None
        self._last: tuple[float, float] | None = None
        self._restarted: str | None = None
        self._drawn_j = 0.0
        self._has_begun = False
        self.metered_j = 0.0
        """All that it was seen to draw."""

    @property
    def has_moved(self) -> bool:
        """Whether it can be read, and something has happened since the last `take`.

        A device always draws something: a counter that stands still was not refreshed.
        """
        has_news = self._drawn_j > 0 or self._restarted is not None or not self._has_begun
        return self._last is not None and self.problem is None and has_news

    def look(self, reading: Reading) -> None:
        """Take a reading. Fallen counters make the interval since the last `take` unknown."""
        self.problem = reading.error
        if reading.energy_j is None:
            self.problem = reading.error or "it could not be read"
            return
        if not math.isfinite(reading.energy_j):
            self.problem = f"its counter says {reading.energy_j}"
            return
        before, self._last = self._last, (reading.time_s, reading.energy_j)
        if before is None:
            return
        passed_j = self._passed(before, self._last)
        if passed_j is None:
            self._restarted = f"its counter fell from {before[1]:.1f} J to {reading.energy_j:.1f} J"
        else:
            self._drawn_j += passed_j
            self.metered_j += passed_j

    def take(self) -> Drawn:
        """The joules since the last call; the first call only begins."""
        drawn_j, restarted = self._drawn_j, self._restarted
        self._drawn_j, self._restarted = 0.0, None
        if not self._has_begun:
            self._has_begun = self._last is not None
            return Drawn(None, "its first reading")
        return Drawn(None, restarted) if restarted else Drawn(drawn_j)

    def _passed(self, before: tuple[float, float], now: tuple[float, float]) -> float | None:
        passed_j = now[1] - before[1]
        if passed_j >= 0:
            return passed_j
        if self.device.wraps_at_j is None:
            return None
        passed_j += self.device.wraps_at_j
        # A driver that was loaded again starts at 0 as well, but from anywhere.
        return passed_j if 0 <= passed_j <= _MOST_W * (now[0] - before[0]) else None
