"""PPD (arXiv 2603.13358): first turns through a prefiller, later turns by a score.

Score of staying local = weight × relative gain in time to first token − weight × relative
loss in time per output token; short appends stay without one. The authors read both terms
from a table that they measured per context length, length class and rate; here they are
estimated from observed queues, speeds and batches, the same for every machine. Reads the
turn's uncached length, queued prompt tokens, running turns, speeds, the mean answer, free KV.
"""

from __future__ import annotations

from conserve_server.core.policy_config import EstimatesConfig, PPDConfig
from conserve_server.core.turn import Placement
from conserve_server.scheduling.choices import freest, placed, shortest_queue
from conserve_server.scheduling.estimates import Estimates
from conserve_server.scheduling.policy import ClusterView, EngineView, TurnView


class PPD:
    """Append-prefill where it pays."""

    def __init__(self, config: PPDConfig, estimates: EstimatesConfig) -> None:
        self._config = config
        self._estimates = Estimates(estimates)

    def place(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        if turn.bound_decoder is None:
            best = freest(cluster, turn.own_tokens)
            return placed(turn, best.name, shortest_queue(cluster, but=(best.name,))) if best else None
        decoder = cluster.engine(turn.bound_decoder)
        prefiller = shortest_queue(cluster, but=(turn.bound_decoder,))
        if decoder is None or prefiller is None or self._stays(turn, decoder, prefiller, cluster):
            return placed(turn, turn.bound_decoder, None)
        return placed(turn, decoder.name, prefiller)

    def _stays(
        self, turn: TurnView, decoder: EngineView, prefiller: EngineView, cluster: ClusterView
    ) -> bool:
        uncached_tokens = turn.uncached_tokens(decoder.name)
        if uncached_tokens < self._config.short_append_tokens:
            return True
        remote_s = self._estimates.remote_s(turn, prefiller, decoder)
        gain = (remote_s - self._estimates.local_s(turn, decoder)) / remote_s
        loss = _tpot_loss(uncached_tokens, decoder, cluster.mean_output_tokens)
        return self._config.ttft_weight * gain - self._config.tpot_weight * loss > 0


def _tpot_loss(uncached_tokens: int, decoder: EngineView, mean_output_tokens: float) -> float:
    """How much longer the running turns' answers take, relative to undisturbed ones; 0 where none runs."""
    if not decoder.batch:
        return 0.0
    prefill_s = uncached_tokens / decoder.prefill_tokens_per_s
    return prefill_s / (max(1.0, mean_output_tokens) * decoder.decode_step_s)
