"""Another machine's devices, read from its `conserve node-agent`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from conserve_sdk.protocol import EnergySource
from conserve_server.core.errors import ConfigError
from conserve_server.energy.meter import Device, Reading, watts
from conserve_server.energy.meter_page import MeterPage, PageUnreadable
from conserve_server.energy.node_agent import DEVICES_PATH, NodeDevice, NodeDocument

_UNREADABLE: Final = (PageUnreadable, msgspec.MsgspecError, ValueError, RecursionError)
"""What a page may be that is no agent's."""


class NodeMeter:
    """The devices of one node, named `NODE/NAME`. Raises ConfigError if its agent does not answer now.

    Counters are the agent's, times the reader's: the two machines' clocks need not agree.
    """

    can_block = True
    interval_s = None

    def __init__(self, node: str, url: str) -> None:
        self._node = node
        self._page = MeterPage(url.rstrip("/") + DEVICES_PATH)
        try:
            self.devices: Sequence[Device] = tuple(_device(node, each) for each in self._look())
        except _UNREADABLE as error:
            self._page.close()
            raise ConfigError(
                f"energy.nodes.{node}: {self._page.url} can't be read: {error}: "
                "start conserve node-agent there"
            ) from error

    def read(self, now_s: float) -> Sequence[Reading]:
        try:
            found = {f"{self._node}/{each.name}": each for each in self._look()}
        except _UNREADABLE as error:
            return [Reading(d.name, now_s, None, f"{self._page.url}: {error}") for d in self.devices]
        return [_reading(device.name, found.get(device.name), now_s) for device in self.devices]

    def close(self) -> None:
        self._page.close()

    def _look(self) -> Sequence[NodeDevice]:
        return msgspec.json.decode(self._page.read(), type=NodeDocument).devices


def _reading(name: str, found: NodeDevice | None, now_s: float) -> Reading:
    if found is None:
        return Reading(name, now_s, None, "its node agent does not know it any more")
    return Reading(name, now_s, found.energy_j, found.error)


def _device(node: str, found: NodeDevice) -> Device:
    return Device(
        f"{node}/{found.name}",
        found.label,
        EnergySource(found.source),
        f"{found.how}, by its node agent",
        aliases=tuple(f"{node}/{alias}" for alias in found.aliases),
        idle_w=watts(found.idle_w),
        limit_w=watts(found.limit_w),
        wraps_at_j=watts(found.wraps_at_j),
        note=found.note,
    )
