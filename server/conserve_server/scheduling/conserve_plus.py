"""ConServe+: a first turn is prefilled where it is ready first; what arrives is observed, nothing predicted.

Spill: the prefill pool is used while its wait is short or shorter than a decoder's, else the
first turn is prefilled on the decoder where it will live. A new conversation is held until it
finds room for itself and for the growth of those bound before it. Later turns stay on their
decoder; a long append is prefilled elsewhere when that is ready much sooner. First turns may
carry a later vLLM priority than continuations. Speeds are in every estimate, so that mixed
tiers need no rule of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

from conserve_server.core.policy_config import ConServePlusConfig, EstimatesConfig
from conserve_server.core.turn import Placement
from conserve_server.scheduling.acting import acting_prefillers, are_alike
from conserve_server.scheduling.choices import fitting, freest, placed
from conserve_server.scheduling.estimates import Estimates
from conserve_server.scheduling.policy import ClusterView, EngineView, TurnView


class ConServePlus:
    """The extension of ConServe."""

    def __init__(self, config: ConServePlusConfig, estimates: EstimatesConfig) -> None:
        self._config = config
        self._estimates = Estimates(estimates)

    def place(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        if turn.bound_decoder is not None:
            return self._place_later(turn, turn.bound_decoder, cluster)
        return self._place_first(turn, cluster, acting_prefillers(cluster, self._config))

    # -- first turns ---------------------------------------------------------------------------

    def _place_first(
        self, turn: TurnView, cluster: ClusterView, acting: Sequence[EngineView]
    ) -> Placement | None:
        need = turn.prompt_tokens + self._config.growth_outputs * cluster.mean_output_tokens
        names = {p.name for p in acting}
        homes = fitting([d for d in cluster.decoders if d.name not in names], need)
        if not homes or not acting:
            return self._place_locally(turn, fitting(cluster.decoders, need))
        prefiller = min(acting, key=lambda p: self._ready_s(turn, p))
        spill = min(homes, key=self._score)
        if self._should_spill(turn, prefiller, spill):
            return self._place_locally(turn, [spill])
        home = freest(homes) if are_alike(homes) else spill
        return placed(turn, home.name, prefiller, priority=self._priority(turn)) if home else None

    def _place_locally(self, turn: TurnView, decoders: Sequence[EngineView]) -> Placement | None:
        best = min(decoders, key=self._score, default=None)
        return placed(turn, best.name, None, priority=self._priority(turn)) if best else None

    def _should_spill(self, turn: TurnView, prefiller: EngineView, decoder: EngineView) -> bool:
        """Whether the pool's wait is long and the decoder would have the turn ready sooner."""
        if self._estimates.wait_s(prefiller) <= self._config.spill_wait_s:
            return False
        return self._ready_s(turn, prefiller) > self._ready_s(turn, decoder)

    def _score(self, decoder: EngineView) -> float:
        """How unwelcome one more conversation is: its KV now, its wait and half its batch's step."""
        step_s = decoder.decode_step_s * decoder.batch / 2
        return decoder.kv_share + self._config.load_weight * (self._estimates.wait_s(decoder) + step_s)

    def _ready_s(self, turn: TurnView, engine: EngineView) -> float:
        return self._estimates.ready_s(engine, turn.uncached_tokens(engine.name))

    def _priority(self, turn: TurnView) -> int | None:
        """Later than continuations; a conversation that lost its decoder is one."""
        return (self._config.first_turn_priority or None) if turn.index == 0 else None

    # -- later turns ---------------------------------------------------------------------------

    def _place_later(self, turn: TurnView, bound: str, cluster: ClusterView) -> Placement:
        decoder = cluster.engine(bound) if self._is_long(turn, bound) else None
        if decoder is None:
            return placed(turn, bound, None)
        others = [p for p in acting_prefillers(cluster, self._config) if p.name != bound]
        best = min(others, key=lambda p: self._estimates.remote_s(turn, p, decoder), default=None)
        if best is None:
            return placed(turn, bound, None)
        gained = self._estimates.local_s(turn, decoder) / self._estimates.remote_s(turn, best, decoder)
        return placed(turn, bound, best if gained > self._config.append_gain else None)

    def _is_long(self, turn: TurnView, bound: str) -> bool:
        is_long = turn.uncached_tokens(bound) >= self._config.long_append_tokens
        return self._config.sends_long_appends and is_long
