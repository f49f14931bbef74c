"""What the simulator knows of a conversation and of a turn while they are on their way."""

from __future__ import annotations

from dataclasses import dataclass, field

from conserve_server.core.turn import Turn
from conserve_server.simulation.records import LiveTurn
from conserve_server.simulation.request import Request
from conserve_server.simulation.workload import ConversationShape


@dataclass(slots=True, eq=False)
class LiveConversation:
    """A conversation on its way: the tokens of its history, and where its KV may be cached.

    `is_waiting`: for a tool, between two turns.
    """

    number: int
    shape: ConversationShape
    history_tokens: int = 0
    seen_by: dict[str, None] = field(default_factory=dict)
    is_waiting: bool = False


@dataclass(slots=True, eq=False)
class TurnLegs:
    """A turn between its arrival and its end, with the legs that run or hold KV for it."""

    turn: Turn
    conversation: LiveConversation
    live: LiveTurn
    leg: Request | None = None
    leg_engine: str = ""
    leg_started_s: float = 0.0
    decode: Request | None = None
    decoder: str = ""

    @property
    def appended_tokens(self) -> int:
        return self.conversation.shape.turns[self.live.index].appended_tokens

    def context(self) -> Request:
        """A request that would find all that is known once the turn has ended."""
        shape = self.conversation.shape
        return Request(
            turn_id=0,
            conversation=shape.id,
            prompt_tokens=self.live.prompt_tokens + self.live.output_tokens,
            output_tokens=0,
            order=0,
            prefix=shape.prefix,
            shared_tokens=shape.shared_prefix_tokens,
        )


def total_tokens(shape: ConversationShape) -> int:
    """What the conversation's KV holds at its end, if nothing was rewritten."""
    return sum(turn.appended_tokens + turn.output_tokens for turn in shape.turns)
