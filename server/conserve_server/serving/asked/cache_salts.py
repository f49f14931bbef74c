"""What keeps one tenant's cached prompts from another: a salt that goes into every block's hash.

An engine finds a cached prefix by a hash of its tokens. How many tokens were cached (or how soon the first
one came) would tell a tenant what another one has sent. With a salt of its own each tenant finds only
what it sent itself.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from hashlib import sha256

import msgspec

from conserve_server.core.config import GatewayConfig
from conserve_server.core.errors import InvalidRequest

MAX_SALT_CHARACTERS = 128
"""vLLM's own limit for a client's salt, in 0.32."""


class CacheSalts:
    """The salt of each tenant. Tenants of one cache group have one salt.

    No client can choose another's salt, whatever it sends: its own is only one part of what is hashed. The
    secret keeps salts apart from those who know names and reach an engine directly.
    """

    def __init__(self, groups: Mapping[str, str], secret: str = "") -> None:
        self._groups = dict(groups)
        self._secret = secret.encode()
        self._of_tenant: dict[str, msgspec.Raw] = {}

    @classmethod
    def from_config(cls, gateway: GatewayConfig) -> CacheSalts | None:
        """None where no tenants are configured: there is nobody to keep apart."""
        if not gateway.tenants:
            return None
        groups = {name: t.cache_group for name, t in gateway.tenants.items() if t.cache_group is not None}
        secret = gateway.cache_salt_secret
        return cls(groups, secret.get_secret_value() if secret is not None else "")

    def of(self, tenant: str, given: msgspec.Raw | None) -> msgspec.Raw:
        """The tenant's salt, encoded, joined with the one that its request brings, if any.

        Raises InvalidRequest where that is none.
        """
        own = _read_salt(given)
        if own is not None:
            return self._derive(tenant, own)
        known = self._of_tenant.get(tenant)
        if known is None:
            known = self._of_tenant[tenant] = self._derive(tenant, None)
        return known

    def _derive(self, tenant: str, own: str | None) -> msgspec.Raw:
        group = self._groups.get(tenant)
        whose = ("tenant", tenant) if group is None else ("group", group)
        digest = hmac.new(self._secret, msgspec.json.encode((*whose, own)), sha256).hexdigest()
        return msgspec.Raw(msgspec.json.encode(digest))


def _read_salt(given: msgspec.Raw | None) -> str | None:
    if given is None:
        return None
    try:
        salt = msgspec.json.decode(given, type=str | None)
    except msgspec.MsgspecError as error:
        raise _wrong(str(error)) from error
    if salt is not None and not 0 < len(salt) <= MAX_SALT_CHARACTERS:
        raise _wrong(f"it must have 1 to {MAX_SALT_CHARACTERS} characters")
    return salt


def _wrong(what: str) -> InvalidRequest:
    return InvalidRequest(f"cache_salt is wrong: {what}", code="invalid_field", param="cache_salt")
