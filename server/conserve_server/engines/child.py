"""A short-lived helper process that never outlives its context."""

from __future__ import annotations

import asyncio
import contextlib
import os
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Mapping

REAP_S = 5.0


@contextlib.asynccontextmanager
async def child(*argv: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Process]:
    """A process with its output and errors in one pipe; killed on the way out if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *argv, env={**os.environ, **(env or {})}, stdout=PIPE, stderr=STDOUT
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await drained(process, REAP_S)


async def drained(process: Process, limit_s: float) -> bool:
    """Whether the process ended within `limit_s`; its pipes, read to their end, are closed then."""
    try:
        async with asyncio.timeout(limit_s):
            await process.communicate()
    except TimeoutError:
        return False
    return True
