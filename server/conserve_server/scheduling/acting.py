"""Which engines do nothing but prefill now: as many as the observed first-turn load asks for.

Engines that can do nothing else always act. Of those with both roles only a faster kind than
the slowest decoder acts: among equals a queue and a transfer cost more than they spare. Under a
load that does not fill one, a faster engine prefills for others beside its own conversations.
The fastest kind acts first, then those with least KV bound: nobody is bound to an acting
prefiller anew, so the choice keeps itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Final

from conserve_server.core.policy_config import ConServePlusConfig
from conserve_server.scheduling.policy import ClusterView, EngineView, Order

ALIKE = 0.8
"""Engines at least this fast, relative to the fastest, count as one kind: observed speeds vary."""


_BOTH: Final = Order(lambda e: e.takes_prefills and e.takes_conversations, lambda _: ())


@dataclass(frozen=True, slots=True)
class Roles:
    """Names of the engines with both roles: those that prefill for others now, those that don't."""

    prefilling: frozenset[str] = frozenset()
    holding: frozenset[str] = frozenset()


def roles_now(cluster: ClusterView, config: ConServePlusConfig) -> Roles:
    """What each engine with both roles does now."""
    both = list(cluster.ordered(_BOTH))
    if not both:
        return Roles()
    if not config.adapts_prefillers:
        return Roles(prefilling=frozenset(e.name for e in both))
    able = cluster.prefillers
    fixed = len(able) - len(both)
    slowest = min((d.prefill_tokens_per_s for d in cluster.decoders), default=0.0)
    free = [e for e in both if e.prefill_tokens_per_s >= config.min_prefill_speedup * slowest]
    wanted = min(_wanted(cluster, able, config), _affordable(cluster, config)) - fixed
    is_fast = {e.name: e.prefill_tokens_per_s >= ALIKE * _fastest(able) for e in free}
    free.sort(key=lambda e: (not is_fast[e.name], e.kv_share))
    prefilling = frozenset(e.name for e in free[: max(0, wanted)])
    return Roles(prefilling, frozenset(e.name for e in both) - prefilling)


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
