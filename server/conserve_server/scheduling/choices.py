"""Choices that policies share: which engines have room, which has most, how a placement is named."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from conserve_sdk.protocol import Path
from conserve_server.core.policy_config import Phase
from conserve_server.core.turn import Placement
from conserve_server.scheduling.policy import ClusterView, EngineView, Order, TurnView


def takes_prefills(engine: EngineView) -> bool:
    return engine.takes_prefills


def takes_conversations(engine: EngineView) -> bool:
    return engine.takes_conversations


LARGEST: Final = Order(takes_conversations, lambda d: (-d.budget_tokens,))
"""Decoders, the one with the largest KV budget first."""
FREEST: Final = Order(takes_conversations, lambda d: (-d.free_tokens,))
"""Decoders, the one with most free KV first."""
LEAST_BUSY: Final = Order(takes_conversations, lambda d: (d.batch, d.queued_tokens))
"""Decoders, the one with fewest turns first; among equals, fewest prompt tokens queued."""
SHORTEST_QUEUE: Final = Order(takes_prefills, lambda p: (p.queued_tokens,))
"""Prefillers, the one with the fewest queued prompt tokens first."""


def _preferring(order: Order, prefers: Phase | None) -> Order:
    return Order(lambda e: e.prefers == prefers and order.takes(e), order.key)


_FREEST_BY_TIER: Final = [_preferring(FREEST, prefers) for prefers in ("decode", None, "prefill")]
_SHORTEST_BY_TIER: Final = [_preferring(SHORTEST_QUEUE, prefers) for prefers in ("prefill", None, "decode")]


def need_of(cluster: ClusterView, tokens: float, *, but: Collection[str] = ()) -> float:
    """The free KV that a decoder other than those must have to take so many tokens.

    Lengths are estimates until an engine has tokenised: a prompt that seems larger than every
    budget waits for an empty decoder, and the engine's own limit decides.
    """
    largest = first_of(cluster.ordered(LARGEST), but=but)
    return min(tokens, largest.budget_tokens) if largest is not None else 0


def freest(cluster: ClusterView, tokens: float) -> EngineView | None:
    """The decoder with most free KV, if so many tokens fit there."""
    return _fitting(cluster, (FREEST,), tokens)


def freest_by_tier(cluster: ClusterView, tokens: float) -> EngineView | None:
    """The same among the decoders of a tier for decoding; where none fits, of one for both; else of any."""
    return _fitting(cluster, _FREEST_BY_TIER, tokens)


def least_busy(cluster: ClusterView, tokens: float) -> EngineView | None:
    """The decoder with fewest turns of those where so many tokens fit."""
    need = need_of(cluster, tokens)
    return next((d for d in cluster.ordered(LEAST_BUSY) if d.free_tokens >= need), None)


def shortest_queue(cluster: ClusterView, *, but: Collection[str] = ()) -> EngineView | None:
    """The prefiller with the fewest queued prompt tokens, other than those."""
    return first_of(cluster.ordered(SHORTEST_QUEUE), but=but)


def shortest_queue_by_tier(cluster: ClusterView, *, but: Collection[str] = ()) -> EngineView | None:
    """The same among the prefillers of a tier for prefilling; without such, of one for both; else any."""
    found = (first_of(cluster.ordered(order), but=but) for order in _SHORTEST_BY_TIER)
    return next((prefiller for prefiller in found if prefiller is not None), None)


def first_of(engines: Iterable[EngineView], *, but: Collection[str] = ()) -> EngineView | None:
    """The first engine that is none of those."""
    return next((e for e in engines if e.name not in but), None)


def _fitting(cluster: ClusterView, orders: Sequence[Order], tokens: float) -> EngineView | None:
    """The first of the orders' first engines that has room for so many tokens."""
    need = need_of(cluster, tokens)
    firsts = (next(cluster.ordered(order), None) for order in orders)
    return next((d for d in firsts if d is not None and d.free_tokens >= need), None)


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
