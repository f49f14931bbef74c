"""The engines as the gateway sees them: which are up, what they last said, who watches them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from conserve_server.core.clock import Clock
from conserve_server.core.errors import EngineFailed
from conserve_server.engines.engine import Engine, EngineStatus, Role
from conserve_server.scheduling.engine_state import EngineProfile
from conserve_server.serving.cluster.cutoff import Cutoff
from conserve_server.serving.driving.background import Background, Loop
from conserve_server.serving.driving.coordinator import Coordinator
from conserve_server.telemetry.metrics import GatewayMetrics

FAILED_LOOKS = 3
"""Looks in a row that must fail before an engine counts as down: one slow answer is no death."""
DOUBT_LIMIT_S = 3.0
"""Longest wait for that: looks that hang take longer."""
MAX_DOUBTED = 64
"""Engines that are looked at because another one is lost: a bounded burst."""
DOUBTED_INTERVAL_S = 0.1
"""Time between looks at an engine that failed a leg, until they have said whether it is up."""

log = logging.getLogger(__name__)


def ignore(_engine: str) -> None:
    """Hear of a lost engine and do nothing."""


class Cluster:
    """Every configured engine by name, with its latest status while it is up."""

    def __init__(
        self,
        engines: Iterable[Engine],
        coordinator: Coordinator,
        metrics: GatewayMetrics,
        *,
        on_removed: Callable[[str], None] | None = None,
        on_lost: Callable[[str], None] = ignore,
        doubt_limit_s: float = DOUBT_LIMIT_S,
    ) -> None:
        self._engines = {engine.spec.name: engine for engine in engines}
        self._coordinator = coordinator
        coordinator.why_no_decoder = self.why_no_decoder
        coordinator.longest_of = self.longest_of
        self._metrics = metrics
        self._on_removed = on_removed
        self._on_lost = on_lost
        self._doubt_limit_s = doubt_limit_s
        self._failures: dict[str, int] = dict.fromkeys(self._engines, 0)
        self._legs: dict[str, set[Cutoff[Engine]]] = {name: set() for name in self._engines}
        self._doubts: dict[str, asyncio.Event] = {name: asyncio.Event() for name in self._engines}
        self._watching: tuple[Background, Clock, float] | None = None
        self._watches: dict[str, Loop] = {}
        self.reasons: dict[str, str] = {}
        """Why each engine is not up, where a look has said so."""
        self.statuses: dict[str, EngineStatus] = {}
        """The last look at each engine that is up."""
        self.models: Mapping[str, EngineStatus] = {}
        """The served models, each with a decode engine's status that names it."""

    def engine(self, name: str) -> Engine:
        return self._engines[name]

    def leg(self, name: str) -> Cutoff[Engine]:
        """The engine for one leg's block. It raises EngineFailed once the engine is found down or restarted.

        A connection to a machine that has lost its power tells nothing for minutes.
        """
        engine = self._engines.get(name)
        if engine is None:
            raise EngineFailed(f"engine {name} has left", code="engine_lost", engine=name)

        def went_down() -> EngineFailed:
            return EngineFailed(f"engine {name} went down", code="engine_lost", engine=name)

        return Cutoff(engine, self._legs[name], went_down)

    def doubt(self, name: str) -> None:
        """The engine failed a leg: look at it at once, and often until it is known to be up or down."""
        if name in self._doubts:
            self._doubts[name].set()

    def doubt_role_of(self, name: str) -> None:
        """Look at the engines that do what this one does, too: what ended it may have ended others."""
        if name in self._engines:
            for engine in self.engines_of(self._engines[name].spec.role)[:MAX_DOUBTED]:
                self.doubt(engine.spec.name)

    async def survived(self, name: str, generation: str | None) -> bool:
        """Whether an engine that failed a leg is still the process that it was; waits until a look knows."""
        doubt = self._doubts.get(name)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._doubt_limit_s):
                while doubt is not None and doubt.is_set():  # noqa: ASYNC110 - looks clear it
                    await asyncio.sleep(DOUBTED_INTERVAL_S / 2)
        status = self.statuses.get(name)
        return generation is not None and status is not None and status.generation == generation

    def knows(self, name: str) -> bool:
        return name in self._engines

    def has_legs(self, name: str) -> bool:
        """Whether a leg runs on the engine."""
        return bool(self._legs[name])

    def describe(self, name: str) -> dict[str, Any]:
        """The engine as JSON: who it is and, while it is up, what it said last."""
        spec, status = self._engines[name].spec, self.statuses.get(name)
        seen = {"name": name, "role": spec.role, "url": spec.url, "up": status is not None}
        if status is None:
            return seen | ({"reason": self.reasons[name]} if name in self.reasons else {})
        return seen | {
            "models": status.models,
            "running": status.running,
            "waiting": status.waiting,
            "kv_usage": status.kv_usage,
            "kv_capacity_tokens": status.kv_capacity_tokens,
            "emulated": status.emulated,
        }

    # -- coming and going ------------------------------------------------------------------------

    def start(self, background: Background, clock: Clock, interval_s: float) -> None:
        """Watch every engine, those that are added later too, each in a loop of its own."""
        self._watching = (background, clock, interval_s)
        for engine in self.engines:
            self._start_watch(engine)

    def add(self, engine: Engine, profile: EngineProfile) -> None:
        """One more engine, which serves once a look has seen it."""
        name = engine.spec.name
        self._engines[name] = engine
        self._failures[name], self._legs[name], self._doubts[name] = 0, set(), asyncio.Event()
        self._coordinator.engine_added(profile)
        self._start_watch(engine)

    def remove(self, name: str) -> None:
        """Forget the engine, on which nothing runs any more."""
        self._watches.pop(name).stop()
        self._coordinator.engine_removed(name)
        self.statuses.pop(name, None)
        self._metrics.forget_engine(name, self._engines[name].spec.role)
        for each in (self._engines, self._failures, self._legs, self._doubts):
            del each[name]
        self.reasons.pop(name, None)
        if self._on_removed is not None:
            self._on_removed(name)

    def _start_watch(self, engine: Engine) -> None:
        if self._watching is None:
            raise RuntimeError("engines are watched once the cluster was started")
        background, clock, interval_s = self._watching
        name = engine.spec.name
        self._watches[name] = background.keep(
            "engine_looks", lambda: self.watch(engine, clock, interval_s), engine=name
        )

    def engines_of(self, role: Role) -> tuple[Engine, ...]:
        return tuple(engine for engine in self.engines if engine.spec.role is role)

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
            except Exception as error:  # a look that breaks is none: the engine must not stay up by it
                self._missed(engine, error)
                raise
            else:
                self._seen(engine, status)
            await self._pause(engine.spec.name, clock, interval_s)

    async def _pause(self, name: str, clock: Clock, interval_s: float) -> None:
        """Until the next look."""
        doubt = self._doubts[name]
        if doubt.is_set() and name in self.statuses:
            await clock.sleep(min(interval_s, DOUBTED_INTERVAL_S))
            return
        waits = {asyncio.ensure_future(clock.sleep(interval_s)), asyncio.ensure_future(doubt.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    def _seen(self, engine: Engine, status: EngineStatus) -> None:
        name = engine.spec.name
        self._failures[name] = 0
        self._doubts[name].clear()
        before = self.statuses.get(name)
        self.reasons.pop(name, None)
        if before is None:
            log.info("engine %s is up at %s", name, engine.spec.url)
        elif before.generation != status.generation:
            log.warning("engine %s was restarted: its conversations are placed anew", name)
            self._lost(name)
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

    def _missed(self, engine: Engine, error: Exception) -> None:
        name = engine.spec.name
        self._failures[name] += 1
        if name in self.statuses and self._failures[name] >= FAILED_LOOKS:
            log.warning("engine %s is down: %s", name, error)
            self.reasons[name] = str(error)
            del self.statuses[name]
            self._list_models()
            self._lost(name)
        if name not in self.statuses:
            self._say_why(name, error)
            self._doubts[name].clear()
            self._metrics.set_engine(name, engine.spec.role, is_up=False)

    def _say_why(self, name: str, error: Exception) -> None:
        """Each new reason once: an engine that does not come up is looked at every second."""
        if self.reasons.get(name) != (why := str(error)):
            self.reasons[name] = why
            log.warning("engine %s is not up, at %s: %s", name, self._engines[name].spec.url, why)

    def longest_of(self, model: str) -> int | None:
        """The longest prompt that the model takes, as an engine says; None where none has."""
        status = self.models.get(model)
        return status.max_model_len if status is not None else None

    def why_no_decoder(self) -> str:
        """Why no decode engine is up: what the first one says of itself, and how many others there are."""
        decoders = [engine.spec for engine in self.engines_of(Role.DECODE)]
        if not decoders:
            return "no decode engine is listed"
        first = decoders[0]
        why = self.reasons.get(first.name, "it has not been looked at yet")
        more = f" (and {len(decoders) - 1} more, see /health)" if len(decoders) > 1 else ""
        return f"{first.name} at {first.url}: {why}{more}"

    def _lost(self, name: str) -> None:
        """What the engine held is gone. The scheduler is told first: it places what breaks now."""
        self._coordinator.engine_down(name)
        self._on_lost(name)
        for leg in self._legs[name]:
            leg.cut()
