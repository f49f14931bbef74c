"""A request's body: read within its limits, and counted as long as somebody holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType

from starlette.types import Receive

from conserve_server.core.errors import InvalidRequest, NoCapacity
from conserve_server.gateway.http.reply import ClientGone, Connection
from conserve_server.serving.asked.limits import BodyLimits


class BodyMemory:
    """Bytes of all bodies that the gateway holds: of those being read, and of turns that wait or run."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def hold(self) -> HeldBody:
        """Room for one body while the block runs."""
        return HeldBody(self)

    def add(self, size: int) -> None:
        """Raises NoCapacity (503) where there is no room for so many bytes."""
        if self._held_bytes + size > self._limit_bytes:
            raise NoCapacity(
                f"the bodies of requests take {self._limit_bytes} bytes already "
                "(gateway.max_held_body_bytes): try again when a turn has ended",
                code="too_many_body_bytes",
            )
        self._held_bytes += size

    def free(self, size: int) -> None:
        self._held_bytes -= size


class HeldBody:
    """One body's share, given back once with its block."""

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self._size = 0

    def grow(self, size: int) -> None:
        """So many bytes more. Raises NoCapacity."""
        self._memory.add(size)
        self._size += size

    def __enter__(self) -> HeldBody:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._memory.free(self._size)
        self._size = 0


async def read_body(
    receive: Receive,
    headers: Mapping[str, str],
    limits: BodyLimits,
    held: HeldBody,
    connection: Connection | None = None,
) -> bytes:
    """The request's whole body.

    Raises InvalidRequest beyond the limits (413, 408) and for one that is encoded (415), NoCapacity
    where the gateway holds too many bytes, and ClientGone if it breaks off.
    """
    _check_head(headers, limits)
    if connection is not None and connection.has_whole_body:
        return await _read(receive, limits, held)
    try:
        async with asyncio.timeout(limits.timeout_s):
            return await _read(receive, limits, held)
    except TimeoutError:
        raise InvalidRequest(
            f"the body did not arrive within {limits.timeout_s:g} s: send it faster, or raise "
            "gateway.body_timeout_s",
            code="body_timeout",
            status=408,
        ) from None


def _check_head(headers: Mapping[str, str], limits: BodyLimits) -> None:
    """What the head says of the body is enough to refuse it before it comes."""
    coding = headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise InvalidRequest(
            f"the body's content-encoding {coding[:64]!r} is not read here: send it as it is, without one",
            code="unsupported_encoding",
            status=415,
        )
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limits.max_bytes:
        raise _too_large(limits)


async def _read(receive: Receive, limits: BodyLimits, held: HeldBody) -> bytes:
    pieces = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece: bytes = message.get("body", b"")
        if len(pieces) + len(piece) > limits.max_bytes:
            raise _too_large(limits)
        held.grow(len(piece))
        is_last = not message.get("more_body", False)
        if is_last and not pieces:
            return piece
        pieces += piece
        if is_last:
            return bytes(pieces)


def _too_large(limits: BodyLimits) -> InvalidRequest:
    return InvalidRequest(
        f"the body is larger than {limits.max_bytes} bytes: {limits.fix}", code="body_too_large", status=413
    )
