"""Choices that policies share: which engines have room, which has most, how a placement is named."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from conserve_sdk.protocol import Path
from conserve_server.core.policy_config import Phase
from conserve_server.core.turn import Placement
from conserve_server.scheduling.policy import EngineView, TurnView


def fitting(decoders: Sequence[EngineView], tokens: float) -> list[EngineView]:
    """The decoders with room for so many tokens.

    Lengths are estimates until an engine has tokenised: a prompt that seems larger than every
    budget waits for an empty decoder, and the engine's own limit has the last word.
    """
    largest = max((d.budget_tokens for d in decoders), default=0)
    return [d for d in decoders if d.free_tokens >= min(tokens, largest)]


def preferred(engines: Sequence[EngineView], phase: Phase) -> list[EngineView]:
    """Of the engines those whose tier is for this phase; without such, those for both; else all."""
    for wanted in (phase, None):
        found = [e for e in engines if e.prefers == wanted]
        if found:
            return found
    return list(engines)


def freest(decoders: Collection[EngineView]) -> EngineView | None:
    """The decoder with most free KV."""
    return max(decoders, key=lambda d: d.free_tokens, default=None)


def least_busy(decoders: Collection[EngineView]) -> EngineView | None:
    """The decoder with fewest turns; among equals, fewest prompt tokens queued."""
    return min(decoders, key=lambda d: (d.batch, d.queued_tokens), default=None)


def shortest_queue(prefillers: Collection[EngineView], *, but: str | None = None) -> EngineView | None:
    """The prefiller with the fewest queued prompt tokens, other than the engine `but`."""
    return min((p for p in prefillers if p.name != but), key=lambda p: p.queued_tokens, default=None)


def placed(
    turn: TurnView,
    decoder: str,
    prefiller: EngineView | None,
    *,
    priority: int | None = None,
    reserve_tokens: int | None = None,
) -> Placement:
    """The placement on these engines, its path named by what it means for this turn."""
    is_bound_there = turn.bound_decoder == decoder
    if prefiller is None:
        path = Path.PINNED if is_bound_there else Path.LOCAL_PREFILL
    else:
        path = Path.REMOTE_APPEND if is_bound_there else Path.REMOTE_PREFILL
    return Placement(path, decoder, prefiller.name if prefiller else None, priority, reserve_tokens)
