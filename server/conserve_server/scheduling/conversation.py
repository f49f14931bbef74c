"""One conversation's state inside the scheduler."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from conserve_server.core.turn import Placement, Turn


class State(StrEnum):
    """new → prefilling → active or in a tool gap → ended; a lost decoder leads to rebinding."""

    NEW = "new"
    PREFILLING = "prefilling"
    ACTIVE = "active"
    TOOL_GAP = "tool-gap"
    REBINDING = "rebinding"
    ENDED = "ended"


@dataclass(slots=True)
class Conversation:
    """Who it is bound to, which turn is placing it, and which turns wait for that binding.

    `leader` is the turn whose placement decides the binding, `plan` that placement once it
    was admitted; `followers` came before the binding was committed. `pinned` are turns that
    run on the bound decoder, each with the decoder that it was sent to.
    """

    id: str
    state: State = State.NEW
    decoder: str | None = None
    leader: Turn | None = None
    plan: Placement | None = None
    prefill_failures: int = 0
    followers: deque[Turn] = field(default_factory=deque)
    pinned: dict[int, str] = field(default_factory=dict)
    is_ending: bool = False
    idle_since_s: float = 0.0
    bindings: int = 0

    @property
    def has_turns(self) -> bool:
        return bool(self.leader or self.followers or self.pinned)
