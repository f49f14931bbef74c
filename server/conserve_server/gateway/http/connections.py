"""What bounds a client's connection, whatever it asks, and the answers of a server that hangs up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import httptools
import msgspec

from conserve_server.core.config import GatewayConfig
from conserve_server.core.errors import InvalidRequest, TurnError
from conserve_server.gateway.http.errors import NOSNIFF, api_of, error_document, error_headers
from conserve_server.gateway.http.hosts import AllowedHosts
from conserve_server.gateway.http.turn_cycle import STATUS_LINES

CONNECTION_LIMITS: Final = "conserve_connection_limits"
"""In the lifespan's state: a `ConnectionLimits`."""
MAX_HEAD_BYTES: Final = 64 * 1024
"""Of a request's line and headers: four identifiers of the longest kind fit."""
MAX_FRAMING_BYTES: Final = 16 * 1024
"""Of a chunked body's extensions and trailers, which nothing reads."""
CHUNK_BYTES: Final = 32
"""Of a chunk's own framing: its length in hexadecimal and the line ends."""
MAX_PIPELINED: Final = 16
"""Requests that wait for the answer before theirs. No common client sends one ahead."""
HEAD_TIMEOUT_S: Final = 30.0
DRAIN_TIMEOUT_S: Final = 10.0
"""For the rest of a body whose request has been answered."""
GRACE_S: Final = 5.0
"""What the endpoint itself has a bound for (a body, a reader that stalls) it ends first, with an answer."""


def _uncounted(_error: TurnError) -> None:
    pass


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Of one gateway. `refused` is told of every request that the protocol itself refuses.
    What is for none of the `hosts` is the application's to refuse.
    """

    max_connections: int = GatewayConfig().max_connections
    body_timeout_s: float = GatewayConfig().body_timeout_s
    write_timeout_s: float = GatewayConfig().write_timeout_s
    refused: Callable[[TurnError], None] = _uncounted
    hosts: AllowedHosts | None = None

    @classmethod
    def from_config(
        cls, gateway: GatewayConfig, refused: Callable[[TurnError], None] = _uncounted
    ) -> ConnectionLimits:
        return cls(
            gateway.max_connections,
            gateway.body_timeout_s,
            gateway.write_timeout_s,
            refused,
            AllowedHosts.from_config(gateway),
        )


def head_too_large() -> TurnError:
    what = f"the request's line and headers are longer than {MAX_HEAD_BYTES} bytes"
    return TurnError(f"{what}: send less in headers", code="headers_too_large", status=431)


def malformed(error: httptools.HttpParserError) -> TurnError:
    """The bytes are no HTTP, or its parser could make nothing of a part of them."""
    why = str(error) or "its target or a header can't be read"
    return InvalidRequest(f"this is no HTTP/1.1 request: {why}", code="malformed_request")


def refusal(error: TurnError, url: bytes, default_headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The whole answer to a request that no endpoint sees, in the words of its API."""
    body = msgspec.json.encode(error_document(error, api_of(url.decode("latin-1"))))
    given = {"content-type": "application/json", **NOSNIFF, **error_headers(error)}
    given |= {"content-length": str(len(body)), "connection": "close"}
    headers = [*default_headers, *((name.encode(), value.encode()) for name, value in given.items())]
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return STATUS_LINES[error.status] + lines + b"\r\n" + body
