"""Tells engines what only the agent's side knows: a conversation has ended, or waits for a tool.

Everything here is in the background. A turn never waits for a signal, an engine without
the plugin is never sent one, and one that does not answer costs nobody anything.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from conserve_sdk.protocol import ToolEvent
from conserve_server.core.clock import Clock
from conserve_server.core.errors import EngineFailed
from conserve_server.core.kv_config import KvConfig
from conserve_server.engines.conversation_kv import ConversationKv, NoPlugin
from conserve_server.engines.engine import EngineStatus
from conserve_server.scheduling.scheduler import Scheduler
from conserve_server.serving.driving.background import Background, Loop
from conserve_server.serving.kv.line import Batch, KvLine
from conserve_server.serving.records.record import ConversationRecord
from conserve_server.serving.records.tool_times import ToolTimes
from conserve_server.telemetry.metrics import GatewayMetrics

_FIRST_BACKOFF_S: Final = 0.5
_LONGEST_BACKOFF_S: Final = 30.0
_MAX_OPEN_TOOLS: Final = 256
"""Tool calls of one conversation that run at once, as far as they are followed."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Waiting:
    """A conversation in a tool gap: where it is kept, and until when each open call should run."""

    session: str
    decoder: str
    is_kept: bool = False
    open_until_s: dict[str, float] = field(default_factory=dict)


