"""What happens now, for those who watch: engines, and the conversations with the latest turns.

Nothing is gathered for watchers: each looks at what the gateway knows anyway, at its own pace, and
is told what has changed since it looked last. So nobody's turn pays for a watcher, a slow watcher
gets fewer and larger updates, and no queue can fill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from conserve_sdk.protocol import ConversationUpdate, EngineReport, RunningTurn, Update
from conserve_server.core.clock import Clock
from conserve_server.scheduling.ledger import UNBOUNDED
from conserve_server.scheduling.scheduler import Scheduler
from conserve_server.serving.cluster.cluster import Cluster
from conserve_server.serving.records.conversation_log import ConversationLog
from conserve_server.serving.records.record import ConversationRecord

Name = tuple[str | None, str, str | None]


@dataclass(frozen=True, slots=True)
class Scope:
    """What one watcher may see and wants to: at most `limit` conversations, or one."""

    tenants: Sequence[str]
    limit: int
    sees_engines: bool
    conversation_id: str | None = None


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a watcher was told of a conversation: as much as changes whenever its report does."""

    state: str
    reserved_kv_tokens: int
    turn_count: int
    tool_count: int
    kv_transfers: int
    running: tuple[RunningTurn, ...]


class LiveView:
    """Everything that a watcher may look at."""

    def __init__(self, log: ConversationLog, scheduler: Scheduler, cluster: Cluster, clock: Clock) -> None:
        self.log = log
        self.scheduler = scheduler
        self.cluster = cluster
        self.clock = clock

    def records(self, scope: Scope) -> list[ConversationRecord]:
        """The conversations in that scope, latest first."""
        if scope.conversation_id is not None:
            return self.log.find(scope.tenants, scope.conversation_id)
        return self.log.recent(scope.tenants, scope.limit)

    def seen(self, record: ConversationRecord) -> _Seen:
        """The conversation at a glance."""
        key = record.identity.key
        live = self.scheduler.find(key)
        return _Seen(
            state=record.ended_as or (live.state if live else "new"),
            reserved_kv_tokens=self.scheduler.reserved_tokens(key),
            turn_count=record.sums.turns,
            tool_count=len(record.tools),
            kv_transfers=record.kv_transfers,
            running=tuple(turn.running() for turn in record.running.values()),
        )

    def engines(self) -> tuple[EngineReport, ...]:
        """Every configured engine."""
        return tuple(self._engine(engine.spec.name, engine.spec.role) for engine in self.cluster.engines)

    def _engine(self, name: str, role: str) -> EngineReport:
        status, ledger = self.cluster.statuses.get(name), self.scheduler.pools.ledgers.get(name)
        if status is None:
            return EngineReport(name, role, up=False)
        budget = ledger.budget_tokens if ledger is not None else None
        return EngineReport(
            name=name,
            role=role,
            up=True,
            emulated=status.emulated,
            running=status.running,
            waiting=status.waiting,
            kv_usage=status.kv_usage,
            kv_capacity_tokens=status.kv_capacity_tokens,
            kv_budget_tokens=None if budget == UNBOUNDED else budget,
            kv_reserved_tokens=ledger.reserved_tokens if ledger is not None else None,
            conversations=len(ledger.conversations) if ledger is not None else 0,
        )


class Watcher:
    """One who watches: knows what it was told, and takes what is new."""

    def __init__(self, view: LiveView, scope: Scope) -> None:
        self._view = view
        self._scope = scope
        self._seen: dict[Name, _Seen] = {}
        self._told: dict[Name, set[int]] = {}
        self._engines: tuple[EngineReport, ...] | None = None
        self._waiting = -1

    def look(self) -> Update | None:
        """What has changed since the last look; None where nothing did."""
        records = {_name(record): record for record in self._view.records(self._scope)}
        changed = tuple(
            update for name, record in records.items() if (update := self._changed(name, record)) is not None
        )
        gone = tuple(name for name in self._seen if name not in records)
        for name in gone:
            del self._seen[name], self._told[name]
        engines, waiting = self._new_engines(), self._view.scheduler.waiting_turns
        if not (changed or gone) and engines is None and waiting == self._waiting:
            return None
        self._waiting = waiting
        return Update(
            now_s=self._view.clock.now_s(),
            waiting_turns=waiting if self._scope.sees_engines else 0,
            engines=engines,
            conversations=changed,
            gone=gone,
        )

    def _new_engines(self) -> tuple[EngineReport, ...] | None:
        if not self._scope.sees_engines:
            return None
        engines = self._view.engines()
        if engines == self._engines:
            return None
        self._engines = engines
        return engines

    def _changed(self, name: Name, record: ConversationRecord) -> ConversationUpdate | None:
        before, seen = self._seen.get(name), self._view.seen(record)
        if seen == before:
            return None
        self._seen[name] = seen
        told = self._told.setdefault(name, set())
        whole = record.report(state=seen.state, reserved_kv_tokens=seen.reserved_kv_tokens)
        turns = tuple(turn for turn in whole.turns if turn.index not in told)
        told.intersection_update(turn.index for turn in whole.turns)  # what is forgotten does not come again
        told.update(turn.index for turn in turns)
        report = replace(whole, turns=turns, tools=())
        return ConversationUpdate(record.first_arrival_s, report, seen.running, seen.tool_count)


def _name(record: ConversationRecord) -> Name:
    identity = record.identity
    return identity.tenant, identity.conversation_id, identity.model
