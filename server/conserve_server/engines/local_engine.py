"""One local engine, kept alive: started, awaited, started again when it dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from conserve_server.core.config import LauncherConfig
from conserve_server.core.errors import EngineStartError
from conserve_server.engines.engine import EngineSpec
from conserve_server.engines.engine_log import log_size, log_tail
from conserve_server.engines.engine_process import EngineProcess, running
from conserve_server.engines.progress import Progress, Report, State
from conserve_server.engines.vllm_command import EngineCommand

POLL_S = 0.25
PROBE_TIMEOUT_S = 5.0
STEADY_S = 600.0
"""An engine that was up for so long has earned its restarts anew."""
LONGEST_BACKOFF_S = 30.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between two progress reports of a start, and before the first restart (doubled each time)."""

    report_s: float = 10.0
    backoff_s: float = 1.0


class LocalEngine:
    """An engine at one address. `ready` is set while it answers; `pid` is None while it does not run."""

    def __init__(
        self,
        spec: EngineSpec,
        command: EngineCommand,
        *,
        model: str,
        log: Path,
        config: LauncherConfig,
        report: Report,
        pace: Pace,
    ) -> None:
        self.spec = spec
        self.ready = asyncio.Event()
        self.pid: int | None = None
        self._command = command
        self._model = model
        self._log = log
        self._config = config
        self._report = report
        self._pace = pace
        self._log_start = 0
        self._since_s = 0.0

    async def keep(self, on_ready: Callable[[], None]) -> EngineStartError:
        """Run the engine, and again at the same address when it dies; the reason why that ended.

        A first start that fails ends it at once. Cancelled, the engine is stopped.
        """
        restarts = 0
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)) as session:
            while True:
                try:
                    died, up_s = await self._run_once(session, on_ready)
                except EngineStartError as error:
                    died, up_s = error, 0.0
                    if restarts == 0:
                        return error
                except Exception as error:  # noqa: BLE001 - the engine was stopped: it is started again
                    died, up_s = self._error(f"could not be kept: {type(error).__name__}: {error}"), 0.0
                restarts = 0 if up_s >= STEADY_S else restarts
                if restarts >= self._config.max_restarts:
                    self._say("failed", f"not started again after {restarts} restarts")
                    return died
                pause_s = min(self._pace.backoff_s * 2**restarts, LONGEST_BACKOFF_S)
                restarts += 1
                self._say("restarting", f"restart {restarts} in {pause_s:.1f} s: {str(died).splitlines()[0]}")
                await asyncio.sleep(pause_s)

    async def _run_once(
        self, session: aiohttp.ClientSession, on_ready: Callable[[], None]
    ) -> tuple[EngineStartError, float]:
        """Run until the engine dies by itself: the reason, and how long it was up."""
        self._log_start, self._since_s = log_size(self._log), time.monotonic()
        stop_s = self._config.stop_timeout_s
        async with running(self._command.argv, self._command.env, self._log, stop_s) as process:
            self.pid = process.pid
            try:
                await self._until_ready(session, process)
                ready_s = time.monotonic()
                self.ready.set()
                on_ready()
                self._say("ready", self.spec.url)
                await process.wait()
                return self._death(process), time.monotonic() - ready_s
            finally:
                self.ready.clear()
                self.pid = None

    async def _until_ready(self, session: aiohttp.ClientSession, process: EngineProcess) -> None:
        said_s = -self._pace.report_s
        while not await self._answers(session):
            if process.exit_code is not None:
                raise self._death(process)
            elapsed_s = time.monotonic() - self._since_s
            if elapsed_s >= self._config.start_timeout_s:
                raise self._error(f"was not ready after {elapsed_s:.0f} s (launcher.start_timeout_s)")
            if elapsed_s - said_s >= self._pace.report_s:
                said_s = elapsed_s
                self._say("starting", "".join(log_tail(self._log, since=self._log_start, lines=1)))
            await asyncio.sleep(POLL_S)

    async def _answers(self, session: aiohttp.ClientSession) -> bool:
        """Whether the engine is healthy and serves our model. A connection refused is its usual no."""
        try:
            async with session.get(f"{self.spec.url}/health") as health:
                if health.status != 200:
                    return False
            async with session.get(f"{self.spec.url}/v1/models") as models:
                document = await models.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False
        return self._model in _model_ids(document)

    def _death(self, process: EngineProcess) -> EngineStartError:
        return self._error(f"ended with exit code {process.exit_code}")

    def _error(self, what: str) -> EngineStartError:
        tail = log_tail(self._log, since=self._log_start)
        return EngineStartError(
            "\n".join((f"engine {self.spec.name} {what}; {self._log} ends with:", *(f"  {t}" for t in tail)))
        )

    def _say(self, state: State, detail: str) -> None:
        self._report(Progress(self.spec.name, state, time.monotonic() - self._since_s, detail))


def _model_ids(document: object) -> list[object]:
    """The models of an answer to `/v1/models`; none where it is something else."""
    models = document.get("data") if isinstance(document, dict) else None
    return [m.get("id") for m in models if isinstance(m, dict)] if isinstance(models, list) else []
