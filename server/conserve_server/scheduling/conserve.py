"""ConServe's rule (arXiv 2606.01839): prefill once elsewhere, move once, stay pinned.

First turn: the prefiller with the fewest queued prompt tokens; the decoder with the most
free KV among those where the prompt fits, room on it reserved before the prefill starts.
Later turns: the bound decoder, whatever its load. Reads queued prompt tokens, reserved KV
tokens and the first turn's length.
"""

from __future__ import annotations

from conserve_sdk.protocol import Path
from conserve_server.core.turn import Placement
from conserve_server.scheduling.policy import ClusterView, TurnView


class ConServe:
    """The policy of the paper, admission in `grow` mode."""

    def place(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        if turn.bound_decoder is not None:
            return Placement(Path.PINNED, turn.bound_decoder)
        fitting = [d for d in cluster.decoders if d.free_tokens >= turn.prompt_tokens]
        if not fitting:
            return None
        decoder = max(fitting, key=lambda d: d.free_tokens)
        if not cluster.prefillers:
            return Placement(Path.LOCAL_PREFILL, decoder.name)
        prefiller = min(cluster.prefillers, key=lambda p: p.queued_tokens)
        return Placement(Path.REMOTE_PREFILL, decoder.name, prefiller.name)
