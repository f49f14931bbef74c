"""What `conserve node-agent` serves: a node's meter over HTTP, for gateways on other machines.

`GET /v1/devices` reads every device and answers with a `NodeDocument`. It knows nothing of
conversations, and changes nothing on the node.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from conserve_server.energy.meter import Device, Meter, Reading
from conserve_server.energy.sampler import Sampler

DEVICES_PATH: Final = "/v1/devices"
_TIMEOUT_S: Final = 1.5
"""Shorter than a gateway waits for the whole answer."""


_Text = Annotated[str, msgspec.Meta(max_length=500)]


class NodeDevice(msgspec.Struct):
    """One device of the node and its counter now; `energy_j` is null where it can't be read."""

    name: _Text
    label: _Text
    how: _Text
    source: _Text
    aliases: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=16)] = ()
    idle_w: float | None = None
    limit_w: float | None = None
    wraps_at_j: float | None = None
    note: _Text | None = None
    energy_j: float | None = None
    error: _Text | None = None


class NodeDocument(msgspec.Struct):
    """The answer to `GET /v1/devices`."""

    devices: Annotated[tuple[NodeDevice, ...], msgspec.Meta(max_length=1024)]


def node_app(meter: Meter, now_s: Callable[[], float]) -> Starlette:
    """The agent over this meter, which it closes at its end."""
    samplers: list[Sampler] = []

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        samplers.append(Sampler(meter, now_s))
        try:
            yield
        finally:
            await samplers[0].stop()

    async def devices(_request: Request) -> Response:
        readings = {r.device: r for r in await samplers[0].read(_TIMEOUT_S)}
        document = NodeDocument(tuple(_entry(device, readings) for device in meter.devices))
        return Response(msgspec.json.encode(document), media_type="application/json")

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok", "devices": len(meter.devices)})

    return Starlette(routes=[Route(DEVICES_PATH, devices), Route("/health", health)], lifespan=lifespan)


def _entry(device: Device, readings: dict[str, Reading]) -> NodeDevice:
    reading = readings.get(device.name)
    known = {name: value for name, value in asdict(device).items() if name != "source"}
    if reading is None:
        return NodeDevice(**known, source=str(device.source), error="the meter does not answer")
    return NodeDevice(**known, source=str(device.source), energy_j=reading.energy_j, error=reading.error)


def device_names(devices: Sequence[Device]) -> str:
    """The devices in a line each, for a person."""
    return "\n".join(f"  {d.name:4} {d.label}, {d.how}" for d in devices)
