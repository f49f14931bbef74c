"""ConServe+: a first turn is prefilled where it is ready first; what arrives is observed, nothing predicted.

Spill: the prefill pool is used while its wait is short or shorter than a decoder's, else the
first turn is prefilled on the decoder where it will live. Engines of a faster kind prefill for
slower ones beside the conversations that they hold. A new conversation is held until it finds
room for itself and for the growth of those bound before it. Later turns stay on their decoder
while it holds their KV; what was evicted is placed as if it were new, and a long append is
prefilled elsewhere when that is ready much sooner. First turns may carry a later vLLM priority
than continuations. Speeds are in every estimate, so that mixed tiers need no rule of their own.
"""

from __future__ import annotations

from collections.abc import Collection
from math import inf
from typing import Final

from conserve_server.core.policy_config import ConServePlusConfig, EstimatesConfig
from conserve_server.core.turn import Placement
from conserve_server.scheduling.acting import ALIKE, Roles, roles_now
from conserve_server.scheduling.choices import (
    FREEST,
    first_of,
    need_of,
    placed,
    takes_conversations,
    takes_prefills,
)
from conserve_server.scheduling.estimates import Estimates
from conserve_server.scheduling.policy import ClusterView, EngineView, Order, TurnView

_FASTEST_PREFILL: Final = Order(takes_prefills, lambda p: (-p.prefill_tokens_per_s,))
_FASTEST_STEP: Final = Order(takes_conversations, lambda d: (d.decode_step_s,))
_SLOWEST_STEP: Final = Order(takes_conversations, lambda d: (-d.decode_step_s,))


class ConServePlus:
    """The extension of ConServe."""

    def __init__(self, config: ConServePlusConfig, estimates: EstimatesConfig) -> None:
        self._config = config
        self._estimates = Estimates(estimates)
        self._by_score = Order(takes_conversations, lambda d: (self._score(d),))
        self._by_wait = Order(takes_prefills, lambda p: (self._estimates.wait_s(p), -p.prefill_tokens_per_s))

    def place(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        bound = turn.bound_decoder
        if bound is None:
            return self._place_first(turn, cluster)
        if self._is_evicted(turn):
            anew = self._place_first(turn, cluster)
            if anew is not None and anew.decoder != bound:
                return anew
        return self._place_later(turn, bound, cluster)

    # -- first turns ---------------------------------------------------------------------------

    def _place_first(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        tokens = turn.own_tokens + self._config.growth_outputs * cluster.mean_output_tokens
        roles = roles_now(cluster, self._config)
        spill = self._best(cluster, tokens, but=roles.prefilling)
        if spill is None:
            return self._placed_locally(turn, self._best(cluster, tokens))
        prefiller = self._soonest(turn, cluster, but=self._not_for(spill, roles, cluster))
        if prefiller is None or self._should_spill(turn, prefiller, spill, roles):
            return self._placed_locally(turn, spill)
        home = spill
        if _are_alike(cluster, but=roles.prefilling):
            home = first_of(cluster.ordered(FREEST), but=roles.prefilling | {prefiller.name}) or spill
        return placed(turn, home.name, prefiller, priority=self._priority(turn))

    def _placed_locally(self, turn: TurnView, decoder: EngineView | None) -> Placement | None:
        return placed(turn, decoder.name, None, priority=self._priority(turn)) if decoder else None

    def _best(self, cluster: ClusterView, tokens: float, *, but: Collection[str] = ()) -> EngineView | None:
        """The decoder with the best score of those with room for so many tokens."""
        need = need_of(cluster, tokens, but=but)
        roomiest = first_of(cluster.ordered(FREEST), but=but)
        if roomiest is None or roomiest.free_tokens < need:
            return None
        fitting = (d for d in cluster.ordered(self._by_score) if d.free_tokens >= need)
        return first_of(fitting, but=but)

    def _soonest(self, turn: TurnView, cluster: ClusterView, *, but: Collection[str]) -> EngineView | None:
        """The prefiller that has the turn ready first.

        Those that hold some of its context are asked each. The others compute all of it: in the order of
        their waits, until the wait alone leaves no chance to the fastest.
        """
        held = [cluster.engine(name) for name in turn.context_tokens]
        able = [p for p in held if p is not None and p.takes_prefills and p.name not in but]
        best = min(able, key=lambda p: self._ready_s(turn, p), default=None)
        best_s = self._ready_s(turn, best) if best is not None else inf
        fastest = next(cluster.ordered(_FASTEST_PREFILL), None)
        least_s = turn.own_tokens / fastest.prefill_tokens_per_s if fastest is not None else 0.0
        for prefiller in cluster.ordered(self._by_wait):
            if self._estimates.wait_s(prefiller) + least_s >= best_s:
                break
            if prefiller.name not in but and self._ready_s(turn, prefiller) < best_s:
                best, best_s = prefiller, self._ready_s(turn, prefiller)
        return best

    def _not_for(self, decoder: EngineView, roles: Roles, cluster: ClusterView) -> Collection[str]:
        """The decoder itself, and engines with conversations of their own that are not much faster."""
        least_speed = self._config.min_prefill_speedup * decoder.prefill_tokens_per_s
        holding = (cluster.engine(name) for name in roles.holding)
        slow = {e.name for e in holding if e is not None and e.prefill_tokens_per_s < least_speed}
        return slow | {decoder.name}

    def _should_spill(self, turn: TurnView, prefiller: EngineView, decoder: EngineView, roles: Roles) -> bool:
        """Whether the decoder would have the turn ready sooner.

        An engine that only prefills is used all the same while its wait is short.
        """
        is_free = prefiller.name not in roles.holding
        if is_free and self._estimates.wait_s(prefiller) <= self._config.spill_wait_s:
            return False
        return self._estimates.remote_s(turn, prefiller, decoder) > self._ready_s(turn, decoder)

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
        roles = roles_now(cluster, self._config)
        best = self._soonest(turn, cluster, but=self._not_for(decoder, roles, cluster))
        if best is None:
            return placed(turn, bound, None)
        gained = self._estimates.local_s(turn, decoder) / self._estimates.remote_s(turn, best, decoder)
        return placed(turn, bound, best if gained > self._config.append_gain else None)

    def _is_evicted(self, turn: TurnView) -> bool:
        """Whether most of what the conversation had on its decoder is gone: little is left to stay for."""
        return turn.may_move and turn.evicted_tokens >= self._config.evicted_share * turn.own_tokens

    def _is_long(self, turn: TurnView, bound: str) -> bool:
        is_long = turn.uncached_tokens(bound) >= self._config.long_append_tokens
        return self._config.sends_long_appends and is_long


def _are_alike(cluster: ClusterView, *, but: Collection[str]) -> bool:
    """Whether the decoders decode about equally fast."""
    fastest = first_of(cluster.ordered(_FASTEST_STEP), but=but)
    slowest = first_of(cluster.ordered(_SLOWEST_STEP), but=but)
    return fastest is None or slowest is None or fastest.decode_step_s >= ALIKE * slowest.decode_step_s
