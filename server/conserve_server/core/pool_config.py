"""The two pools and their engines: records of running ones, or a number to start locally."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, StringConstraints, field_validator, model_validator

from conserve_server.core.config_part import Part

EngineName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _repeated(values: Iterable[str]) -> str | None:
    """The first value that is there more than once."""
    return next((value for value, times in Counter(values).items() if times > 1), None)


class EngineRecord(Part):
    """One running engine. What it leaves out is its pool's, or made up."""

    url: str
    """Its base URL, without `/v1`."""
    name: EngineName | None = None
    """As it is called in receipts, metrics and logs; None: by role and number, `decode-0`."""
    tier: str | None = None
    api_key_file: str | None = None
    """A file with the key that the engine asks for (vLLM's `--api-key`), read again at each reload."""
    ca_file: str | None = None
    """Certificates (PEM) that the engine's own is checked with, instead of the system's."""
    basic_auth: SecretStr | None = None
    """`user:password`, as they may stand in the URL, from which they are taken out."""

    @model_validator(mode="before")
    @classmethod
    def _without_credentials(cls, value: object) -> object:
        document = {"url": value} if isinstance(value, str) else value
        if not isinstance(document, dict) or not isinstance(url := document.get("url"), str):
            return document
        scheme, separator, rest = url.partition("://")
        userinfo, has_any, address = rest.partition("/")[0].rpartition("@")
        if not has_any or not separator:
            return document
        path = rest[len(userinfo) + 1 + len(address) :]
        found = {"basic_auth": SecretStr(unquote(userinfo))} if userinfo else {}
        return {**document, "url": f"{scheme}://{address}{path}", **found}

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            is_whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            is_whole = False
        if not is_whole:
            raise ValueError(f"{url.rpartition('@')[2]!r} is not a URL such as http://10.0.0.7:8100")
        if parts.query or parts.fragment:
            raise ValueError(f"{url!r} has a query or a fragment: give the engine's base URL alone")
        return url.rstrip("/").removesuffix("/v1")


class PoolConfig(Part):
    """One role's engines: listed, or a number to start locally."""

    engines: tuple[EngineRecord, ...] = ()
    """Running engines: a base URL each, or a table with `url` and what else is known of it."""
    api_key_file: str | None = None
    """The `api_key_file` of the listed engines that name none."""
    ca_file: str | None = None
    """The `ca_file` of the listed engines that name none."""
    count: int = Field(default=0, ge=0)
    """Engines that `conserve up` starts."""
    cores: tuple[str, ...] = ()
    """CPU cores of each local engine, one entry an engine, as vLLM writes them ("0" or "0-3")."""
    gpus: tuple[str, ...] = ()
    """GPUs of each local engine, one entry an engine, as CUDA_VISIBLE_DEVICES writes them ("0" or "0,1")."""
    flags: tuple[str, ...] = ()
    """Extra vLLM flags for this pool's local engines, after the common ones."""
    host_kv_gib: float | None = Field(default=None, gt=0)
    """Host memory of each local engine for KV that does not fit its cache, in GiB; None: no host tier."""
    tiers: tuple[str, ...] = ()
    """The tier of each engine, one entry an engine; empty: speeds are observed. A listed engine's own
    record may name it instead."""
    has_both_roles: bool = False
    """Whether these engines may do the other pool's work too: prefill for others, hold
    conversations. Needs engines whose KV connector both gives and takes (`kv_both`)."""

    @field_validator("engines", "cores", "gpus", "flags", "tiers", mode="before")
    @classmethod
    def _from_list(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if self.engines and self.count:
            raise ValueError("has both engines and count: list running engines, or start some, not both")
        if repeated := _repeated(record.url for record in self.engines):
            raise ValueError(f"lists one URL twice: {repeated}")
        for name, each in (("cores", self.cores), ("gpus", self.gpus)):
            if each and len(each) != self.count:
                raise ValueError(
                    f"{name} must have one entry for each of its {self.count} engines, got {len(each)}"
                )
        if self.tiers and len(self.tiers) != self.size:
            raise ValueError(
                f"tiers must have one entry for each of its {self.size} engines, got {len(self.tiers)}"
            )
        return self

    @property
    def size(self) -> int:
        """Its engines, listed or started."""
        return len(self.engines) or self.count

    @property
    def records(self) -> tuple[EngineRecord, ...]:
        """The listed engines, each with what the pool says where its own record says nothing."""
        return tuple(
            record.model_copy(
                update={
                    "tier": record.tier or self.tier_at(index),
                    "api_key_file": record.api_key_file or self.api_key_file,
                    "ca_file": record.ca_file or self.ca_file,
                }
            )
            for index, record in enumerate(self.engines)
        )

    def tier_at(self, index: int) -> str | None:
        """What `tiers` says of the engine at that place."""
        return self.tiers[index] if index < len(self.tiers) else None


class PoolsConfig(Part):
    """The two pools. Without prefill engines every first turn is prefilled on its decoder."""

    prefill: PoolConfig = PoolConfig()
    decode: PoolConfig = PoolConfig()

    @model_validator(mode="after")
    def _names_are_apart(self) -> Self:
        names = (record.name for pool in (self.prefill, self.decode) for record in pool.engines)
        if repeated := _repeated(name for name in names if name is not None):
            raise ValueError(f"two engines are named {repeated!r}: give each a name of its own")
        return self

    @model_validator(mode="after")
    def _has_decoders(self) -> Self:
        if not self.decode.engines and not self.decode.count:
            raise ValueError(
                "decode has no engines: list their URLs in pools.decode.engines, "
                "or set pools.decode.count to start some"
            )
        if self.prefill.count and self.decode.count and bool(self.prefill.gpus) != bool(self.decode.gpus):
            raise ValueError("only one pool has gpus: name the GPUs of both, so that no engine shares one")
        if self.prefill.host_kv_gib is not None and not self.prefill.has_both_roles:
            raise ValueError(
                "prefill has host_kv_gib, but holds no conversations: set it for decode, "
                "or set pools.prefill.has_both_roles"
            )
        if bool(self.prefill.engines) and bool(self.decode.count):
            raise ValueError(
                "prefill lists running engines while decode starts local ones; do the same in both"
            )
        if bool(self.prefill.count) and bool(self.decode.engines):
            raise ValueError(
                "decode lists running engines while prefill starts local ones; do the same in both"
            )
        return self
