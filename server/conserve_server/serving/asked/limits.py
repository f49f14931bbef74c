"""How many turns of a tenant may run or wait at once, and what bounds a request's body."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

from conserve_server.core.config import GatewayConfig
from conserve_server.core.errors import LimitReached


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How large a body may be and how long it may take. `fix` says what to do about one too large."""

    max_bytes: int
    timeout_s: float
    fix: str = "shorten it, or raise gateway.max_body_bytes"


class TurnLimits:
    """Counts each tenant's turns, from the first byte of the request to the last of the answer."""

    def __init__(self, default: int, own: Mapping[str, int]) -> None:
        self._default = default
        self._own = dict(own)
        self._running: Counter[str] = Counter()

    @classmethod
    def from_config(cls, gateway: GatewayConfig) -> TurnLimits:
        return cls(gateway.max_concurrent_turns, _own_turns(gateway))

    def become(self, gateway: GatewayConfig) -> None:
        """Take the tenants' own limits, as they were read anew; turns that run go on."""
        self._own = _own_turns(gateway)

    def turn(self, tenant: str) -> AbstractContextManager[None]:
        """Room for one turn while the block runs. Raises LimitReached (429) where there is none."""
        limit = self._own.get(tenant, self._default)
        if self._running[tenant] >= limit:
            raise LimitReached(
                f"{limit} turns run or wait already: try again when one has ended "
                "(gateway.max_concurrent_turns, or the tenant's own)",
                code="too_many_turns",
            )
        return _Turn(self._running, tenant)


def _own_turns(gateway: GatewayConfig) -> dict[str, int]:
    return {
        name: tenant.max_concurrent_turns
        for name, tenant in gateway.tenants.items()
        if tenant.max_concurrent_turns is not None
    }


class _Turn:
    """Counted in and out."""

    def __init__(self, running: Counter[str], tenant: str) -> None:
        self._running = running
        self._tenant = tenant

    def __enter__(self) -> None:
        self._running[self._tenant] += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running[self._tenant] -= 1
