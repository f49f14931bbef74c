"""What is learned of one turn while it runs, and the report that comes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from opentelemetry.util.types import AttributeValue

from conserve_sdk.protocol import (
    CONVERSATION_ID,
    RECEIPT_CACHED_TOKENS,
    RECEIPT_DECODER,
    RECEIPT_EMULATED,
    RECEIPT_ENERGY_J,
    RECEIPT_ENERGY_SOURCE,
    RECEIPT_PATH,
    RECEIPT_PLACEMENTS,
    RECEIPT_PREFILLER,
    RECEIPT_REBIND,
    RECEIPT_TURN,
    Outcome,
    Phase,
    RebindCause,
    RunningTurn,
    TurnReport,
)
from conserve_server.core.errors import EngineFailed, TurnError
from conserve_server.core.turn import Placement, Turn
from conserve_server.energy.accounts import weakest
from conserve_server.engines.wire import EngineTiming, Usage
from conserve_server.serving.asked.estimate import Kind, kind_of
from conserve_server.serving.asked.identity import DEFAULT_TENANT, Identity
from conserve_server.serving.asked.request import TurnRequest
from conserve_server.serving.recognition.recognition import Watch
from conserve_server.serving.records.record import ConversationRecord
from conserve_server.serving.turns.turn_energy import TurnEnergy
from conserve_server.telemetry import names
from conserve_server.telemetry.spans import TurnTrace

_SHARED_USAGE = (names.INPUT_TOKENS, names.OUTPUT_TOKENS, names.CACHE_READ_TOKENS)
_CACHE_WRITE = (names.CACHE_WRITE_TOKENS, names.CACHE_CREATION_TOKENS)
_UNTRACED: Final = TurnTrace(None, {}, "", {}, lambda _: None)
_OWN_USAGE = (names.TURN_INPUT_TOKENS, names.TURN_OUTPUT_TOKENS, names.TURN_CACHE_READ_TOKENS)


class Loss(NamedTuple):
    """An engine that was lost, and its process as it was seen last; None: it was not up."""

    engine: str
    generation: str | None


@dataclass(slots=True)
class LiveTurn:
    """One running turn. Times are the gateway's monotonic seconds; None until it happened.

    `carrier` has the client's trace context. What the books of turns need of their own turn's begin
    at its end is here: `index`, `gap_s`, `energy`, `trace`. `error`: why it failed, where
    that is told. `is_abandoned`: its client takes nothing any more.
    """

    turn: Turn
    request: TurnRequest
    identity: Identity
    record: ConversationRecord
    arrived_s: float
    carrier: Mapping[str, str]
    watch: Watch | None = None
    index: int = 0
    gap_s: float = 0.0
    energy: TurnEnergy | None = None
    trace: TurnTrace = _UNTRACED
    can_go_on: bool = True
    """Whether a later turn can be known as one of the same conversation."""
    placement: Placement | None = None
    rebind: RebindCause | None = None
    placements: int = 0
    wait_s: float | None = None
    prefill_s: float | None = None
    decode_started_s: float | None = None
    decode_started_ns: int | None = None
    first_output_s: float | None = None
    usage: Usage | None = None
    timing: EngineTiming | None = None
    refused: str | None = None
    error: TurnError | None = None
    failures: int = 0
    """Legs that failed, of both kinds."""
    losses: tuple[Loss, ...] = ()
    """Engines that were lost with a leg of it, in this turn or when the same request came before."""
    place_apart: asyncio.Lock | None = None
    """Held while it has an engine to itself, among those that lost theirs."""
    is_abandoned: bool = False
    is_passed_on: bool = False
    """Whether bytes of an engine's answer have gone to the client."""
    is_answered: bool = False
    """Whether all of the answer has: what its client does then does not change that."""
    is_emulated: bool = False

    def is_placed(self, placement: Placement, rebind: RebindCause | None) -> None:
        """The scheduler has said where its next leg runs."""
        self.placement, self.rebind = placement, rebind

    def decode_starts(self, now_s: float) -> None:
        self.placements += 1
        self.decode_started_s = now_s
        self.decode_started_ns = time.time_ns()

    @property
    def kind(self) -> Kind:
        """Whose prompts its own is measured by."""
        return kind_of(self.identity, self.request.path)

    @property
    def moved_kv(self) -> bool:
        return self.placement is not None and self.placement.path.moves_kv

    @property
    def priority(self) -> int | None:
        """vLLM's priority for this turn's legs; None leaves the client's."""
        return self.placement.priority if self.placement else None

    @property
    def engine_wait_s(self) -> float | None:
        """Decode leg sent to scheduled by the engine, as the engine measured it.

        On the decode leg of a turn whose KV was moved this is the pull of the KV cache: vLLM keeps a request
        out of its schedule until the KV has arrived.
        """
        if self.timing is None or self.timing.queue_time_ms is None:
            return None
        return self.timing.queue_time_ms / 1000

    def is_lost_by(self, error: EngineFailed) -> bool:
        """Whether the engine of the leg can't be counted on any more: unreachable, broken off or silent.

        An answer that is not streamed is silent until it is whole: that it takes long is no sign.
        """
        return error.code == "engine_lost" or (error.code == "engine_timeout" and self.request.is_streamed)

    @property
    def transfer_s(self) -> float | None:
        return self.engine_wait_s if self.moved_kv else None

    @property
    def first_token_s(self) -> float | None:
        """When the first output token was there: seen in the stream, else from the engine's own timing."""
        if self.request.is_streamed:
            return self.first_output_s
        if self.decode_started_s is None or self.timing is None:
            return None
        if self.engine_wait_s is None or self.timing.time_to_first_token_ms is None:
            return None
        return self.decode_started_s + self.engine_wait_s + self.timing.time_to_first_token_ms / 1000

    @property
    def kv_tokens(self) -> int | None:
        """Tokens of context that the conversation holds after this turn."""
        if self.usage is None:
            return None
        return self.usage.prompt_tokens + (self.usage.completion_tokens or 0)

    @property
    def later_tokens(self) -> int:
        """Output tokens after the first; 0 where the engine did not count, or the first was not seen."""
        if self.first_output_s is None or self.usage is None:
            return 0
        return max(0, (self.usage.completion_tokens or 0) - 1)

    def report(self, outcome: Outcome, now_s: float, error: str | None) -> TurnReport:
        """The turn as it ended."""
        placement, usage, first = self.placement, self.usage, self.first_token_s
        return TurnReport(
            index=self.index,
            outcome=outcome,
            path=placement.path if placement else None,
            prefiller=placement.prefiller if placement else None,
            decoder=placement.decoder if placement else None,
            streamed=self.request.is_streamed,
            prompt_tokens=usage.prompt_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
            cached_tokens=usage.cached_tokens if usage else None,
            wait_s=self.wait_s,
            prefill_s=self.prefill_s,
            transfer_s=self.transfer_s,
            ttft_s=first - self.arrived_s if first is not None else None,
            duration_s=now_s - self.arrived_s,
            error=error,
            started_s=self.started_s,
            rebind=self.rebind,
            placements=max(1, self.placements),
        )

    @property
    def started_s(self) -> float:
        """From the conversation's first arrival to this turn's."""
        return self.arrived_s - self.record.first_arrival_s

    @property
    def phase(self) -> Phase:
        """What it is doing. A transfer ends with the first token, where a stream shows it."""
        if self.wait_s is None:
            return Phase.WAITING
        if self.decode_started_s is None:
            return Phase.PREFILL if self.moved_kv else Phase.WAITING
        is_moving = self.moved_kv and self.request.is_streamed and self.first_output_s is None
        return Phase.TRANSFER if is_moving else Phase.DECODE

    def running(self) -> RunningTurn:
        """The turn as it runs."""
        placement, first = self.placement, self.first_output_s
        return RunningTurn(
            index=self.index,
            phase=self.phase,
            started_s=self.started_s,
            streamed=self.request.is_streamed,
            path=placement.path if placement else None,
            prefiller=placement.prefiller if placement else None,
            decoder=placement.decoder if placement else None,
            wait_s=self.wait_s,
            prefill_s=self.prefill_s,
            ttft_s=first - self.arrived_s if first is not None else None,
        )

    def receipt(self) -> dict[str, str]:
        """The route receipt: response headers that say where the turn ran and why it was there."""
        headers = {CONVERSATION_ID: self.identity.conversation_id, RECEIPT_TURN: str(self.index)}
        if self.placement is not None:
            headers[RECEIPT_PATH] = self.placement.path
            headers[RECEIPT_DECODER] = self.placement.decoder
            if self.placement.prefiller is not None:
                headers[RECEIPT_PREFILLER] = self.placement.prefiller
        if self.rebind is not None:
            headers[RECEIPT_REBIND] = self.rebind
        if self.placements > 1:
            headers[RECEIPT_PLACEMENTS] = str(self.placements)
        if self.usage is not None and self.usage.cached_tokens is not None:
            headers[RECEIPT_CACHED_TOKENS] = str(self.usage.cached_tokens)
        if self.is_emulated:
            headers[RECEIPT_EMULATED] = "true"
        energy = self.record.energy
        if energy.sources and not energy.unmetered:
            headers[RECEIPT_ENERGY_J] = f"{energy.total_j:.3f}"
            headers[RECEIPT_ENERGY_SOURCE] = weakest(energy.sources)
        return headers


