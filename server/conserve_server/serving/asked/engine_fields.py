"""What an engine gets of a client's body: the table of `engines/fields.py`, with what the operator allows."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import Final

import msgspec

from conserve_server.core.config import GatewayConfig
from conserve_server.core.errors import InvalidRequest
from conserve_server.engines.fields import DIRECTING, PASSED, XARGS
from conserve_server.engines.wire import API_OF, TRANSFER_FIELDS, Fields
from conserve_server.serving.asked.cache_salts import CacheSalts

MAX_NAMES_LOGGED: Final = 100
"""Clients can make up any number of names."""
_READ_XARGS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode

log = logging.getLogger(__name__)


class EngineFields:
    """Applies the table. `passed` and `passed_xargs` are names that go to engines beside those in it."""

    def __init__(
        self,
        *,
        passed: Collection[str] = (),
        passed_xargs: Collection[str] = (),
        salts: CacheSalts | None = None,
    ) -> None:
        own_salt = () if salts is not None else ("cache_salt",)
        self._passed = {route: names.union(passed, own_salt) for route, names in PASSED.items()}
        self._xargs = XARGS.union(passed_xargs)
        self._salts = salts
        self._logged: set[str] = set()

    @classmethod
    def from_config(cls, gateway: GatewayConfig) -> EngineFields:
        return cls(
            passed=gateway.passed_fields,
            passed_xargs=gateway.passed_vllm_xargs,
            salts=CacheSalts.from_config(gateway),
        )

    def become(self, gateway: GatewayConfig) -> None:
        """Take the tenants' cache groups, as they were read anew."""
        if self._salts is not None:
            self._salts = CacheSalts.from_config(gateway)

    def of(self, route: str, fields: Fields, tenant: str) -> Fields:
        """What the engine gets: `fields` itself where nothing must change. Raises InvalidRequest."""
        passed = self._passed[route]
        takes_salt = self._salts is not None and route in API_OF
        if not takes_salt and passed.issuperset(fields):
            return fields
        kept = {name: value for name, value in fields.items() if name in passed}
        if "vllm_xargs" in fields and (xargs := self._some_xargs(fields["vllm_xargs"])):
            kept["vllm_xargs"] = msgspec.Raw(msgspec.json.encode(xargs))
        if self._salts is not None and takes_salt:
            kept["cache_salt"] = self._salts.of(tenant, fields.get("cache_salt"))
        self._note(name for name in fields if name not in passed and name not in DIRECTING)
        return kept

    def _some_xargs(self, raw: msgspec.Raw) -> dict[str, msgspec.Raw]:
        """The entries that may pass. vLLM reads transfer parameters here too: those are refused by name."""
        try:
            given = _READ_XARGS(raw) or {}
        except msgspec.MsgspecError as error:
            raise _wrong_xargs(f"vllm_xargs is wrong: {error}") from error
        forbidden = sorted(TRANSFER_FIELDS & given.keys())
        if forbidden:
            raise _wrong_xargs(f"vllm_xargs.{forbidden[0]} is the gateway's to set: leave it out")
        self._note(f"vllm_xargs.{name}" for name in given if name not in self._xargs)
        return {name: value for name, value in given.items() if name in self._xargs}

    def _note(self, dropped: Iterable[str]) -> None:
        """Say once of each name that it was dropped, whoever sent it."""
        for name in dropped:
            short = ascii(name[:64])
            if short in self._logged or len(self._logged) >= MAX_NAMES_LOGGED:
                continue
            self._logged.add(short)
            log.warning(
                "requests have the field %s, which is none that engines get: it is dropped "
                "(gateway.passed_fields and gateway.passed_vllm_xargs let more pass)",
                short,
            )


def _wrong_xargs(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_field", param="vllm_xargs")
