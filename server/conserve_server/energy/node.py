"""Another machine's devices, read from its `conserve node-agent`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import httpx2
import msgspec

from conserve_sdk.protocol import EnergySource
from conserve_server.core.errors import ConfigError
from conserve_server.energy.meter import Device, Reading
from conserve_server.energy.node_agent import DEVICES_PATH, NodeDevice, NodeDocument

_TIMEOUT_S: Final = 2.0


class NodeMeter:
    """The devices of one node, named `NODE/NAME`. Raises ConfigError if its agent does not answer now.

    Counters are the agent's, times the reader's: the two machines' clocks need not agree.
    """

    can_block = True
    interval_s = None

    def __init__(self, node: str, url: str) -> None:
        self._node = node
        self._url = url.rstrip("/") + DEVICES_PATH
        self._client = httpx2.Client(timeout=_TIMEOUT_S)
        try:
            found = self._look()
        except (httpx2.HTTPError, msgspec.MsgspecError) as error:
            self._client.close()
            raise ConfigError(
                f"energy.nodes.{node}: {self._url} can't be read: {error}: start conserve node-agent there"
            ) from error
        self.devices: Sequence[Device] = tuple(_device(node, each) for each in found)

    def read(self, now_s: float) -> Sequence[Reading]:
        try:
            found = {f"{self._node}/{each.name}": each for each in self._look()}
        except (httpx2.HTTPError, msgspec.MsgspecError) as error:
            return [Reading(d.name, now_s, None, f"{self._url}: {error}") for d in self.devices]
        return [_reading(device.name, found.get(device.name), now_s) for device in self.devices]

    def close(self) -> None:
        self._client.close()

    def _look(self) -> Sequence[NodeDevice]:
        response = self._client.get(self._url)
        response.raise_for_status()
        return msgspec.json.decode(response.content, type=NodeDocument).devices


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
        idle_w=found.idle_w,
        limit_w=found.limit_w,
        wraps_at_j=found.wraps_at_j,
        note=found.note,
    )
