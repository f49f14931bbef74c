"""The gateway as a process of its own, on a free port, stopped when its block ends."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from conserve_server.cli.process_log import begin_log, failed_with_log

if TYPE_CHECKING:
    import aiohttp

    from conserve_server.engines.engine_process import EngineProcess

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 10.0
_LOOK_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.1


@asynccontextmanager
async def running_gateway(
    config: Path, env: Mapping[str, str], log: Path, *, start_timeout_s: float = START_TIMEOUT_S
) -> AsyncIterator[str]:
    """The base URL of a gateway that can serve; it ends with the block, or with this process.

    Raises ConserveError with the end of its log if it does not come up. `env` is added to
    this process's own environment.
    """
    from conserve_server.engines.engine_process import running
    from conserve_server.engines.ports import hold_port

    with ExitStack() as held:
        port = hold_port(held, "127.0.0.1")
        argv = (
            *(sys.executable, "-m", "conserve_server.cli.main", "serve", str(config)),
            *("--host", "127.0.0.1", "--port", str(port)),
        )
        begin_log(log, argv)
        async with running(argv, env, log, STOP_TIMEOUT_S) as process:
            base_url = f"http://127.0.0.1:{port}"
            await _wait_ready(base_url, process, log, start_timeout_s)
            yield base_url


async def _wait_ready(base_url: str, process: EngineProcess, log: Path, timeout_s: float) -> None:
    import aiohttp

    limit = aiohttp.ClientTimeout(total=_LOOK_TIMEOUT_S)
    try:
        async with asyncio.timeout(timeout_s), aiohttp.ClientSession(timeout=limit) as session:
            while process.exit_code is None:
                if await _is_ready(session, base_url):
                    return
                await asyncio.sleep(_POLL_S)
    except TimeoutError as error:
        raise failed_with_log(f"the gateway was not ready within {timeout_s:g} s", log) from error
    raise failed_with_log(f"the gateway ended with exit status {process.exit_code}", log)


async def _is_ready(session: aiohttp.ClientSession, base_url: str) -> bool:
    import aiohttp

    try:
        async with session.get(f"{base_url}/health") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False
