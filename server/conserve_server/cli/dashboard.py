"""Phoenix (arize-phoenix) as a process beside the demo: a dashboard that shows conversations as sessions.

It lives in an environment of its own, because it pins much of what it needs.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from conserve_server.cli.process_log import begin_log, failed_with_log
from conserve_server.core.errors import ConfigError

if TYPE_CHECKING:
    from conserve_server.engines.engine_process import EngineProcess

PYTHON_VARIABLE: Final = "CONSERVE_PHOENIX_PYTHON"
DEFAULT_PYTHON: Final = Path(".venv-phoenix") / "bin" / "python"
PROJECT: Final = "conserve"
"""The Phoenix project that the demo's spans are shown under."""
START_TIMEOUT_S: Final = 180.0
STOP_TIMEOUT_S: Final = 10.0
_LOOK_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Phoenix:
    """A Phoenix that is starting or up, at `base_url`."""

    base_url: str
    process: EngineProcess
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to send its spans here, and to files as well."""
        return {
            "OTEL_TRACES_EXPORTER": "otlp,otlp_json_file",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{self.base_url}/v1/traces",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_HEADERS": "",
            "OTEL_RESOURCE_ATTRIBUTES": f"openinference.project.name={PROJECT}",
        }

    async def ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once it takes spans. Raises ConserveError with the end of its log if it never does."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.process.exit_code is None:
                    if await self._get("/healthz") is not None:
                        return
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise failed_with_log(f"Phoenix was not ready within {timeout_s:g} s", self.log) from error
        raise failed_with_log(f"Phoenix ended with exit status {self.process.exit_code}", self.log)

    async def sessions_url(self) -> str:
        """The page that lists the conversations; the dashboard's first page where that can't be told."""
        project = await self._get(f"/v1/projects/{PROJECT}")
        if project is None:
            return self.base_url
        import json

        return f"{self.base_url}/projects/{json.loads(project)['data']['id']}/sessions"

    async def _get(self, path: str) -> bytes | None:
        import aiohttp

        limit = aiohttp.ClientTimeout(total=_LOOK_TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=limit) as session,
                session.get(self.base_url + path) as response,
            ):
                return await response.read() if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError):
            return None


def phoenix_python(environment: Mapping[str, str] = os.environ) -> Path:
    """The Python that can run Phoenix. Raises ConfigError with the fix where there is none."""
    named = environment.get(PYTHON_VARIABLE)
    python = Path(named) if named else DEFAULT_PYTHON
    if python.exists():
        return python.absolute()
    if named is None and importlib.util.find_spec("phoenix") is not None:
        return Path(sys.executable)
    raise ConfigError(
        f"no Phoenix at {python}: run `make phoenix-env` in a checkout, or install arize-phoenix into "
        f"an environment of its own and name its Python in {PYTHON_VARIABLE}"
    )


@asynccontextmanager
async def running_phoenix(python: Path, folder: Path, log: Path) -> AsyncIterator[Phoenix]:
    """A Phoenix that has been started, on a free port of this machine; it ends with the block.

    Its database is kept in `folder`, so that the sessions of earlier runs stay.
    """
    from conserve_server.engines.engine_process import running
    from conserve_server.engines.ports import hold_port

    argv = (str(python), "-m", "phoenix.server.main", "serve")
    begin_log(log, argv)
    with ExitStack() as held:
        port, grpc_port = hold_port(held, "127.0.0.1"), hold_port(held, "127.0.0.1")
        environment = _environment(folder, port, grpc_port)
        async with running(argv, environment, log, STOP_TIMEOUT_S) as process:
            yield Phoenix(f"http://127.0.0.1:{port}", process, log)


def _environment(folder: Path, port: int, grpc_port: int) -> dict[str, str]:
    """Phoenix's own settings. Its gRPC port listens on all interfaces whatever its host is set to."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(grpc_port),
        "PHOENIX_WORKING_DIR": str(folder.absolute()),
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
    }