class KvSignals:
    """The signals of all engines. Without `plugins` it takes everything and tells nobody."""

    def __init__(
        self,
        config: KvConfig,
        scheduler: Scheduler,
        clock: Clock,
        metrics: GatewayMetrics,
        plugins: Iterable[ConversationKv] = (),
    ) -> None:
        self._config = config
        self._scheduler = scheduler
        self._clock = clock
        self._metrics = metrics
        is_on = config.sends_releases or config.sends_keeps
        self._is_on = is_on
        self.plugins = {plugin.spec.name: plugin for plugin in plugins} if is_on else {}
        self.lines = {name: KvLine() for name in self.plugins}
        self._loops: dict[str, list[Loop]] = {}
        self._running: tuple[Background, Mapping[str, EngineStatus], float] | None = None
        self._times = ToolTimes(config)
        self._waiting: dict[str, _Waiting] = {}
        self._keys: dict[str, set[str]] = {}

    # -- what happens to conversations -----------------------------------------------------------

    def turn_begins(self, record: ConversationRecord) -> None:
        """A turn came. Where its KV is kept over a tool it stays so until the engine has begun it."""
        identity = record.identity
        self._keys.setdefault(identity.engine_session, set()).add(identity.key)
        for line in self.lines.values():
            line.goes_on(identity.engine_session)
        waiting = self._waiting.pop(identity.key, None)
        if waiting is not None:
            self._keep(identity.key, waiting, self._config.return_keep_s)

    def turn_ended(self, record: ConversationRecord) -> None:
        """A turn is over; if its conversation was ended while it ran, that is told now."""
        if record.ended_as is not None and not record.has_turns:
            self._release(record)

    def conversation_ended(self, record: ConversationRecord) -> None:
        """It is over, unless a turn of it still runs: then at that turn's end."""
        if not record.has_turns:
            self._release(record)

    def tool(self, record: ConversationRecord, event: ToolEvent) -> None:
        """A tool call of the conversation began or ended."""
        identity = record.identity
        if event.kind == "end" and event.duration_s is not None:
            self._times.learn(identity.tenant, event.name, event.duration_s)
        conversation = self._scheduler.find(identity.key)
        decoder = conversation.decoder if conversation is not None else None
        if record.ended_as is not None or decoder is None or decoder not in self.lines:
            return
        waiting = self._waiting.setdefault(identity.key, _Waiting(identity.engine_session, decoder))
        waiting.decoder = decoder
        now_s = self._clock.now_s()
        if event.kind == "end":
            waiting.open_until_s.pop(event.call_id, None)
        elif len(waiting.open_until_s) < _MAX_OPEN_TOOLS:
            waiting.open_until_s[event.call_id] = now_s + self._times.keep_s(identity.tenant, event.name)
        self._drop_protection_beyond_budget(decoder)
        last_s = max(waiting.open_until_s.values(), default=0.0) - now_s
        self._keep(identity.key, waiting, max(last_s, self._config.return_keep_s))
        if not waiting.open_until_s and self._config.sends_keeps and self._config.uses_host_tier:
            self.lines[decoder].fetch(identity.engine_session)

    def _keep(self, key: str, waiting: _Waiting, timeout_s: float) -> None:
        if not self._config.sends_keeps:
            return
        line = self.lines.get(waiting.decoder)
        if line is None:
            return  # the engine has left
        ledger = self._scheduler.pools.ledgers.get(waiting.decoder)
        waiting.is_kept = ledger is not None and key not in ledger.beyond_budget
        if waiting.is_kept:
            line.keep(waiting.session, min(timeout_s, self._config.max_keep_s))
        elif self._can_leave(line, waiting):
            line.offload(waiting.session)
        else:
            line.refresh(waiting.session)

    def _can_leave(self, line: KvLine, waiting: _Waiting) -> bool:
        """Whether others may have its room: the host has a copy, and a tool of it still runs."""
        return line.has_host and self._config.uses_host_tier and bool(waiting.open_until_s)

    def _drop_protection_beyond_budget(self, decoder: str) -> None:
        """Those that came when the decoder's budget was full are the first to lose theirs."""
        ledger = self._scheduler.pools.ledgers.get(decoder)
        if ledger is None or not self._config.sends_keeps:
            return
        for key in ledger.beyond_budget:
            waiting = self._waiting.get(key)
            if waiting is not None and waiting.decoder == decoder and waiting.is_kept:
                waiting.is_kept = False
                line = self.lines[decoder]
                if self._can_leave(line, waiting):
                    line.offload(waiting.session)
                else:
                    line.keep(waiting.session, 0.0)

    def _release(self, record: ConversationRecord) -> None:
        """Tell every engine that served a turn of it: its decoders, and the prefillers."""
        identity = record.identity
        self._waiting.pop(identity.key, None)
        keys = self._keys.get(identity.engine_session, set())
        keys.discard(identity.key)
        if not keys:
            self._keys.pop(identity.engine_session, None)
        if not self._config.sends_releases:
            return
        turns = record.turns.values()
        engines = {*record.decoders, *(turn.prefiller for turn in turns), *(turn.decoder for turn in turns)}
        for name in engines:
            if name in self.lines:
                self.lines[name].release(identity.engine_session)

    # -- the engines -----------------------------------------------------------------------------------

    def start(self, background: Background, statuses: Mapping[str, EngineStatus], interval_s: float) -> None:
        """Tell and watch every engine, those that are added later too, each in loops of its own."""
        self._running = (background, statuses, interval_s)
        for plugin in self.plugins.values():
            self._follow(plugin)

    def add(self, plugin: ConversationKv) -> None:
        """One more engine."""
        if self._is_on:
            self.plugins[plugin.spec.name] = plugin
            self.lines[plugin.spec.name] = KvLine()
            self._follow(plugin)

    def remove(self, name: str) -> None:
        """The engine has left: nothing is told to it any more."""
        for loop in self._loops.pop(name, ()):
            loop.stop()
        for each in (self.plugins, self.lines):
            each.pop(name, None)

    def _follow(self, plugin: ConversationKv) -> None:
        if self._running is None:
            return
        background, statuses, interval_s = self._running
        name = plugin.spec.name
        self._loops[name] = [
            background.keep("kv_signals", lambda: self.tell(plugin), engine=name),
            background.keep("kv_fetches", lambda: self.bring_back(plugin), engine=name),
            background.keep("kv_looks", lambda: self.watch(plugin, statuses, interval_s), engine=name),
        ]

    # -- telling, in the background ------------------------------------------------------------------

    async def tell(self, plugin: ConversationKv) -> None:
        """Carry out one engine's signals for ever, one call at a time."""
        name, line, backoff_s = plugin.spec.name, self.lines[plugin.spec.name], _FIRST_BACKOFF_S
        while True:
            batch = await line.next()
            try:
                await self._send(plugin, batch)
                backoff_s = _FIRST_BACKOFF_S
            except EngineFailed as error:
                log.warning("%s; trying again in %g s", error, backoff_s)
                self._metrics.kv_signals(name, "any", "failed", 1)
                line.put_back(batch)
                await self._clock.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)

    async def _send(self, plugin: ConversationKv, batch: Batch) -> None:
        name = plugin.spec.name
        if batch.releases:
            await plugin.release(batch.releases)
            self._metrics.kv_signals(name, "release", "sent", len(batch.releases))
        if batch.refreshes:
            await plugin.refresh(batch.refreshes)
            self._metrics.kv_signals(name, "refresh", "sent", len(batch.refreshes))
        if batch.offloads:
            await plugin.offload(batch.offloads)
            self._metrics.kv_signals(name, "offload", "sent", len(batch.offloads))
        for timeout_s, sessions in batch.keeps.items():
            await plugin.keep(sessions, timeout_s)
            self._metrics.kv_signals(name, "keep" if timeout_s else "unkeep", "sent", len(sessions))

    async def bring_back(self, plugin: ConversationKv) -> None:
        """Bring conversations back from one engine's host for ever; where that fails their turns do it.

        Beside the other signals, which would wait for it.
        """
        name, line = plugin.spec.name, self.lines[plugin.spec.name]
        while True:
            sessions = await line.next_fetches()
            try:
                fetched = await plugin.fetch(sessions)
            except EngineFailed as error:
                log.debug("%s", error)
                self._metrics.kv_signals(name, "fetch", "failed", len(sessions))
                await self._clock.sleep(_FIRST_BACKOFF_S)
                continue
            self._metrics.kv_signals(name, "fetch", "sent", len(sessions))
            self._metrics.kv_fetched(name, sum(fetched.tokens.values()))
            self._keep_fetched(fetched.tokens)

    def _keep_fetched(self, sessions: Iterable[str]) -> None:
        """What came back stays until its turn, which has not come yet."""
        for key in [key for session in sessions for key in self._keys.get(session, ())]:
            waiting = self._waiting.get(key)
            if waiting is not None:
                self._keep(key, waiting, self._config.return_keep_s)

    async def watch(
        self, plugin: ConversationKv, statuses: Mapping[str, EngineStatus], interval_s: float
    ) -> None:
        """Ask one engine for ever what it can do, whenever it is a new one, and what it still holds."""
        problem: str | None = None
        while True:
            status = statuses.get(plugin.spec.name)
            if status is not None:
                try:
                    await self._look(plugin, status.generation)
                    problem = None
                except EngineFailed as error:
                    self._metrics.kv_signals(plugin.spec.name, "look", "failed", 1)
                    before, problem = problem, str(error)
                    log.log(logging.DEBUG if problem == before else logging.WARNING, "%s", error)
            await self._clock.sleep(interval_s)

    async def _look(self, plugin: ConversationKv, generation: str) -> None:
        name, line = plugin.spec.name, self.lines[plugin.spec.name]
        if line.generation != generation or line.has_plugin is None:
            found = await plugin.capabilities()
            if isinstance(found, NoPlugin):
                log.info("engine %s does not follow conversations: %s", name, found.reason)
                line.found(generation, has_plugin=False)
            else:
                log.info("engine %s follows conversations: %s", name, ", ".join(found.calls))
                line.found(generation, has_plugin=True, block_size=found.block_size, calls=found.calls)
            self._metrics.set_kv_plugin(name, has_it=bool(line.has_plugin))
        elif line.has_plugin:
            resident = await plugin.resident(line.cursor)
            line.cursor = resident.cursor
            held = {
                key: tokens
                for session, tokens in resident.tokens.items()
                for key in self._keys.get(session, ())
            }
            self._scheduler.on_resident(name, held, line.block_size, self._clock.now_s())
