"""What the gateway remembers of conversations, for their reports: turns, tools, times.

Bindings and reservations are the scheduler's; nothing here decides anything.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Protocol

from opentelemetry.trace import SpanContext

from conserve_sdk.protocol import (
    ConversationReport,
    ConversationTotals,
    Path,
    RebindCause,
    RunningTurn,
    ToolEvent,
    ToolReport,
    TurnReport,
)
from conserve_server.core.errors import InvalidRequest
from conserve_server.energy.accounts import ConversationAccount, Factors, TurnAccount
from conserve_server.serving.asked.identity import DEFAULT_TENANT, Identity
from conserve_server.telemetry.summary import TurnSums

MAX_TOOLS = 10_000
"""Tool calls kept for one conversation: a few MB at most."""
MAX_TURNS = 1_000
"""Reports of turns, the latest, that are kept for one conversation: one may go on for months."""
MAX_LINKS = 128
"""Turns, the latest, that a conversation's summary links to: OpenTelemetry's own limit for a span."""
ENDED = "ended"
EXPIRED = "expired"
NO_FACTORS = Factors()


class Running(Protocol):
    """A turn that has not ended."""

    def running(self) -> RunningTurn:
        """What it is doing."""
        ...


@dataclass(slots=True)
class ConversationRecord:
    """One conversation as observed. `gap_s` is the time so far in which none of its turns ran."""

    identity: Identity
    first_arrival_s: float
    is_emulated: bool = False
    ended_as: str | None = None
    is_summed_up: bool = False
    """Whether its summary was told since it ended."""
    kv_transfers: int = 0
    rebinds: list[RebindCause] = field(default_factory=list)
    turns_begun: int = 0
    last_turn_s: float = 0.0
    turns: dict[int, TurnReport] = field(default_factory=dict)
    """Of the turns that ended last; `sums` are of all."""
    sums: TurnSums = field(default_factory=TurnSums)
    running: dict[int, Running] = field(default_factory=dict)
    tools: dict[str, ToolReport] = field(default_factory=dict)
    decoders: list[str] = field(default_factory=list)
    turn_spans: deque[SpanContext] = field(default_factory=lambda: deque(maxlen=MAX_LINKS))
    ttfet_s: float | None = None
    gap_s: float = 0.0
    energy: ConversationAccount = field(init=False)
    turn_accounts: dict[int, TurnAccount] = field(default_factory=dict)
    _running: set[int] = field(default_factory=set)
    _last_end_s: float | None = None
    _last_effective_turn: int = 0

    def __post_init__(self) -> None:
        self.energy = ConversationAccount(self.identity.tenant, self.identity.model)

    @property
    def has_turns(self) -> bool:
        """Whether one of its turns is running."""
        return bool(self._running)

    @property
    def last_end_s(self) -> float | None:
        """When the turn ended that ended last."""
        return self._last_end_s

    def begin_turn(self, now_s: float) -> int:
        """Count a turn in; its number, from 1."""
        if not self._running and self._last_end_s is not None:
            self.gap_s += now_s - self._last_end_s
        self.last_turn_s = now_s
        self.turns_begun += 1
        self._running.add(self.turns_begun)
        return self.turns_begun

    def bind(self, path: Path, decoder: str, rebind: RebindCause | None = None) -> None:
        """A decoder answered a turn that placed this conversation, or that moved KV to it."""
        if rebind is not None:
            self.rebinds.append(rebind)
        self.kv_transfers += path.moves_kv
        if not self.decoders or self.decoders[-1] != decoder:
            self.decoders.append(decoder)

    def end_turn(self, index: int, now_s: float) -> None:
        """Count a turn out; nothing for one that was never counted in."""
        self.running.pop(index, None)
        if index in self._running:
            self._running.discard(index)
            self._last_end_s = now_s

    def keep_turn(self, report: TurnReport, first_token_s: float | None, gap_s: float) -> None:
        """Keep what became of a turn. `gap_s`: the conversation's gaps up to this turn's arrival."""
        self.sums.add(report)
        self.turns[report.index] = report
        for kept in (self.turns, self.turn_accounts):
            while len(kept) > MAX_TURNS:
                del kept[next(iter(kept))]
        if first_token_s is not None and report.index > self._last_effective_turn:
            self._last_effective_turn = report.index
            self.ttfet_s = first_token_s - self.first_arrival_s - gap_s

    @property
    def has_open_tool(self) -> bool:
        """Whether a tool call has begun, and no end of it was told."""
        return any(tool.duration_s is None for tool in reversed(self.tools.values()))

    def note_tool(self, event: ToolEvent) -> None:
        """Note a tool boundary; an end without its start, or a late one, counts all the same."""
        is_known = event.call_id in self.tools
        if event.kind == "start" and is_known:
            return
        if not is_known and len(self.tools) >= MAX_TOOLS:
            raise InvalidRequest(
                f"conversation {self.identity.conversation_id!r} has {MAX_TOOLS} tool calls already, "
                "more are not kept: end it and go on in another",
                code="too_many_tools",
            )
        self.tools[event.call_id] = ToolReport(event.call_id, event.name, event.duration_s, event.outcome)

    def _turn_report(self, index: int, factors: Factors) -> TurnReport:
        account = self.turn_accounts.get(index)
        return (
            self.turns[index]
            if account is None
            else replace(self.turns[index], energy=account.report(factors))
        )

    def report(
        self,
        *,
        state: str,
        reserved_kv_tokens: int,
        children: tuple[str, ...] = (),
        with_branches: ConversationTotals | None = None,
        factors: Factors = NO_FACTORS,
    ) -> ConversationReport:
        """The report, with what only the scheduler and the log know. Joules are those known by now."""
        return ConversationReport(
            id=self.identity.conversation_id,
            state=self.ended_as or state,
            tenant=None if self.identity.tenant == DEFAULT_TENANT else self.identity.tenant,
            synthetic=self.identity.is_synthetic,
            agent=self.identity.agent,
            parent_id=self.identity.parent_id,
            children=children,
            with_branches=with_branches,
            model=self.identity.model,
            decoder=self.decoders[-1] if self.decoders else None,
            decoders=tuple(dict.fromkeys(self.decoders)),
            kv_transfers=self.kv_transfers,
            rebinds=tuple(self.rebinds),
            reserved_kv_tokens=reserved_kv_tokens,
            ttfet_s=self.ttfet_s,
            emulated=self.is_emulated or (with_branches is not None and with_branches.emulated),
            energy=self.energy.report(factors),
            turns_forgotten=self.sums.turns - len(self.turns),
            turns=tuple(self._turn_report(i, factors) for i in sorted(self.turns)),
            tools=tuple(self.tools.values()),
        )
