"""The gateway as a process of its own, on a free port, stopped when its block ends."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from conserve_server.core.errors import ConserveError

if TYPE_CHECKING:
    import aiohttp

START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.1


@asynccontextmanager
async def running_gateway(config: Path, env: Mapping[str, str], log: Path) -> AsyncIterator[str]:
    """The base URL of a gateway that can serve. Raises ConserveError with its log if it does not come up."""
    from conserve_server.engines.ports import hold_port

    with ExitStack() as held, log.open("wb") as log_file:
        port = hold_port(held, "127.0.0.1")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "conserve_server.cli.main", "serve", str(config), "--port", str(port),
            env=dict(env), stdout=log_file, stderr=log_file,
        )  # fmt: skip
        base_url = f"http://127.0.0.1:{port}"
        try:
            await _wait_ready(base_url, process, log)
            yield base_url
        finally:
            await _stop(process)


async def _wait_ready(base_url: str, process: asyncio.subprocess.Process, log: Path) -> None:
    import aiohttp

    try:
        async with asyncio.timeout(START_TIMEOUT_S), aiohttp.ClientSession() as session:
            while process.returncode is None:
                if await _is_ready(session, base_url):
                    return
                await asyncio.sleep(_POLL_S)
    except TimeoutError as error:
        raise ConserveError(_not_ready(f"was not ready within {START_TIMEOUT_S:g} s", log)) from error
    raise ConserveError(_not_ready(f"ended with exit status {process.returncode}", log))


async def _is_ready(session: aiohttp.ClientSession, base_url: str) -> bool:
    import aiohttp

    try:
        async with session.get(f"{base_url}/health") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()


def _not_ready(what: str, log: Path) -> str:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    return f"the gateway {what}; the end of {log}:\n{tail}"
