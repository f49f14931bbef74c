"""Which names a gateway answers to: a page whose name was made to lead here must not read what it says.

A browser sends a page's requests to whatever address the page's name has, and lets the page read the
answer: where no key is asked for, the `Host` is all that tells such a request from the user's own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from conserve_server.core.config import GatewayConfig
from conserve_server.core.errors import InvalidRequest
from conserve_server.gateway.http.errors import NOSNIFF, api_of, error_document
from conserve_server.gateway.http.request_id import request_id_of
from conserve_server.serving.client import REQUEST_ID

_LOCAL_ENDS: Final = (".localhost", ".internal")
"""Names that nobody outside can own (RFC 6761, ICANN's resolution of 2024)."""
ANY: Final = "*"


class AllowedHosts:
    """The configured names, and those that no page from outside can have.

    The latter: addresses, names without a dot (the local network's, such as a container's), and what
    ends in `.localhost` or `.internal`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(name.lower() for name in names)
        self.allows = lru_cache(maxsize=256)(self._allows)

    @classmethod
    def from_config(cls, gateway: GatewayConfig) -> AllowedHosts | None:
        """None where every name is answered to.

        Without `gateway.allowed_hosts` that is wherever a key is asked for, or others than this machine
        reach the gateway: by names that are theirs to choose.
        """
        if ANY in gateway.allowed_hosts:
            return None
        if not gateway.allowed_hosts and (gateway.tenants or not _is_loopback(gateway.host)):
            return None
        return cls((*gateway.allowed_hosts, gateway.host))

    def _allows(self, host: str) -> bool:
        """Whether a request with this `Host` is served. Browsers always send one, others need not."""
        name = _name(host)
        if "." not in name or name.endswith(_LOCAL_ENDS) or name in self._names:
            return True
        return _is_address(name)


class RefusesOtherHosts:
    """Middleware: a request for another name is a 403."""

    def __init__(self, app: ASGIApp, hosts: AllowedHosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = Headers(scope=scope).getlist("host") if scope["type"] == "http" else []
        wrong = next((host for host in found if not self._hosts.allows(host)), None)
        if wrong is None:
            await self._app(scope, receive, send)
            return
        document = error_document(_not_ours(wrong), api_of(scope["path"]))
        own = {REQUEST_ID: request_id_of(scope, Headers(scope=scope)), **NOSNIFF}
        await JSONResponse(document, 403, own)(scope, receive, send)


def _not_ours(host: str) -> InvalidRequest:
    return InvalidRequest(
        f"this gateway does not answer to the name {_name(host)[:256]!r}, by which a web page could use it: "
        "list it in gateway.allowed_hosts if it is yours",
        code="host_not_allowed",
        status=403,
    )


def _name(host: str) -> str:
    """The name of a `Host` without its port, and without the dot that may end it."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.strip().partition(":")[0].rstrip(".").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
