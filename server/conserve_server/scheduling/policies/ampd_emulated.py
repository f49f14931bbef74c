"""AMPD as ConServe's authors emulate it: ConServe with wrong turns.

The published comparison (arXiv 2606.01839) is against this, not against AMPD: a share of the
later turns is sent to a prefiller by mistake. Which ones follows from a seed, the conversation
and the turn's number alone. Reads what ConServe reads, and which turn this is.
"""

from __future__ import annotations

from hashlib import blake2b

from conserve_server.core.policy_config import AMPDEmulatedConfig
from conserve_server.core.turn import Placement
from conserve_server.scheduling.choices import placed, shortest_queue
from conserve_server.scheduling.policies.conserve import ConServe
from conserve_server.scheduling.policy import ClusterView, TurnView


class AMPDEmulated:
    """ConServe with prediction errors."""

    def __init__(self, config: AMPDEmulatedConfig, conserve: ConServe | None = None) -> None:
        self._config = config
        self._conserve = conserve or ConServe()

    def place(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        bound = turn.bound_decoder
        if bound is None or not self._is_wrong(turn):
            return self._conserve.place(turn, cluster)
        return placed(turn, bound, shortest_queue(cluster, but=(bound,)))

    def _is_wrong(self, turn: TurnView) -> bool:
        name = f"{self._config.seed}:{turn.index}:{turn.conversation_id}"
        drawn = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")
        return drawn < self._config.wrong_share * 2**64
