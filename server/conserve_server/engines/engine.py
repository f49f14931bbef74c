"""What the gateway asks of an engine: one prefill leg, one streamed leg, one look."""

from __future__ import annotations

from collections.abc import AsyncIterator, Container, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from typing import Protocol

from conserve_server.core.config import Config
from conserve_server.core.pool_config import EngineRecord, PoolConfig
from conserve_server.engines.access import Access, access_of


class Role(StrEnum):
    """What an engine is for."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """An engine's name, role and base URL (without `/v1`). Names are unique in a cluster.

    `gpus`: those that it was started on, as CUDA names them; empty where that is not known.
    `tier`: the name of its tier; None where its speed is observed. `access` is the engine's own,
    and changes with the configuration.
    """

    name: str
    role: Role
    url: str
    gpus: tuple[str, ...] = ()
    tier: str | None = None
    access: Access = field(default_factory=Access, compare=False)


def pool_of(config: Config, role: Role) -> PoolConfig:
    """The part of the configuration that is about engines of this role."""
    return config.pools.prefill if role is Role.PREFILL else config.pools.decode


def spec_of(record: EngineRecord, role: Role, name: str, access: Access) -> EngineSpec:
    """A listed engine under this name."""
    return EngineSpec(name, role, record.url, tier=record.tier, access=access)


def listed_engines(config: Config) -> tuple[EngineSpec, ...]:
    """The engines that a configuration lists, under their own names or by role and number: `decode-0`.

    Raises ConfigError where a key or certificates can't be read.
    """
    taken = {record.name for role in Role for record in pool_of(config, role).engines if record.name}
    found: list[EngineSpec] = []
    for role in Role:
        for record in pool_of(config, role).records:
            name = record.name or free_name(role, taken)
            taken.add(name)
            found.append(spec_of(record, role, name, access_of(record)))
    return tuple(found)


def free_name(role: Role, taken: Container[str]) -> str:
    """The first of `decode-0`, `decode-1` … that is nobody's."""
    return next(name for number in count() if (name := f"{role}-{number}") not in taken)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model as an engine lists it. `parent`: what it adapts; `created`: seconds since 1970."""

    id: str
    root: str | None = None
    parent: str | None = None
    created: int | None = None
    max_model_len: int | None = None


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
    cards: tuple[ModelCard, ...] = ()


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
