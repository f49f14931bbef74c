"""Full disaggregation: every turn goes through a prefiller to a decoder.

What Ray Serve LLM, production-stack, AIBrix and vLLM's example proxy do: the prefiller with
the shortest queue, the decoder with the fewest turns, for each turn anew. `is_sticky` keeps a
conversation's engines, so that both sides hit their caches. Reads queued prompt tokens,
running turns, free KV, and where the conversation was.
"""

from __future__ import annotations

from conserve_server.core.policy_config import FullDisaggregationConfig
from conserve_server.core.turn import Placement
from conserve_server.scheduling.choices import least_busy, placed, shortest_queue
from conserve_server.scheduling.policy import ClusterView, EngineView, TurnView


class FullDisaggregation:
    """Prefiller to decoder, each turn."""

    def __init__(self, config: FullDisaggregationConfig) -> None:
        self._is_sticky = config.is_sticky

    def place(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        decoder = self._decoder(turn, cluster)
        if decoder is None:
            return None
        return placed(turn, decoder, self._prefiller(turn, cluster, decoder))

    def _decoder(self, turn: TurnView, cluster: ClusterView) -> str | None:
        bound = turn.bound_decoder
        if bound is not None and (self._is_sticky or not turn.may_move):
            return bound
        best = least_busy(cluster, turn.own_tokens)
        return best.name if best else bound

    def _prefiller(self, turn: TurnView, cluster: ClusterView, decoder: str) -> EngineView | None:
        if self._is_sticky and turn.last_prefiller not in (None, decoder):
            last = cluster.engine(turn.last_prefiller or "")
            if last is not None and last.takes_prefills:
                return last
        return shortest_queue(cluster, but=(decoder,))
