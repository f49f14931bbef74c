"""Collocated, sticky: SMetric's rule (arXiv 2607.08565).

A first turn balances load. Later turns stay where the cache is, unless that engine has more
than twice the mean load or its cache hit fell short of what was expected; then the turn
balances load again. Reads running turns, queued prompt tokens, free KV, and the cache hit
that the engine reported for the conversation's turn before.
"""

from __future__ import annotations

from conserve_server.core.policy_config import CollocatedStickyConfig
from conserve_server.core.turn import Placement
from conserve_server.scheduling.choices import least_busy, placed
from conserve_server.scheduling.policy import ClusterView, EngineView, TurnView


class CollocatedSticky:
    """Affinity with two ways out."""

    def __init__(self, config: CollocatedStickyConfig) -> None:
        self._config = config

    def place(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        bound = turn.bound_decoder
        best = least_busy(cluster, turn.own_tokens)
        if bound is None:
            return placed(turn, best.name, None) if best else None
        if best is None or not turn.may_move or not self._should_leave(turn, cluster.engine(bound), cluster):
            return placed(turn, bound, None)
        return placed(turn, best.name, None)

    def _should_leave(self, turn: TurnView, bound: EngineView | None, cluster: ClusterView) -> bool:
        if turn.hit_share is not None and turn.hit_share < self._config.min_hit_share:
            return True
        if bound is None or bound.batch < self._config.min_load_turns:
            return False
        mean_load = sum(d.batch for d in cluster.decoders) / max(1, len(cluster.decoders))
        return bound.batch > self._config.max_load_ratio * mean_load
