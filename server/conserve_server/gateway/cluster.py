"""The engines as the gateway sees them: which are up, what they last said, who watches them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from conserve_server.core.clock import Clock
from conserve_server.core.errors import EngineFailed
from conserve_server.engines.engine import Engine, EngineStatus, Role
from conserve_server.gateway.coordinator import Coordinator
from conserve_server.telemetry.metrics import GatewayMetrics

FAILED_LOOKS = 3
"""Looks in a row that must fail before an engine counts as down: one slow answer is no death."""

log = logging.getLogger(__name__)


class Cluster:
    """Every configured engine by name, with its latest status while it is up."""

    def __init__(self, engines: Iterable[Engine], coordinator: Coordinator, metrics: GatewayMetrics) -> None:
        self._engines = {engine.spec.name: engine for engine in engines}
        self._coordinator = coordinator
        self._metrics = metrics
        self._failures: dict[str, int] = dict.fromkeys(self._engines, 0)
        self.statuses: dict[str, EngineStatus] = {}
        """The last look at each engine that is up."""
        self.models: Mapping[str, EngineStatus] = {}
        """The served models, each with a decode engine's status that names it."""

    def engine(self, name: str) -> Engine:
        return self._engines[name]

    @property
    def engines(self) -> tuple[Engine, ...]:
        return tuple(self._engines.values())

    @property
    def can_serve(self) -> bool:
        """Whether a decode engine is up."""
        return any(self._engines[name].spec.role is Role.DECODE for name in self.statuses)

    async def watch(self, engine: Engine, clock: Clock, interval_s: float) -> None:
        """Look at one engine for ever, and tell the scheduler when it comes, goes or was replaced."""
        while True:
            try:
                status = await engine.look()
            except EngineFailed as error:
                self._missed(engine, error)
            else:
                self._seen(engine, status)
            await clock.sleep(interval_s)

    def _seen(self, engine: Engine, status: EngineStatus) -> None:
        name = engine.spec.name
        self._failures[name] = 0
        before = self.statuses.get(name)
        if before is None:
            log.info("engine %s is up at %s", name, engine.spec.url)
        elif before.generation != status.generation:
            log.warning("engine %s was restarted: its conversations are placed anew", name)
            self._coordinator.engine_down(name)
        self.statuses[name] = status
        self._list_models()
        self._metrics.set_engine(name, engine.spec.role, is_up=True)
        self._coordinator.engine_up(name, status.kv_capacity_tokens)
        self._coordinator.engine_observed(
            name, kv_usage=status.kv_usage, running=status.running, waiting=status.waiting
        )

    def _list_models(self) -> None:
        decoders = (s for n, s in self.statuses.items() if self._engines[n].spec.role is Role.DECODE)
        self.models = {model: status for status in decoders for model in status.models}

    def _missed(self, engine: Engine, error: EngineFailed) -> None:
        name = engine.spec.name
        self._failures[name] += 1
        if name in self.statuses and self._failures[name] >= FAILED_LOOKS:
            log.warning("engine %s is down: %s", name, error)
            del self.statuses[name]
            self._list_models()
            self._coordinator.engine_down(name)
        if name not in self.statuses:
            self._metrics.set_engine(name, engine.spec.role, is_up=False)
