"""The books of turns, one small class each: what a turn's begin, legs, answer and end mean to whom."""

from __future__ import annotations

from collections.abc import Sequence

from conserve_sdk.protocol import Outcome, Path
from conserve_server.engines.engine import PrefillAnswer
from conserve_server.serving.conversations import Conversations
from conserve_server.serving.driving.coordinator import Coordinator
from conserve_server.serving.kv.signals import KvSignals
from conserve_server.serving.recognition.recognition import Recognition
from conserve_server.serving.turns.books import Ended, TurnBook
from conserve_server.serving.turns.energy_books import GatewayEnergy
from conserve_server.serving.turns.live import LiveTurn, first_attributes, span_attributes
from conserve_server.telemetry import names
from conserve_server.telemetry.metrics import GatewayMetrics
from conserve_server.telemetry.spans import TurnTraces


def bookkeepers(
    coordinator: Coordinator,
    conversations: Conversations,
    energy: GatewayEnergy,
    traces: TurnTraces,
    metrics: GatewayMetrics,
) -> Sequence[TurnBook]:
    """All of them, in the order in which they are told: the scheduler first, for others wait for it."""
    return (
        SchedulerBook(coordinator),
        RecordBook(),
        EnergyBook(energy),
        TraceBook(traces, metrics),
        MetricsBook(metrics),
        SignalsBook(conversations.signals),
        RecognitionBook(conversations.recognition),
        ConversationsBook(conversations),
    )


class SchedulerBook(TurnBook):
    """Queue, placements, reservations and bindings."""

    name = "scheduler"

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def begins(self, live: LiveTurn) -> None:
        self._coordinator.arrive(live.turn)

    def answered(self, live: LiveTurn, _now_s: float) -> None:
        self._coordinator.first_token(live.turn, was_seen=live.request.is_streamed)

    def counted(self, live: LiveTurn) -> None:
        if live.usage is not None:
            self._coordinator.estimate.learn(live.kind, live.request.size, live.usage.prompt_tokens)
        if live.later_tokens:
            self._coordinator.tokens(live.turn, live.later_tokens)

    def ends(self, live: LiveTurn, _ended: Ended) -> None:
        usage = live.usage
        self._coordinator.ended(
            live.turn,
            live.kv_tokens,
            output_tokens=usage.completion_tokens if usage else None,
            cached_tokens=usage.cached_tokens if usage else None,
        )


class RecordBook(TurnBook):
    """The conversation's record, which reports and the live view are made of."""

    name = "record"

    def begins(self, live: LiveTurn) -> None:
        record = live.record
        live.index = record.begin_turn(live.arrived_s)
        live.gap_s = record.gap_s
        record.running[live.index] = live

    def answered(self, live: LiveTurn, _now_s: float) -> None:
        placement = live.placement
        if placement is not None and placement.path is not Path.PINNED:
            live.record.bind(placement.path, placement.decoder, live.rebind)

    def ends(self, live: LiveTurn, ended: Ended) -> None:
        live.record.end_turn(live.index, ended.now_s)
        live.record.keep_turn(ended.report, live.first_token_s, live.gap_s)


class EnergyBook(TurnBook):
    """The turn's account of joules: its legs, and the KV that it leaves."""

    name = "energy"

    def __init__(self, energy: GatewayEnergy) -> None:
        self._energy = energy

    def begins(self, live: LiveTurn) -> None:
        live.energy = self._energy.turn_began(live.record.energy, live.arrived_s)
        live.record.turn_accounts[live.index] = live.energy.account

    def prefill_starts(self, live: LiveTurn, now_s: float) -> None:
        if live.energy is not None and live.placement is not None and live.placement.prefiller is not None:
            live.energy.prefill_starts(live.placement.prefiller, live.turn.prompt_tokens, now_s)

    def prefill_ends(self, live: LiveTurn, now_s: float, answer: PrefillAnswer | None) -> None:
        if live.energy is not None and answer is None:
            live.energy.prefill_ends(now_s)
        elif live.energy is not None and answer is not None:
            live.energy.prefill_ends(now_s, answer.prompt_tokens, answer.cached_tokens)

    def decode_starts(self, live: LiveTurn, now_s: float, moves_kv: bool) -> None:
        if live.energy is not None and live.placement is not None:
            live.energy.decode_starts(
                live.placement.decoder,
                live.turn.prompt_tokens,
                now_s,
                moves_kv=moves_kv,
                is_streamed=live.request.is_streamed,
            )

    def answered(self, live: LiveTurn, now_s: float) -> None:
        if live.energy is not None:
            live.energy.first_token(now_s)

    def ends(self, live: LiveTurn, ended: Ended) -> None:
        self._energy.turn_ended(live, ended.now_s)


