"""AMPD (arXiv 2602.14516): where a later turn is prefilled follows the live slack of both sides.

First turns go through a prefiller. A later turn stays on its decoder while the gaps between
tokens there leave slack against their target; else it goes to a prefiller whose time to first
token leaves slack against its own; where neither side has any, the side with more. Prefill
legs may carry their deadline as priority, so that engines reorder them. Slack is measured on
windowed means. Reads observed TTFT and ITL, queued prompt tokens, free KV and speeds.
"""

from __future__ import annotations

from conserve_server.core.policy_config import AMPDConfig
from conserve_server.core.turn import Placement
from conserve_server.scheduling.choices import freest, placed
from conserve_server.scheduling.policy import ClusterView, EngineView, TurnView


class AMPD:
    """Local or remote by slack."""

    def __init__(self, config: AMPDConfig) -> None:
        self._config = config

    def place(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        bound = turn.bound_decoder
        if bound is not None:
            decoder = cluster.engine(bound)
            prefiller = self._roomiest(cluster, bound)
            stays = decoder is None or prefiller is None or self._stays(decoder, prefiller)
            return self._placed(turn, bound, None if stays else prefiller)
        best = freest(cluster, turn.own_tokens)
        return self._placed(turn, best.name, self._roomiest(cluster, best.name)) if best else None

    def _stays(self, decoder: EngineView, prefiller: EngineView) -> bool:
        itl_slack, ttft_slack = self._itl_slack(decoder), self._ttft_slack(prefiller)
        if itl_slack >= self._config.min_slack:
            return True
        return ttft_slack < self._config.min_slack and itl_slack >= ttft_slack

    def _roomiest(self, cluster: ClusterView, decoder: str) -> EngineView | None:
        """The prefiller with most slack; among equals, with the shortest queue."""
        others = [p for p in cluster.prefillers if p.name != decoder]
        return min(others, key=lambda p: (-self._ttft_slack(p), p.queued_tokens), default=None)

    def _itl_slack(self, engine: EngineView) -> float:
        return 1 - (engine.itl_s or 0.0) / self._config.itl_slo_s

    def _ttft_slack(self, engine: EngineView) -> float:
        return 1 - (engine.ttft_s or 0.0) / self._config.ttft_slo_s

    def _placed(self, turn: TurnView, decoder: str, prefiller: EngineView | None) -> Placement:
        if prefiller is None or not self._config.reorders_prefills:
            return placed(turn, decoder, prefiller)
        prefill_s = turn.uncached_tokens(prefiller.name) / prefiller.prefill_tokens_per_s
        latest_start_s = turn.arrived_s + self._config.ttft_slo_s - prefill_s
        return placed(turn, decoder, prefiller, priority=round(latest_start_s * 1000))
