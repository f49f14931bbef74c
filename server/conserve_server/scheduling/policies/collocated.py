"""Collocated, least loaded: each turn runs whole on the engine with the fewest turns.

What a load balancer that counts outstanding requests does. A turn that lands on another
engine prefills its whole history there. Reads running turns, queued prompt tokens and free KV.
"""

from __future__ import annotations

from conserve_server.core.turn import Placement
from conserve_server.scheduling.choices import LEAST_BUSY, need_of, placed
from conserve_server.scheduling.policy import ClusterView, TurnView


class Collocated:
    """The load balancer without affinity."""

    def place(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        bound = turn.bound_decoder
        if bound is not None and not turn.may_move:
            return placed(turn, bound, None)
        need = need_of(cluster, turn.own_tokens, but=() if bound is None else (bound,))
        decoders = cluster.ordered(LEAST_BUSY)
        best = next((d for d in decoders if d.name == bound or d.free_tokens >= need), None)
        if best is None:
            return placed(turn, bound, None) if bound is not None else None
        return placed(turn, best.name, None)
