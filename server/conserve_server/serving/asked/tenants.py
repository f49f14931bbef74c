"""Who is calling: the tenant of an API key, or the administrator."""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from conserve_server.core.config import GatewayConfig, TenantConfig
from conserve_server.core.errors import ConfigError, Unauthorized
from conserve_server.core.key_file import is_key, keys_in
from conserve_server.serving.asked.identity import DEFAULT_TENANT

ADMIN_KEY_VARIABLE: Final = "CONSERVE_ADMIN_KEY"
_HEADER: Final = "send the header `Authorization: Bearer KEY`, or `x-api-key: KEY`"


def authorization_of(headers: Mapping[str, str]) -> str | None:
    """A request's `Authorization`, or what its `x-api-key` (Anthropic's clients) stands for."""
    given = headers.get("authorization")
    if given is None and (key := headers.get("x-api-key")) is not None:
        return f"Bearer {key}"
    return given


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request. `tenant` is None for the administrator of a gateway that has tenants."""

    tenant: str | None
    is_admin: bool = False

    def turn_tenant(self) -> str:
        """The tenant whose turn this is. Raises Unauthorized (403) for a key that belongs to none."""
        if self.tenant is None:
            raise Unauthorized(
                "the admin key sends no turns: use the API key of a tenant", code="not_a_tenant", status=403
            )
        return self.tenant


class Tenants:
    """The configured tenants. Of the keys only digests are kept."""

    def __init__(self, names: tuple[str, ...], keys: Mapping[bytes, Caller]) -> None:
        self.names = names or (DEFAULT_TENANT,)
        self.needs_key = bool(names)
        self._keys = dict(keys)
        self.has_admin = any(caller.is_admin for caller in self._keys.values())

    @classmethod
    def from_config(cls, gateway: GatewayConfig, environment: Mapping[str, str] = os.environ) -> Tenants:
        """Read the keys, those in files too. Raises ConfigError naming the setting, never a key."""
        if DEFAULT_TENANT in gateway.tenants:
            raise ConfigError(
                f"gateway.tenants.{DEFAULT_TENANT} is the name of everybody where no tenants are configured: "
                "choose another"
            )
        keys: dict[bytes, Caller] = {}
        for name, tenant in gateway.tenants.items():
            for setting, key in _keys_of(f"gateway.tenants.{name}", tenant):
                _add(keys, setting, key, Caller(name))
        admin = Caller(None if gateway.tenants else DEFAULT_TENANT, is_admin=True)
        if from_environment := environment.get(ADMIN_KEY_VARIABLE):
            _add(keys, ADMIN_KEY_VARIABLE, from_environment, admin)
        elif gateway.admin_key is not None:
            _add(keys, "gateway.admin_key", gateway.admin_key.get_secret_value(), admin)
        found = cls(tuple(gateway.tenants), keys)
        if gateway.metrics_need_admin_key and not found.has_admin:
            raise ConfigError(
                f"gateway.metrics_need_admin_key needs an admin key: put it into {ADMIN_KEY_VARIABLE}"
            )
        return found

    def changed(self, other: Tenants) -> set[str]:
        """The tenants whose keys are others in `other`, or that only one of both has."""
        mine, its = self._by_tenant(), other._by_tenant()
        return {name for name in mine.keys() | its.keys() if mine.get(name) != its.get(name)}

    def become(self, other: Tenants) -> None:
        """Take the other's tenants and keys, as they were read anew."""
        self.names, self._keys, self.has_admin = other.names, other._keys, other.has_admin

    def _by_tenant(self) -> dict[str, frozenset[bytes]]:
        named = {name: frozenset[bytes]() for name in self.names if self.needs_key}
        for digest, caller in self._keys.items():
            if caller.tenant in named:
                named[caller.tenant] |= {digest}
        return named

    def caller(self, authorization: str | None) -> Caller:
        """Who sent this `Authorization` header. Raises Unauthorized (401) where a key is asked for."""
        known = self._known(authorization)
        if known is not None:
            return known
        if not self.needs_key:
            return Caller(DEFAULT_TENANT)
        if authorization is None:
            raise Unauthorized(f"an API key is missing: {_HEADER}", code="missing_api_key")
        raise Unauthorized(
            f"the API key is none that this gateway knows: {_HEADER}",
            code="invalid_api_key",
        )

    def check_admin(self, authorization: str | None) -> None:
        """Raises Unauthorized (401) unless the header has the admin key."""
        if not self.has_admin:
            raise Unauthorized(
                f"this needs the admin key, and none is configured: put one into {ADMIN_KEY_VARIABLE}",
                code="admin_key_needed",
            )
        if not self.is_admin(authorization):
            raise Unauthorized(f"this needs the admin key: {_HEADER}", code="admin_key_needed")

    def is_admin(self, authorization: str | None) -> bool:
        known = self._known(authorization)
        return known is not None and known.is_admin

    def _known(self, authorization: str | None) -> Caller | None:
        """Compares with every key, each in constant time: how long it takes says nothing of any key."""
        if not self._keys:
            return None
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        found = None
        for digest, caller in self._keys.items():
            if hmac.compare_digest(digest, given):
                found = caller
        return found if scheme.lower() == "bearer" else None


def _digest(key: str) -> bytes:
    """Keys of one length, so that a comparison does not tell how long a key is."""
    return sha256(key.encode("utf-8", "surrogatepass")).digest()


def _keys_of(setting: str, tenant: TenantConfig) -> Iterator[tuple[str, str]]:
    for key in tenant.api_keys:
        yield f"{setting}.api_keys", key.get_secret_value()
    if tenant.api_keys_file is not None:
        yield from _keys_in_file(f"{setting}.api_keys_file", Path(tenant.api_keys_file))


def _keys_in_file(setting: str, path: Path) -> Iterator[tuple[str, str]]:
    keys = keys_in(path, setting)
    if not keys:
        raise ConfigError(f"{setting}: {path} has no key: write one a line")
    for key in keys:
        yield setting, key


def _add(keys: dict[bytes, Caller], setting: str, key: str, caller: Caller) -> None:
    if not is_key(key):
        raise ConfigError(
            f"{setting} has a key that no header can carry: use printable ASCII without spaces, at least one"
        )
    digest = _digest(key)
    if keys.get(digest, caller) != caller:
        raise ConfigError(
            f"{setting} has a key that is another's already: each key must belong to one caller"
        )
    keys[digest] = caller
