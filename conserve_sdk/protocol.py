"""What the SDK and the gateway say to each other: header names, paths and JSON documents.

The only module that the server imports from the SDK; standard library only. Times are
seconds, token counts are whole tokens of the model's tokenizer, `None` means "not
observed" and never zero.
"""

from __future__ import annotations

import os
import pathlib
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Final, Literal, Self

# -- request headers -------------------------------------------------------------------
CONVERSATION_ID: Final = "x-conserve-conversation-id"
PARENT_ID: Final = "x-conserve-parent-id"
AGENT: Final = "x-conserve-agent"
BRANCH: Final = "x-conserve-branch"
"""Names one of several prompts that grow side by side in the conversation, such as a LangGraph
subgraph's; each branch is a child conversation with a binding of its own (`branch_id`)."""
FINAL: Final = "x-conserve-final"
"""`true` on a request says that this turn is the conversation's last."""

# -- response headers: the route receipt ------------------------------------------------
RECEIPT_TURN: Final = "x-conserve-turn"
RECEIPT_PATH: Final = "x-conserve-path"
RECEIPT_PREFILLER: Final = "x-conserve-prefiller"
RECEIPT_DECODER: Final = "x-conserve-decoder"
RECEIPT_CACHED_TOKENS: Final = "x-conserve-cached-tokens"
"""Only where the answer's usage is known before its first byte is sent (not streamed)."""
RECEIPT_ENERGY_J: Final = "x-conserve-energy-j"
"""Joules charged to the conversation so far, without this turn's; absent where none are known."""
RECEIPT_ENERGY_SOURCE: Final = "x-conserve-energy-source"
"""How they are known: `measured`, `modelled` or `replayed`."""
RECEIPT_EMULATED: Final = "x-conserve-emulated"
"""`true` where an emulated engine answered; absent on real engines."""

EXPOSED_HEADERS: Final = (
    CONVERSATION_ID,
    RECEIPT_TURN,
    RECEIPT_PATH,
    RECEIPT_PREFILLER,
    RECEIPT_DECODER,
    RECEIPT_CACHED_TOKENS,
    RECEIPT_EMULATED,
)
"""The whole receipt, as a browser must be told that its pages may read it."""

MAX_ID_LENGTH: Final = 256
"""Longest identifier, in characters; a longer one is shortened to its beginning and a digest."""

CONVERSATIONS_PATH: Final = "/v1/conversations"
"""Lists recent conversations (`GET`)."""


LIVE_PATH: Final = "/v1/events"
"""What happens now, as server-sent events (`GET`); each is an `Update`."""


def conversation_path(conversation_id: str) -> str:
    """The path of a conversation's report (`GET`) and release (`DELETE`)."""
    from urllib.parse import quote

    return f"{CONVERSATIONS_PATH}/{quote(conversation_id, safe='')}"


def events_path(conversation_id: str) -> str:
    """The path that takes a conversation's tool boundaries (`POST`)."""
    return conversation_path(conversation_id) + "/events"


def trace_dir() -> pathlib.Path:
    """The folder where both sides write spans, as OTLP JSON lines, when no collector is configured.

    `$CONSERVE_TRACE_DIR`, else `conserve/traces` under `$XDG_STATE_HOME` (`~/.local/state`).
    """
    chosen = os.environ.get("CONSERVE_TRACE_DIR")
    if chosen:
        return pathlib.Path(chosen).expanduser()
    state = os.environ.get("XDG_STATE_HOME")
    base = pathlib.Path(state) if state else pathlib.Path.home() / ".local" / "state"
    return base / "conserve" / "traces"


def clean_id(text: str) -> str | None:
    """The identifier as both sides write it: printable ASCII, at most `MAX_ID_LENGTH`; None if empty."""
    kept = "".join(c for c in text if " " <= c <= "~").strip()
    return _shortened(kept) if kept else None


def branch_id(conversation_id: str, branch: str) -> str:
    """The identifier of a conversation's branch; both are clean identifiers."""
    return _shortened(f"{conversation_id}/{branch}")


def _shortened(text: str) -> str:
    """The text itself, or its beginning and a digest of the whole: two long ones never become one."""
    if len(text) <= MAX_ID_LENGTH:
        return text
    from hashlib import blake2b

    digest = blake2b(text.encode(), digest_size=16).hexdigest()
    return f"{text[: MAX_ID_LENGTH - len(digest) - 1]}~{digest}"


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


