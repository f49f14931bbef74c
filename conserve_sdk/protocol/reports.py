"""What was observed of a conversation: its turns, its tools, and what became of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal, Self

from conserve_sdk.protocol.documents import known_fields
from conserve_sdk.protocol.energy import (
    UNKNOWN_ENERGY,
    EnergyReport,
    joules_note,
    read_energy,
)
from conserve_sdk.protocol.totals import ConversationTotals


class Path(StrEnum):
    """How a turn reached its decoder."""

    REMOTE_PREFILL = "remote-prefill"
    """Prefilled on a prefiller, its KV cache moved once to the decoder."""
    LOCAL_PREFILL = "local-prefill"
    """Prefilled on the decoder itself, which did not hold the conversation before."""
    PINNED = "pinned"
    """A later turn, straight to the decoder that holds the conversation."""
    REMOTE_APPEND = "remote-append"
    """A later turn prefilled on a prefiller, its KV moved to the decoder that holds the conversation."""

    @property
    def moves_kv(self) -> bool:
        """Whether KV goes from a prefiller to the decoder."""
        return self in (Path.REMOTE_PREFILL, Path.REMOTE_APPEND)

    @property
    def binds(self) -> bool:
        """Whether the decoder becomes the conversation's by this turn."""
        return self in (Path.REMOTE_PREFILL, Path.LOCAL_PREFILL)


class RebindCause(StrEnum):
    """Why a conversation that had a decoder was placed anew: its whole history is prefilled again."""

    ENGINE_LOST = "engine-lost"
    """Its decoder went down, was restarted, or could not be reached."""
    ENGINE_FAILED = "engine-failed"
    """Its decoder answered its turn with errors of its own."""
    ENGINE_DRAINED = "engine-drained"
    """Its decoder is to go, and it was still bound there when the drain's time was over."""
    PLACEMENT_FAILED = "placement-failed"
    """The turn that was to bind it anew ended before a decoder had answered."""
    YIELDED = "yielded"
    """It was at rest and gave its room to a turn that waited; what is cached of it is where it was."""
    MOVED = "moved"
    """The placement policy chose another decoder."""


