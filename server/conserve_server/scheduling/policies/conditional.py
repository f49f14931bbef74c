"""Conditional disaggregation by uncached length: short prefills stay local, long ones go to a prefiller.

The rule of llm-d's prefix-based decider, NVIDIA Dynamo's conditional disaggregation and
vllm-router's threshold, with a conversation's decoder standing for the best prefix match.
Reads the turn's uncached length, free KV and queued prompt tokens.
"""

from __future__ import annotations

from conserve_server.core.policy_config import ConditionalConfig
from conserve_server.core.turn import Placement
from conserve_server.scheduling.choices import freest, placed, shortest_queue
from conserve_server.scheduling.policy import ClusterView, TurnView


class Conditional:
    """Local or remote by a threshold, each turn."""

    def __init__(self, config: ConditionalConfig) -> None:
        self._config = config

    def place(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        decoder = turn.bound_decoder
        if decoder is None:
            best = freest(cluster, turn.own_tokens)
            if best is None:
                return None
            decoder = best.name
        if self._is_short(turn, decoder):
            return placed(turn, decoder, None)
        return placed(turn, decoder, shortest_queue(cluster, but=(decoder,)))

    def _is_short(self, turn: TurnView, decoder: str) -> bool:
        uncached_tokens = turn.uncached_tokens(decoder)
        share = uncached_tokens / max(1, turn.prompt_tokens)
        return uncached_tokens < self._config.threshold_tokens and share <= self._config.max_local_share