class EnergySource(StrEnum):
    """How joules are known."""

    MEASURED = "measured"
    """Read from a device's own meter."""
    MODELLED = "modelled"
    """Watts by what the device did, from a table: no device was read."""
    REPLAYED = "replayed"
    """Read back from a record."""


def joules_text(joules: float) -> str:
    """Joules as a person reads them: `0.043 J`, `57.2 J`, `12,340 J`."""
    return f"{joules:,.0f} J" if joules >= 999.5 else f"{joules:.3g} J"


@dataclass(frozen=True, slots=True)
class EnergyReport:
    """Joules of a turn or a conversation. What is not known is None, and `reason` says why.

    `idle_j` is the idle devices' energy for holding the KV while a turn ran, `gap_j` the same
    between turns (a conversation's only). `pending`: more may still come, devices are read in
    intervals. `context_tokens_per_j` counts the whole context again on every turn, as
    ConServe's paper does; it is not comparable to `output_tokens_per_j`. `carbon_g` (CO2) and
    `cost` (in `currency`) only where the gateway knows the factors.
    """

    source: EnergySource | None = None
    reason: str | None = None
    pending: bool = False
    total_j: float | None = None
    prefill_j: float | None = None
    transfer_j: float | None = None
    decode_j: float | None = None
    idle_j: float | None = None
    gap_j: float | None = None
    j_per_output_token: float | None = None
    output_tokens_per_j: float | None = None
    context_tokens_per_j: float | None = None
    carbon_g: float | None = None
    cost: float | None = None
    currency: str | None = None

    def __str__(self) -> str:
        """The total and how it is known, or why it is not."""
        if self.total_j is None or self.source is None:
            return self.reason or "not measured"
        more = ", more to come" if self.pending else ""
        return f"{joules_text(self.total_j)} ({self.source}{more})"


UNKNOWN_ENERGY: Final = EnergyReport(reason="not measured: no energy meter is configured")