def span_attributes(
    report: TurnReport, *, is_emulated: bool, is_counted_by_client: bool
) -> dict[str, AttributeValue]:
    """The ended turn as attributes of its span; what was not observed is absent.

    `is_counted_by_client`: the parent span has the usage, so that it must not be counted twice.
    """
    tokens = _OWN_USAGE if is_counted_by_client else _SHARED_USAGE
    counts = (report.prompt_tokens, report.completion_tokens, report.cached_tokens)
    found: dict[str, AttributeValue | None] = {
        names.TURN_OUTCOME: report.outcome,
        names.TURN_PATH: report.path,
        names.PREFILLER: report.prefiller,
        names.DECODER: report.decoder,
        names.TURN_STREAMED: report.streamed,
        names.TURN_TTFT_S: report.ttft_s,
        **dict(zip(tokens, counts, strict=True)),
        **({} if is_counted_by_client else dict.fromkeys(_CACHE_WRITE, _written_tokens(report))),
        names.OPENINFERENCE_KIND: "CHAIN" if is_counted_by_client else "LLM",
        names.REBIND_CAUSE: report.rebind,
        names.TURN_PLACEMENTS: report.placements if report.placements > 1 else None,
        names.EMULATED: is_emulated or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _written_tokens(report: TurnReport) -> int | None:
    """Prompt tokens that the engine had to compute, and keeps for the next turn."""
    if report.prompt_tokens is None or report.cached_tokens is None:
        return None
    return report.prompt_tokens - report.cached_tokens


def first_attributes(live: LiveTurn) -> dict[str, str | int | bool]:
    """What is known of a turn as it begins, as attributes of its span."""
    identity = live.identity
    found: dict[str, str | int | bool] = {
        names.TURN_INDEX: live.index,
        names.REQUEST_MODEL: live.request.model,
        names.SYNTHETIC: identity.is_synthetic,
        names.REQUEST_ID: live.request.request_id,
    }
    if identity.tenant != DEFAULT_TENANT:
        found[names.TENANT] = identity.tenant
    if identity.agent is not None:
        found[names.AGENT_NAME] = identity.agent
    if identity.parent_id is not None:
        found[names.PARENT_CONVERSATION_ID] = identity.parent_id
    return found
