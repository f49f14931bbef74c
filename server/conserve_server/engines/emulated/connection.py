"""The client's end of a request: noticing that it went away, and dropping it on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from starlette.types import Receive, Scope

TRANSPORT: Final = "conserve.transport"
"""Where the shipped server leaves a connection's transport in the scope, for faults that drop it."""


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end, or cancel it once the client is gone. The request's body has been read."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def disconnected(receive: Receive) -> None:
    """Return once the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        continue


def drop_connection(scope: Scope) -> None:
    """Abort the connection; raises ConnectionResetError where there is none, as in process."""
    transport = scope.get(TRANSPORT)
    if not isinstance(transport, asyncio.Transport):
        raise ConnectionResetError("the emulated engine dropped the connection, as it was told to")
    transport.abort()