class Outcome(StrEnum):
    """How a turn or a tool call ended; each ends exactly once."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class ToolEvent:
    """One boundary of a tool call, as the SDK saw it.

    `duration_s` and `outcome` belong to `end`. `elapsed_s` is the age of the boundary when
    the event was sent, so that the two clocks need not agree.
    """

    kind: Literal["start", "end"]
    call_id: str
    name: str
    elapsed_s: float = 0.0
    duration_s: float | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class TurnReport:
    """One turn as the gateway observed it.

    `started_s`: from the arrival of the conversation's first turn to this one's.
    `ttft_s`: from the turn's arrival at the gateway to its first output token (the engine's
    own timing where the answer was not streamed; None where neither was observed).
    `rebind`: why the turn bound its conversation once more. `placements`: how often it was
    placed, more than once where engines failed it before its first byte.
    `transfer_s`: from the decode leg's start until the decoder had pulled the KV and
    scheduled the turn; None where no KV moved or the engine reports no per-request timing.
    """

    index: int
    outcome: Outcome
    path: Path | None = None
    prefiller: str | None = None
    decoder: str | None = None
    streamed: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    wait_s: float | None = None
    prefill_s: float | None = None
    transfer_s: float | None = None
    ttft_s: float | None = None
    duration_s: float | None = None
    error: str | None = None
    started_s: float | None = None
    rebind: RebindCause | None = None
    placements: int = 1
    energy: EnergyReport = UNKNOWN_ENERGY


@dataclass(frozen=True, slots=True)
class ToolReport:
    """One tool call between turns; `duration_s` is None while it is open."""

    call_id: str
    name: str
    duration_s: float | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class ConversationReport:
    """A conversation as the gateway observed it.

    `ttfet_s`, time to first effective token: the first token of the last turn minus the
    start of the first, time in which no turn was running left out (ConServe, section
    "metrics": tool time excluded). `reserved_kv_tokens` is what the scheduler holds for it
    on its decoder now, 0 once it has ended. `turns` are the latest, after `turns_forgotten`
    others. `rebinds`: why it was bound once more, each time. `synthetic`: no client named it,
    it was recognised by its message history. `children` names its branches, and
    `with_branches` adds them up (None where it has none); all else is this conversation's own,
    but `emulated`: an emulated engine answered it or one of them.
    """

    id: str
    state: str
    tenant: str | None = None
    synthetic: bool = False
    agent: str | None = None
    parent_id: str | None = None
    children: tuple[str, ...] = ()
    with_branches: ConversationTotals | None = None
    model: str | None = None
    decoder: str | None = None
    decoders: tuple[str, ...] = ()
    kv_transfers: int = 0
    rebinds: tuple[RebindCause, ...] = ()
    reserved_kv_tokens: int = 0
    ttfet_s: float | None = None
    emulated: bool = False
    energy: EnergyReport = UNKNOWN_ENERGY
    turns_forgotten: int = 0
    turns: tuple[TurnReport, ...] = ()
    tools: tuple[ToolReport, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The JSON document of `GET /v1/conversations/{id}`."""
        return {"object": "conversation", **asdict(self)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Read the gateway's document; fields that a newer gateway adds are left out."""
        known = known_fields(cls, document)
        known["energy"] = read_energy(document.get("energy"))
        totals = document.get("with_branches")
        known["with_branches"] = None if totals is None else ConversationTotals.from_json(totals)
        known["turns"] = tuple(_turn(t) for t in document.get("turns", ()))
        known["tools"] = tuple(_tool(t) for t in document.get("tools", ()))
        for name in ("decoders", "children"):
            known[name] = tuple(document.get(name, ()))
        known["rebinds"] = tuple(RebindCause(cause) for cause in document.get("rebinds", ()))
        return cls(**known)

    def __str__(self) -> str:
        """A few lines for a person: totals, then one line a turn."""
        return "\n".join(_summary(self))


@dataclass(frozen=True, slots=True)
class EventsDocument:
    """The body of `POST /v1/conversations/{id}/events`, in the order in which things happened."""

    events: tuple[ToolEvent, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _turn(document: dict[str, Any]) -> TurnReport:
    known = known_fields(TurnReport, document)
    path, rebind = known.get("path"), known.get("rebind")
    known["outcome"] = Outcome(known["outcome"])
    known["path"] = Path(path) if path is not None else None
    known["rebind"] = RebindCause(rebind) if rebind is not None else None
    known["energy"] = read_energy(known.get("energy"))
    return TurnReport(**known)


def _tool(document: dict[str, Any]) -> ToolReport:
    known = known_fields(ToolReport, document)
    outcome = known.get("outcome")
    return ToolReport(**{**known, "outcome": Outcome(outcome) if outcome is not None else None})


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s"


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _summary(report: ConversationReport) -> list[str]:
    emulated = " (emulated engine)" if report.emulated else ""
    counts = _counts(report.turns_forgotten + len(report.turns), len(report.tools), report.kv_transfers)
    own = f"  decoder {report.decoder or '-'}, TTFET {_seconds(report.ttfet_s)}, energy {report.energy}"
    turns = [_turn_line(turn) for turn in report.turns]
    totals = report.with_branches
    if totals is None:
        return [f"conversation {report.id}{emulated}: {report.state}, {counts}", own, *turns]
    whole = _counts(totals.turns, totals.tools, totals.kv_transfers)
    branches = [f"  branch {name}" for name in report.children]
    return [
        f"conversation {report.id}{emulated}: {report.state}, {whole}, energy {totals.energy}",
        *([f"  of its own: {counts}", own] if turns else ["  all in its branches"]),
        *turns,
        *branches,
    ]


def _counts(turns: int, tools: int, kv_transfers: int) -> str:
    return f"{turns} turns, {tools} tool calls, {kv_transfers} KV transfer(s)"


def _turn_line(turn: TurnReport) -> str:
    prompt = f"{_count(turn.prompt_tokens)} prompt tokens ({_count(turn.cached_tokens)} cached)"
    place = f"{turn.path or '-'} on {turn.decoder or '-'}"
    timing = f"TTFT {_seconds(turn.ttft_s)}"
    rebound = f", rebound ({turn.rebind})" if turn.rebind is not None else ""
    return (
        f"  turn {turn.index}: {place}, {timing}, {prompt}, "
        f"{_count(turn.completion_tokens)} output tokens, {turn.outcome}{rebound}{joules_note(turn.energy)}"
    )
