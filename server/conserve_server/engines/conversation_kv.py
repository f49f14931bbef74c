"""The conversations of one engine, by the routes that `conserve_vllm` adds to vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

import msgspec

from conserve_server.core.errors import EngineFailed
from conserve_server.engines.connection import silent
from conserve_server.engines.connections import Connections
from conserve_server.engines.document import decoded, read_whole
from conserve_server.engines.engine import EngineSpec
from conserve_server.engines.vllm_metrics import MAX_COUNT

T = TypeVar("T")

CALL_TIMEOUT_S: Final = 15.0
"""Longer than the engine's own: it answers between two of its steps."""

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]


class Capabilities(msgspec.Struct, frozen=True):
    """What the engine's plugin can do, and its sizes."""

    api_version: int
    calls: tuple[str, ...]
    block_size: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    blocks: Count


class Resident(msgspec.Struct, frozen=True):
    """Tokens cached by conversation, as far as they changed since a cursor; 0: nothing any more."""

    cursor: Count
    is_full: bool
    tokens: dict[str, Count]


class Fetched(msgspec.Struct, frozen=True):
    """Tokens on the device now, by conversation: of those that were brought back."""

    tokens: dict[str, Count]


class _Refusal(msgspec.Struct):
    message: str = ""


class _RefusalBody(msgspec.Struct):
    error: _Refusal | None = None


@dataclass(frozen=True, slots=True)
class NoPlugin:
    """The engine can't follow conversations, and why."""

    reason: str


class ConversationKv:
    """One engine's plugin, over connections of its own. Calls are bounded in time and raise EngineFailed."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self._connections = Connections(
            spec.name, spec.url, silence_timeout_s=CALL_TIMEOUT_S, access=spec.access
        )

    def close(self) -> None:
        """Close the connections."""
        self._connections.close()

    async def capabilities(self) -> Capabilities | NoPlugin:
        """What there is. Raises EngineFailed where that can't be told now."""
        status, body = await self._call("GET", "capabilities")
        if status == 200:
            return _decode(self.spec, body, Capabilities)
        if status >= 500 and status != 501:
            raise _failed(self.spec, f"answers capabilities with status {status}")
        return NoPlugin(_reason(status, body))

    async def release(self, conversations: Sequence[str]) -> None:
        """Their KV is not needed any more."""
        await self._post("release", {"conversations": conversations})

    async def refresh(self, conversations: Sequence[str]) -> None:
        """As if just used."""
        await self._post("refresh", {"conversations": conversations})

    async def keep(self, conversations: Sequence[str], timeout_s: float) -> None:
        """Taken last, for `timeout_s`; 0 ends that."""
        await self._post("keep", {"conversations": conversations, "timeout_s": timeout_s})

    async def offload(self, conversations: Sequence[str]) -> None:
        """What the host has a copy of is taken first. Only where capabilities name the call."""
        await self._post("offload", {"conversations": conversations})

    async def fetch(self, conversations: Sequence[str]) -> Fetched:
        """Bring them back from the host. Only where capabilities name the call."""
        body = await self._post("fetch", {"conversations": conversations})
        return _decode(self.spec, body, Fetched)

    async def resident(self, since: int | None) -> Resident:
        """What changed since the cursor of an earlier call; everything without one."""
        query = "" if since is None else f"?since={since}"
        status, body = await self._call("GET", f"resident{query}")
        if status != 200:
            raise _failed(self.spec, f"answers resident with status {status}")
        return _decode(self.spec, body, Resident)

    async def _post(self, call: str, document: dict[str, object]) -> bytes:
        status, body = await self._call("POST", call, msgspec.json.encode(document))
        if status != 200:
            raise _failed(self.spec, f"answers {call} with status {status}: {_reason(status, body)}")
        return body

    async def _call(self, method: str, call: str, body: bytes = b"") -> tuple[int, bytes]:
        headers = {"content-type": "application/json"}
        try:
            async with (
                asyncio.timeout(CALL_TIMEOUT_S),
                self._connections.request(method, f"/v1/conserve/{call}", headers, body) as answer,
            ):
                return answer.status, await read_whole(answer, self.spec.name)
        except TimeoutError as error:
            raise silent(self.spec.name) from error


def _reason(status: int, body: bytes) -> str:
    try:
        found = decoded(body, _RefusalBody).error
    except ValueError:
        found = None
    if found is not None and found.message and status == 501:
        return found.message
    return f"no such route (status {status}): conserve_vllm is not installed there, or not loaded"


def _decode(spec: EngineSpec, body: bytes, kind: type[T]) -> T:
    try:
        return decoded(body, kind)
    except ValueError as error:
        raise _failed(spec, f"answers with something else: {error}") from error


def _failed(spec: EngineSpec, what: str) -> EngineFailed:
    return EngineFailed(f"engine {spec.name} {what}", code="engine_error", engine=spec.name)
