"""A workload: which conversations arrive when, and what each turn appends, produces and waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TurnShape:
    """One turn, in tokens.

    `appended_tokens` are new in its prompt since the answer before; of a first turn they are its
    whole input, the shared prefix included. `gap_s` is the time between the answer before (for a
    first turn: the arrival) and this turn's request: a tool, or a person. `rewrites_from_tokens`:
    the history was rewritten, so that only so many tokens of the context before are still its
    prefix; None where it was only appended to.
    """

    appended_tokens: int
    output_tokens: int
    gap_s: float = 0.0
    rewrites_from_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ConversationShape:
    """One conversation. Its first `shared_prefix_tokens` are those of all that name the same `prefix`."""

    id: str
    turns: tuple[TurnShape, ...]
    prefix: str | None = None
    shared_prefix_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A conversation and when it arrives, in seconds since the workload's start."""

    at_s: float
    conversation: ConversationShape


@dataclass(frozen=True, slots=True)
class Workload:
    """Arrivals in the order of time."""

    name: str
    arrivals: Sequence[Arrival]
