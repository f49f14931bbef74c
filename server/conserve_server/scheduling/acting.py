"""Which engines act as prefillers now: as many as the observed first-turn load asks for.

Engines that can do nothing else always act. Of those with both roles only a faster kind than
the slowest decoder acts: among equals a queue and a transfer cost more than they spare. The
fastest kind acts first, then those with least KV bound: nobody is bound to an acting prefiller
anew, so the choice keeps itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

from conserve_server.core.policy_config import ConServePlusConfig
from conserve_server.scheduling.policy import ClusterView, EngineView

ALIKE = 0.8
"""Engines at least this fast, relative to the fastest, count as one kind: observed speeds vary."""


def acting_prefillers(cluster: ClusterView, config: ConServePlusConfig) -> tuple[EngineView, ...]:
    """The engines that prefill for others now, in the cluster's order."""
    able = cluster.prefillers
    if not config.adapts_prefillers:
        return able
    fixed = [e for e in able if not e.takes_conversations]
    free = [e for e in able if e.takes_conversations and _is_faster(e, cluster.decoders, config)]
    wanted = min(_wanted(cluster, able, config), _affordable(cluster, config)) - len(fixed)
    is_fast = {e.name: e.prefill_tokens_per_s >= ALIKE * _fastest(able) for e in free}
    free.sort(key=lambda e: (not is_fast[e.name], e.kv_share))
    names = {e.name for e in (*fixed, *free[: max(0, wanted)])}
    return tuple(e for e in able if e.name in names)


def _is_faster(engine: EngineView, decoders: Sequence[EngineView], config: ConServePlusConfig) -> bool:
    """Whether it prefills so much faster than the slowest decoder that prefilling for it pays."""
    slowest = min((d.prefill_tokens_per_s for d in decoders), default=0.0)
    return engine.prefill_tokens_per_s >= config.min_prefill_speedup * slowest


def are_alike(engines: Sequence[EngineView]) -> bool:
    """Whether the engines decode about equally fast."""
    steps = [e.decode_step_s for e in engines]
    return not steps or min(steps) >= ALIKE * max(steps)


def _wanted(cluster: ClusterView, able: Sequence[EngineView], config: ConServePlusConfig) -> int:
    """Prefillers that the first turns of the window would have kept busy."""
    if not able:
        return 0
    mean_speed = sum(e.prefill_tokens_per_s for e in able) / len(able)
    return max(0, ceil(cluster.first_turn_tokens_per_s / mean_speed - config.prefiller_slack))


def _affordable(cluster: ClusterView, config: ConServePlusConfig) -> int:
    """Engines that bound conversations can spare, and at most the configured share of all."""
    count = len(cluster.engines)
    holders = [e for e in cluster.engines if e.kv_capacity_tokens is not None and e.budget_tokens]
    capacity = sum(e.kv_capacity_tokens or 0 for e in holders)
    bound = sum(e.reserved_tokens + e.unaccounted_tokens for e in holders)
    spare = count * (1 - bound / (config.kv_headroom * capacity)) if capacity else float(count)
    return max(0, min(floor(count * config.max_prefiller_share), floor(spare)))


def _fastest(engines: Sequence[EngineView]) -> float:
    return max((e.prefill_tokens_per_s for e in engines), default=0.0)
