"""What the gateway says of the present: the JSON documents of `GET /v1/events`, server-sent events."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

from conserve_sdk.protocol.documents import known_fields
from conserve_sdk.protocol.reports import ConversationReport, Path

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
        known = known_fields(cls, document)
        engines = document.get("engines")
        known["engines"] = (
            None if engines is None else tuple(EngineReport(**known_fields(EngineReport, e)) for e in engines)
        )
        known["conversations"] = tuple(_update(c) for c in document.get("conversations", ()))
        known["gone"] = tuple((g[0], g[1], g[2]) for g in document.get("gone", ()))
        return cls(**known)


def _update(document: dict[str, Any]) -> ConversationUpdate:
    running = tuple(
        RunningTurn(
            **{
                **known_fields(RunningTurn, r),
                "phase": Phase(r["phase"]),
                "path": r["path"] and Path(r["path"]),
            }
        )
        for r in document.get("running", ())
    )
    report = ConversationReport.from_json(document["report"])
    return ConversationUpdate(document["first_arrival_s"], report, running, document.get("tool_count", 0))
