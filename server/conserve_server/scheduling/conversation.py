"""One conversation's state inside the scheduler, and that of each of its turns."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from conserve_sdk.protocol import RebindCause
from conserve_server.core.turn import Placement, Turn


class State(StrEnum):
    """new → prefilling → active or in a tool gap → ended or expired.

    A conversation whose decoder was lost, or that its policy moves, is rebinding until
    another decoder has answered.
    """

    NEW = "new"
    PREFILLING = "prefilling"
    ACTIVE = "active"
    TOOL_GAP = "tool-gap"
    REBINDING = "rebinding"
    ENDED = "ended"
    EXPIRED = "expired"


@dataclass(slots=True, eq=False)
class TurnState:
    """One turn between its arrival and its end. Times are the driver's monotonic seconds.

    `order` numbers all turns by arrival, `index` those of the conversation, both from 0.
    `prompt_tokens` is an estimate until an engine has counted. `started_s` is when its first
    leg was sent, `sent_s` the running one. `expected_hit_tokens`: context that the engine of the running
    leg had when it was sent. `is_stranded`: the decoder that it was placed on is gone.
    `later_tokens` are output tokens after the first, as far as they were reported. `failed_on` are the
    engines that failed a decode leg of it, or may have; `transfer_failures` counts the legs that were
    answered with an error where KV was to be pulled. `rebind` is why its placement binds the conversation
    once more, None where it does not.
    """

    turn: Turn
    conversation: Conversation
    order: int
    index: int
    arrived_s: float
    prompt_tokens: int
    placement: Placement | None = None
    started_s: float | None = None
    sent_s: float = 0.0
    expected_hit_tokens: int = 0
    prefill_failures: int = 0
    is_stranded: bool = False
    has_answered: bool = False
    last_token_s: float | None = None
    later_tokens: int = 0
    failed_on: set[str] = field(default_factory=set)
    transfer_failures: int = 0
    rebind: RebindCause | None = None

    @property
    def id(self) -> int:
        return self.turn.id


@dataclass(slots=True, eq=False)
class Conversation:
    """Who it is bound to, which turn is placing it, and which turns wait for that binding.

    `leader` is the turn whose placement decides the binding; while there is one there is no
    decoder. `followers` came before the binding was committed. `running` are turns that were
    sent somewhere under a binding, `unplaced` those that could not be placed and have not ended
    yet. `context_tokens` is what each engine has computed or received of the conversation, by the
    last count; `kv_tokens` what its decoder must hold, None while only estimated. `shared_tokens` of
    its prompts are a prefix that others hold too, None until its first turn's cache hit was reported.
    `evicted_tokens` its decoder has lost since its last turn. `rebind_cause` says why it was, or has
    to be, bound once more.
    """

    id: str
    state: State = State.NEW
    decoder: str | None = None
    leader: TurnState | None = None
    followers: deque[TurnState] = field(default_factory=deque)
    running: dict[int, TurnState] = field(default_factory=dict)
    unplaced: dict[int, TurnState] = field(default_factory=dict)
    context_tokens: dict[str, int] = field(default_factory=dict)
    last_prefiller: str | None = None
    hit_share: float | None = None
    kv_tokens: int | None = None
    shared_tokens: int | None = None
    evicted_tokens: int = 0
    is_ending: bool = False
    idle_since_s: float = 0.0
    turns: int = 0
    bindings: int = 0
    rebind_cause: RebindCause | None = None
    yielded_on: str | None = None
    """The decoder on which it gave up its room, until it is bound again."""

    @property
    def has_turns(self) -> bool:
        return bool(self.leader or self.followers or self.running or self.unplaced)