@dataclass(frozen=True, slots=True)
class TurnReport:
    """One turn as the gateway observed it.

    `started_s`: from the arrival of the conversation's first turn to this one's.
    `ttft_s`: from the turn's arrival at the gateway to its first output token (the engine's
    own timing where the answer was not streamed; None where neither was observed).
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
    on its decoder now, 0 once it has ended. `synthetic`: no client named it, it was recognised
    by its message history. `children` names its branches.
    """

    id: str
    state: str
    tenant: str | None = None
    synthetic: bool = False
    agent: str | None = None
    parent_id: str | None = None
    children: tuple[str, ...] = ()
    model: str | None = None
    decoder: str | None = None
    decoders: tuple[str, ...] = ()
    kv_transfers: int = 0
    reserved_kv_tokens: int = 0
    ttfet_s: float | None = None
    emulated: bool = False
    energy: EnergyReport = UNKNOWN_ENERGY
    turns: tuple[TurnReport, ...] = ()
    tools: tuple[ToolReport, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The JSON document of `GET /v1/conversations/{id}`."""
        return {"object": "conversation", **asdict(self)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Read the gateway's document; fields that a newer gateway adds are left out."""
        known = _known(cls, document)
        known["energy"] = _energy(document.get("energy"))
        known["turns"] = tuple(_turn(t) for t in document.get("turns", ()))
        known["tools"] = tuple(_tool(t) for t in document.get("tools", ()))
        for name in ("decoders", "children"):
            known[name] = tuple(document.get(name, ()))
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


# -- what happens now: GET /v1/events --------------------------------------------------------


class Phase(StrEnum):
    """What a running turn is doing."""

    WAITING = "waiting"
    PREFILL = "prefill"
    TRANSFER = "transfer"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class RunningTurn:
    """A turn that has not ended. `started_s`, `wait_s` and the like as in `TurnReport`; None until known."""

    index: int
    phase: Phase
    started_s: float
    streamed: bool = False
    path: Path | None = None
    prefiller: str | None = None
    decoder: str | None = None
    wait_s: float | None = None
    prefill_s: float | None = None
    ttft_s: float | None = None


@dataclass(frozen=True, slots=True)
class EngineReport:
    """An engine as it last said, and what the scheduler holds on it.

    `kv_usage` is the engine's own share of KV in use, 0 to 1. The budget is the part of the
    capacity that reservations may fill at admission; None on engines that hold no conversations.
    """

    name: str
    role: str
    up: bool
    emulated: bool = False
    running: int = 0
    waiting: int = 0
    kv_usage: float | None = None
    kv_capacity_tokens: int | None = None
    kv_budget_tokens: int | None = None
    kv_reserved_tokens: int | None = None
    conversations: int = 0


@dataclass(frozen=True, slots=True)
class ConversationUpdate:
    """A conversation that has changed.

    `first_arrival_s` is when its first turn arrived, on the clock of `Update.now_s`. In `report`,
    `turns` are those that ended since the update before, and `tools` are left out.
    """

    first_arrival_s: float
    report: ConversationReport
    running: tuple[RunningTurn, ...] = ()
    tool_count: int = 0


@dataclass(frozen=True, slots=True)
class Update:
    """What has changed since the update before; the first one holds everything.

    `now_s` is the gateway's monotonic clock. `engines` is None where nothing changed there (or they
    are not the caller's to see). `gone`: `[tenant, id, model]` of conversations that are no longer
    among the latest.
    """

    now_s: float
    waiting_turns: int = 0
    engines: tuple[EngineReport, ...] | None = None
    conversations: tuple[ConversationUpdate, ...] = ()
    gone: tuple[tuple[str | None, str, str | None], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The JSON document of one event."""
        return {"object": "update", **asdict(self)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Read the gateway's document; fields that a newer gateway adds are left out."""
        known = _known(cls, document)
        engines = document.get("engines")
        known["engines"] = (
            None if engines is None else tuple(EngineReport(**_known(EngineReport, e)) for e in engines)
        )
        known["conversations"] = tuple(_update(c) for c in document.get("conversations", ()))
        known["gone"] = tuple((g[0], g[1], g[2]) for g in document.get("gone", ()))
        return cls(**known)


def _update(document: dict[str, Any]) -> ConversationUpdate:
    running = tuple(
        RunningTurn(
            **{**_known(RunningTurn, r), "phase": Phase(r["phase"]), "path": r["path"] and Path(r["path"])}
        )
        for r in document.get("running", ())
    )
    report = ConversationReport.from_json(document["report"])
    return ConversationUpdate(document["first_arrival_s"], report, running, document.get("tool_count", 0))


def _known(cls: type[Any], document: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}
    return {k: v for k, v in document.items() if k in names}


def _turn(document: dict[str, Any]) -> TurnReport:
    known = _known(TurnReport, document)
    path = known.get("path")
    return TurnReport(
        **{
            **known,
            "outcome": Outcome(known["outcome"]),
            "path": Path(path) if path is not None else None,
            "energy": _energy(known.get("energy")),
        }
    )


def _energy(document: object) -> EnergyReport:
    """A gateway that knows no energy writes a sentence, or nothing."""
    if not isinstance(document, dict):
        return UNKNOWN_ENERGY
    known = _known(EnergyReport, document)
    source = known.get("source")
    return EnergyReport(**{**known, "source": EnergySource(source) if source is not None else None})


def _tool(document: dict[str, Any]) -> ToolReport:
    known = _known(ToolReport, document)
    outcome = known.get("outcome")
    return ToolReport(**{**known, "outcome": Outcome(outcome) if outcome is not None else None})


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s"


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _summary(report: ConversationReport) -> list[str]:
    emulated = " (emulated engine)" if report.emulated else ""
    counts = (
        f"{len(report.turns)} turns, {len(report.tools)} tool calls, {report.kv_transfers} KV transfer(s)"
    )
    return [
        f"conversation {report.id}{emulated}: {report.state}, {counts}",
        f"  decoder {report.decoder or '-'}, TTFET {_seconds(report.ttfet_s)}, energy {report.energy}",
        *(_turn_line(turn) for turn in report.turns),
    ]


def _joules(energy: EnergyReport) -> str:
    return "" if energy.total_j is None else f", {energy}"


def _turn_line(turn: TurnReport) -> str:
    prompt = f"{_count(turn.prompt_tokens)} prompt tokens ({_count(turn.cached_tokens)} cached)"
    place = f"{turn.path or '-'} on {turn.decoder or '-'}"
    timing = f"TTFT {_seconds(turn.ttft_s)}"
    return (
        f"  turn {turn.index}: {place}, {timing}, {prompt}, "
        f"{_count(turn.completion_tokens)} output tokens, {turn.outcome}{_joules(turn.energy)}"
    )
