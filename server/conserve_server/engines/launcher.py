"""A pool of local engines: started together, kept alive, stopped together."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from conserve_server.core.config import Config
from conserve_server.core.errors import ConfigError, EngineStartError
from conserve_server.engines.engine import EngineSpec, pool_of
from conserve_server.engines.local_engine import LocalEngine, Pace
from conserve_server.engines.models import prepare_model
from conserve_server.engines.pool_record import claimed, write_record
from conserve_server.engines.progress import Progress, Report, ignore
from conserve_server.engines.slots import engine_slots, usable_cores
from conserve_server.engines.vllm_command import (
    HOST,
    EngineCommand,
    Slot,
    emulated_command,
    vllm_command,
)
from conserve_server.engines.vllm_environment import find_vllm
from conserve_server.engines.warm_up import warm_up

CommandOf = Callable[[Slot], EngineCommand]


class LocalPool:
    """The configuration's local engines, all of them ready inside `async with`, none left after it.

    Entering takes minutes with real engines; `report` hears of the progress meanwhile. It
    raises ConfigError, or EngineStartError if one engine does not come up (then all are
    stopped). `first_port`: engines listen there and on the ports after it, not on free ones.
    """

    def __init__(
        self,
        config: Config,
        *,
        report: Report = ignore,
        first_port: int | None = None,
        pace: Pace | None = None,
    ) -> None:
        if not config.is_local:
            raise ConfigError("pools.decode.count must be at least 1 to start local engines, got 0")
        self._config = config
        self._report = report
        self._first_port = first_port
        self._pace = pace or Pace()
        self._engines: tuple[LocalEngine, ...] = ()
        self._keepers: tuple[asyncio.Task[EngineStartError], ...] = ()
        self._stack = AsyncExitStack()
        self._is_on_gpus = False

    @property
    def specs(self) -> tuple[EngineSpec, ...]:
        """The engines, prefillers first. Addresses stay the same through restarts."""
        return tuple(engine.spec for engine in self._engines)

    @property
    def pids(self) -> dict[str, int]:
        """The engines' processes by name, those that run now."""
        return {engine.spec.name: engine.pid for engine in self._engines if engine.pid is not None}

    async def wait_failed(self) -> EngineStartError:
        """Return why, once an engine can't be kept alive; the other engines still run."""
        done, _ = await asyncio.wait(self._keepers, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def _start(self, stack: AsyncExitStack) -> None:
        run_dir = stack.enter_context(claimed(self._config))
        command_of = await self._command_of()
        held = stack.enter_context(ExitStack())
        slots = engine_slots(
            self._config,
            held,
            cores=usable_cores(),
            visible_gpus=os.environ.get("CUDA_VISIBLE_DEVICES"),
            first_port=self._first_port,
        )
        self._engines = tuple(self._engine(slot, command_of(slot), run_dir) for slot in slots)
        await stack.enter_async_context(self._kept())
        await self._until_ready()
        await self._warm_up()
        self._write_record()

    async def _command_of(self) -> CommandOf:
        """How each slot's engine is started; a model that needs it is prepared first."""
        config, launcher = self._config, self._config.launcher
        python = launcher.python or sys.executable
        if launcher.engine == "emulated":
            return lambda slot: emulated_command(config, slot, python=sys.executable)
        found = await find_vllm(python, needs_transfer=config.pools.prefill.count > 0)
        device = found.device if launcher.device == "auto" else launcher.device
        self._is_on_gpus = device == "cuda"
        self._report(Progress("vllm", "ready", 0.0, f"{found.version} for {device}, {found.python}"))
        model = await prepare_model(config.model, python=found.python, report=self._report)
        return lambda slot: vllm_command(
            config, slot, model, python=found.python, device=device, has_plugin=found.has_plugin
        )

    def _engine(self, slot: Slot, command: EngineCommand, run_dir: Path) -> LocalEngine:
        log = run_dir / "logs" / f"{slot.name}.log"
        log.write_text(f"$ {' '.join(command.argv)}\n")
        gpus = tuple(gpu.strip() for gpu in slot.gpus.split(",")) if self._is_on_gpus else ()
        tier = pool_of(self._config, slot.role).tier_at(slot.index)
        return LocalEngine(
            EngineSpec(slot.name, slot.role, f"http://{HOST}:{slot.port}", gpus, tier),
            command,
            model=self._config.model,
            log=log,
            config=self._config.launcher,
            report=self._report,
            pace=self._pace,
        )

    @asynccontextmanager
    async def _kept(self) -> AsyncIterator[None]:
        """Keep every engine alive inside; all are stopped, at once, on the way out."""
        self._keepers = tuple(asyncio.create_task(e.keep(self._write_record)) for e in self._engines)
        try:
            yield
        finally:
            for keeper in self._keepers:
                keeper.cancel()
            await asyncio.wait(self._keepers)

    async def _until_ready(self) -> None:
        """Return once every engine is ready. Raises the EngineStartError of the first that fails."""
        outcomes: list[asyncio.Task[EngineStartError | None]] = [
            asyncio.create_task(self.wait_failed()),
            asyncio.create_task(self._all_ready()),
        ]
        try:
            done, _ = await asyncio.wait(outcomes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for outcome in outcomes:
                outcome.cancel()
        for outcome in done:
            if error := outcome.result():
                raise error

    async def _all_ready(self) -> None:
        for engine in self._engines:
            await engine.ready.wait()

    async def _warm_up(self) -> None:
        launcher = self._config.launcher
        if launcher.engine == "emulated" or not launcher.warm_up:
            return
        started_s = time.monotonic()
        problems = await warm_up(self.specs, model=self._config.model)
        took_s = time.monotonic() - started_s
        for problem in problems:
            self._report(Progress("warm-up", "failed", took_s, f"{problem}; its first turn will wait longer"))
        if not problems:
            self._report(Progress("warm-up", "ready", took_s, "handshakes and first steps are done"))

    def _write_record(self) -> None:
        """Once all are ready, and again when one is ready after a restart."""
        if not all(engine.ready.is_set() for engine in self._engines):
            return
        try:
            write_record(self._config, self.specs, self.pids)
        except OSError as error:  # A full disk is no reason to stop an engine
            detail = f"{error}; `conserve serve` may not find these engines"
            self._report(Progress("record", "failed", 0.0, detail))
