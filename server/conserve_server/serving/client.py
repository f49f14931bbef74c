"""Who waits for an answer, as far as serving a turn knows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from conserve_server.core.errors import TurnError

REQUEST_ID: Final = "x-request-id"
"""Names a request to its client, to engines and in logs."""


class Client(Protocol):
    """One answer to one client: headers once, then bytes, then an end. A slow reader holds `write` back.

    `start`, `write`, `finish` and `fail` raise ClientStalled for a client that takes nothing.
    """

    has_started: bool
    """Whether its headers have gone out."""
    has_finished: bool

    @property
    def is_writable(self) -> bool:
        """Whether a short write would go out at once, as far as that is known."""
        ...

    async def start(self, status: int, headers: Mapping[str, str]) -> None: ...

    async def write(self, chunk: bytes) -> None: ...

    async def finish(self, last: bytes = b"") -> None: ...

    async def fail(self, error: TurnError, headers: Mapping[str, str]) -> None:
        """The error in its API's words: as the answer, or as the last event of a stream that has begun."""
        ...


class ClientStalled(TurnError):
    """The client does not read its answer: nothing more can be said to it."""
