"""One engine process under its guardian: started and stopped as a context."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from conserve_server.core.errors import EngineStartError
from conserve_server.engines import guardian
from conserve_server.engines.child import drained

GUARDIAN_START_S = 30.0
GUARDIAN_STOP_S = 10.0
"""What the guardian itself may take, beyond the engine's own grace."""


class EngineProcess:
    """A running engine. `pid` leads a process group of its own."""

    def __init__(self, keeper: Process, pid: int) -> None:
        self._keeper = keeper
        self.pid = pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 + N if signal N ended it."""
        return self._keeper.returncode

    async def wait(self) -> int:
        """The exit code, once the engine has ended."""
        return await self._keeper.wait()


@contextlib.asynccontextmanager
async def running(
    argv: Sequence[str], env: Mapping[str, str], log: Path, stop_timeout_s: float
) -> AsyncIterator[EngineProcess]:
    """The engine as a process that ends with this context, with this process, or by itself."""
    keeper = await _guardian(argv, env, log, stop_timeout_s)
    pid: int | None = None
    try:
        pid = await _pid(keeper)
        yield EngineProcess(keeper, pid)
    finally:
        await _stop(keeper, pid, stop_timeout_s)


async def _guardian(argv: Sequence[str], env: Mapping[str, str], log: Path, stop_timeout_s: float) -> Process:
    """The guardian, started. Cancelled meanwhile, it is let start and then told to stop: asyncio would
    kill it, and what its engine has started by then would stay."""
    starting = asyncio.ensure_future(
        # By path and isolated: no site-packages, nothing of the working directory; it starts in milliseconds.
        asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", guardian.__file__, str(log), str(stop_timeout_s), *argv),
            env={**os.environ, **env},
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await _stop(await starting, None, stop_timeout_s)
        raise


async def _pid(keeper: Process) -> int:
    """The engine's pid, which its guardian says first."""
    line = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GUARDIAN_START_S):
            line = await keeper.stdout.readline() if keeper.stdout else b""
    if not line.strip().isdigit():
        raise EngineStartError(f"an engine's guardian did not start within {GUARDIAN_START_S:.0f} s")
    return int(line)


async def _stop(keeper: Process, pid: int | None, stop_timeout_s: float) -> None:
    if keeper.stdin is not None:
        keeper.stdin.close()
    try:
        if not await drained(keeper, stop_timeout_s + GUARDIAN_STOP_S):
            keeper.kill()
            await drained(keeper, GUARDIAN_STOP_S)
    finally:
        if pid is not None and (keeper.returncode is None or keeper.returncode < 0):
            # The guardian did not do its work (it was killed, or hung): what is left is the engine's group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