class TraceBook(TurnBook):
    """The turn's spans, as far as it is traced. Those around its legs are written where they run."""

    name = "traces"

    def __init__(self, traces: TurnTraces, metrics: GatewayMetrics) -> None:
        self._traces = traces
        self._metrics = metrics

    def begins(self, live: LiveTurn) -> None:
        live.trace = self._traces.begin(
            live.carrier, live.identity.conversation_id, lambda: first_attributes(live), live.arrived_s
        )
        if live.trace.is_recorded:
            live.record.turn_spans.append(live.trace.span_context)

    def ends(self, live: LiveTurn, ended: Ended) -> None:
        if not live.trace.is_recorded:
            if self._traces.records:
                self._metrics.turn_untraced()
            return
        try:
            _add_transfer(live)
        finally:
            is_counted = live.trace.has_parent and (live.request.wants_usage or not live.request.is_streamed)
            attributes = span_attributes(
                ended.report, is_emulated=live.is_emulated, is_counted_by_client=is_counted
            )
            live.trace.end(attributes, error_type=ended.error_type, message=ended.message)


class MetricsBook(TurnBook):
    """Prometheus."""

    name = "metrics"

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics

    def answered(self, live: LiveTurn, _now_s: float) -> None:
        if live.rebind is not None:
            self._metrics.rebound(live.rebind)
        if live.moved_kv:
            self._metrics.kv_transferred()

    def ends(self, _live: LiveTurn, ended: Ended) -> None:
        self._metrics.turn_ended(ended.report)


class SignalsBook(TurnBook):
    """What engines' plugins are told of conversations."""

    name = "kv_signals"

    def __init__(self, signals: KvSignals) -> None:
        self._signals = signals

    def begins(self, live: LiveTurn) -> None:
        self._signals.turn_begins(live.record)

    def ends(self, live: LiveTurn, _ended: Ended) -> None:
        self._signals.turn_ended(live.record)


class RecognitionBook(TurnBook):
    """The heads by which conversations that no client named are recognised."""

    name = "recognition"

    def __init__(self, recognition: Recognition) -> None:
        self._recognition = recognition

    def ends(self, live: LiveTurn, ended: Ended) -> None:
        if not live.identity.is_synthetic or live.record.ended_as is not None:
            return
        live.can_go_on = False
        if live.watch is not None:
            is_completed = ended.outcome is Outcome.COMPLETED
            live.can_go_on = self._recognition.settle(live.identity, live.watch, is_completed=is_completed)


class ConversationsBook(TurnBook):
    """The conversation's own life: it rests after the turn, or is over. Last, as its summary adds all up."""

    name = "conversations"

    def __init__(self, conversations: Conversations) -> None:
        self._conversations = conversations

    def begins(self, _live: LiveTurn) -> None:
        self._conversations.make_room()

    def ends(self, live: LiveTurn, ended: Ended) -> None:
        self._conversations.turn_ended(
            live.identity, live.record, can_go_on=live.can_go_on, now_s=ended.now_s
        )


def _add_transfer(live: LiveTurn) -> None:
    """The transfer's span, once the engine (or the first token) has told how long it took."""
    if not live.moved_kv or live.decode_started_ns is None or live.decode_started_s is None:
        return
    seconds, seen_by = live.transfer_s, "engine"
    if seconds is None and live.request.is_streamed and live.first_output_s is not None:
        seconds, seen_by = live.first_output_s - live.decode_started_s, "first_token"
    if seconds is None:
        return
    end_ns = live.decode_started_ns + round(seconds * 1e9)
    attributes = {names.TRANSFER_OBSERVED_BY: seen_by}
    live.trace.past_step(names.SPAN_TRANSFER, live.decode_started_ns, end_ns, attributes)
