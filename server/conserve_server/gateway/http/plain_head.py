"""A request's head without its wish for another protocol, for a parser to read anew.

HTTP lets a server ignore `Upgrade`. Clients of the JDK, Ktor and Spring send `Upgrade: h2c` with
every first request, a body included; the parser would take what follows for the other protocol.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_OF_UPGRADES: Final = frozenset({b"connection", b"upgrade", b"http2-settings"})


def plain_head(method: bytes, url: bytes, version: str, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The same head, its `Connection` with the other wishes alone. Names are lower-case."""
    lines = [b"%b %b HTTP/%b" % (method, url, version.encode())]
    wishes: list[bytes] = []
    for name, value in headers:
        if name == b"connection":
            wishes += [wish.strip() for wish in value.split(b",")]
        elif name not in _OF_UPGRADES:
            lines.append(name + b": " + value)
    kept = [wish for wish in wishes if wish and wish.lower() not in _OF_UPGRADES]
    if kept:
        lines.append(b"connection: " + b", ".join(kept))
    return b"\r\n".join((*lines, b"", b""))
