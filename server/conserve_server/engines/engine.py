"""What the gateway asks of an engine: one prefill leg, one streamed leg, one look."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from conserve_server.core.config import Config


class Role(StrEnum):
    """What an engine is for."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """An engine's name, role and base URL (without `/v1`). Names are unique in a cluster.

    `gpus`: those that it was started on, as CUDA names them; empty where that is not known.
    """

    name: str
    role: Role
    url: str
    gpus: tuple[str, ...] = ()


def listed_engines(config: Config) -> tuple[EngineSpec, ...]:
    """The engines that a configuration lists by URL, named by role and place: `decode-0`."""
    pools = ((Role.PREFILL, config.pools.prefill), (Role.DECODE, config.pools.decode))
    return tuple(
        EngineSpec(f"{role}-{i}", role, url) for role, pool in pools for i, url in enumerate(pool.engines)
    )


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One look at a running engine.

    `generation` changes when the process behind the address changes. `kv_capacity_tokens`
    is None until the engine reports it; `kv_usage` is a share of it (0 to 1).
    """

    models: tuple[str, ...]
    generation: str
    kv_capacity_tokens: int | None
    kv_usage: float
    running: int
    waiting: int
    emulated: bool
    version: str | None = None
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True)
class PrefillAnswer:
    """What the prefill leg brought: the engine's transfer parameters, unread, and its usage."""

    kv_transfer_params: bytes
    prompt_tokens: int
    cached_tokens: int | None


class Answer(Protocol):
    """An engine's answer, its body still to be read."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Header names in lower case."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, byte for byte. Raises EngineFailed if the engine breaks off."""
        ...


class Engine(Protocol):
    """One engine. Every method is bounded in time and raises EngineFailed naming the engine."""

    @property
    def spec(self) -> EngineSpec: ...

    async def prefill(self, path: str, body: bytes, headers: Mapping[str, str]) -> PrefillAnswer:
        """Run a prefill leg (see `wire.prefill_leg`), its KV held for a decoder.

        Raises InvalidRequest where the engine says that the request is at fault.
        """
        ...

    def send(
        self, path: str, body: bytes, headers: Mapping[str, str], *, method: str = "POST"
    ) -> AbstractAsyncContextManager[Answer]:
        """Send `body` as it is. Leaving the context early cancels the request in the engine."""
        ...

    async def look(self) -> EngineStatus:
        """Health, model and KV use now."""
        ...
