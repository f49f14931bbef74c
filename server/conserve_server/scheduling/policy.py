"""What a placement policy sees and what it answers.

Everything in a view could be observed at that instant: queue lengths, reservations and
bindings that the scheduler keeps itself. Nothing is predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from conserve_server.core.turn import Placement


@dataclass(frozen=True, slots=True)
class PrefillerView:
    """A prefill engine: prompt tokens that were sent to it and are not prefilled yet."""

    name: str
    queued_tokens: int


@dataclass(frozen=True, slots=True)
class DecoderView:
    """A decode engine: KV tokens that it may hold at admission, and those reserved on it."""

    name: str
    budget_tokens: int
    reserved_tokens: int
    running_turns: int

    @property
    def free_tokens(self) -> int:
        """Room for new conversations; negative after bound ones outgrew the budget."""
        return self.budget_tokens - self.reserved_tokens


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The engines that are up, in the order of the configuration."""

    prefillers: tuple[PrefillerView, ...]
    decoders: tuple[DecoderView, ...]


@dataclass(frozen=True, slots=True)
class TurnView:
    """The turn to place: its prompt's length, and the decoder that its conversation is bound to."""

    prompt_tokens: int
    bound_decoder: str | None


class Policy(Protocol):
    """Places one turn. Ties break by the engines' order, so that runs repeat."""

    def place(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        """Where the turn runs now, or None to let it wait (first come, first served)."""
        ...
