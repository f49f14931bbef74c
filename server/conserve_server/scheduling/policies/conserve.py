"""ConServe's rule (arXiv 2606.01839): prefill once elsewhere, move once, stay pinned.

First turn: the prefiller with the fewest queued prompt tokens; the decoder with the most
free KV among those where the need fits, room on it reserved before the prefill starts.
Later turns: the bound decoder, whatever its load. The need is the first turn's length
(`grow`), or the conversation's total in the replay of a trace (`oracle`). Where tiers are for
one phase, engines of that tier go first in it. Reads queued prompt tokens, reserved KV tokens,
the first turn's length and what tiers are for.
"""

from __future__ import annotations

from conserve_server.core.errors import ConfigError
from conserve_server.core.policy_config import ConServeConfig
from conserve_server.core.turn import Placement
from conserve_server.scheduling.choices import freest_by_tier, placed, shortest_queue_by_tier
from conserve_server.scheduling.policy import ClusterView, TurnView


class ConServe:
    """The policy of the paper."""

    def __init__(self, config: ConServeConfig | None = None) -> None:
        self._is_oracle = config is not None and config.mode == "oracle"

    def place(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        if turn.bound_decoder is not None:
            return placed(turn, turn.bound_decoder, None)
        total_tokens = _total_tokens(turn) if self._is_oracle else None
        decoder = freest_by_tier(cluster, total_tokens or turn.own_tokens)
        if decoder is None:
            return None
        prefiller = shortest_queue_by_tier(cluster, but=(decoder.name,))
        return placed(turn, decoder.name, prefiller, reserve_tokens=total_tokens)


def _total_tokens(turn: TurnView) -> int:
    if turn.total_tokens is None:
        raise ConfigError(
            'scheduler.conserve.mode = "oracle" needs the replay of a trace, which knows what a '
            'conversation will hold: use "grow" to serve'
        )
    return turn.total_tokens
