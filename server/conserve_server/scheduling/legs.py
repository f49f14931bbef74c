"""A turn's legs, booked on their engines: sent, prefilled, first token, tokens, over.

What a policy may observe comes from here; which leg follows which is the scheduler's.
"""

from __future__ import annotations

from typing import Final

from conserve_server.core.policy_config import EstimatesConfig
from conserve_server.core.turn import Placement
from conserve_server.scheduling.actions import Action, StartDecode, StartPrefill
from conserve_server.scheduling.conversation import TurnState
from conserve_server.scheduling.engine_pools import EnginePools
from conserve_server.scheduling.observations import RunningMean, Smoothed, Window
from conserve_server.scheduling.policy import ClusterView, LazyClusterView, TurnView

MAX_TRANSFERS: Final = 2
"""Pulls of one turn that may fail before its prompt is prefilled where it is decoded."""


class Legs:
    """Debits engines when a leg is sent and credits them when it is over, once each."""

    def __init__(self, pools: EnginePools, config: EstimatesConfig) -> None:
        self._pools = pools
        self._outputs = RunningMean(config.mean_output_tokens)
        self._first_turns = Window(config.window_s)
        self._fresh_share = Smoothed(1.0, config.fresh_smoothing)

    # -- begin ---------------------------------------------------------------------------------

    def start(self, state: TurnState, now_s: float) -> Action:
        """Send the turn's first leg: the prefill leg if it was placed with one, else the decode leg."""
        placement = placement_of(state)
        engine_name = placement.prefiller or placement.decoder
        uncached_tokens = self._send(state, engine_name, now_s)
        engine = self._pools.find(engine_name)
        if engine is not None:
            engine.queue(state.id, uncached_tokens)
        if placement.prefiller is not None:
            return StartPrefill(state.id, placement, state.rebind)
        return self._decode(state, placement)

    def start_decode(self, state: TurnState, now_s: float) -> Action:
        """Send the decode leg of a turn whose KV lies on a prefiller."""
        placement = placement_of(state)
        self._send(state, placement.decoder, now_s)
        return self._decode(state, placement)

    def _send(self, state: TurnState, engine: str, now_s: float) -> int:
        """Note the time; the prompt tokens that the engine has not seen."""
        state.sent_s = now_s
        state.started_s = now_s if state.started_s is None else state.started_s
        state.expected_hit_tokens = state.conversation.context_tokens.get(engine, 0)
        return max(1, state.prompt_tokens - max(state.expected_hit_tokens, self.shared_tokens(state)))

    def shared_tokens(self, state: TurnState) -> int:
        """Prompt tokens that others hold too: as its first turn showed, or as those of others did."""
        known = state.conversation.shared_tokens
        return round((1 - self._fresh_share.value) * state.prompt_tokens) if known is None else known

    def own_tokens(self, state: TurnState, tokens: int) -> int:
        """Of so many tokens of its conversation those that no other holds; at least one."""
        return max(1, tokens - self.shared_tokens(state))

    def _decode(self, state: TurnState, placement: Placement) -> Action:
        decoder = self._pools.find(placement.decoder)
        if decoder is not None:
            decoder.run(state.id, state.conversation.id)
        return StartDecode(state.id, placement, state.rebind)

    # -- on the way ----------------------------------------------------------------------------

    def first_turn_arrived(self, state: TurnState, now_s: float) -> None:
        self._first_turns.add(now_s, state.prompt_tokens)

    def prefilled(
        self, state: TurnState, prompt_tokens: int, cached_tokens: int | None, now_s: float
    ) -> bool:
        """The prefill leg is over, and the engine has counted. False if that engine is gone, or another, now.

        Its KV is gone with it: a decoder can crash on a pull from an engine that was restarted (vllm#49238).
        """
        name = placement_of(state).prefiller
        engine = self._pools.find(name)
        state.prompt_tokens = prompt_tokens
        if name is None or engine is None or engine.unqueue(state.id) is None:
            return False
        hit_tokens = state.expected_hit_tokens if cached_tokens is None else cached_tokens
        self._learn_shared(state, cached_tokens)
        engine.prefilled(prompt_tokens - hit_tokens, state.sent_s, now_s)
        state.conversation.context_tokens[name] = prompt_tokens
        state.conversation.last_prefiller = name
        return True

    def first_token(self, state: TurnState, now_s: float | None) -> None:
        """The decoder has answered; None: at a time that was not observed."""
        state.has_answered = True
        state.last_token_s = now_s
        placement = placement_of(state)
        decoder = self._pools.find(placement.decoder)
        local_tokens = decoder.unqueue(state.id) if decoder is not None else None
        if not state.is_stranded:
            state.conversation.context_tokens[placement.decoder] = state.prompt_tokens
            state.conversation.evicted_tokens = 0
        if now_s is None or decoder is None:
            return
        if local_tokens is not None:
            decoder.prefilled(local_tokens, state.sent_s, now_s)
        prefilled_on = self._pools.find(placement.prefiller or placement.decoder)
        if prefilled_on is not None and state.started_s is not None:
            prefilled_on.first_token(now_s - state.started_s, now_s)

    def tokens(self, state: TurnState, count: int, now_s: float) -> None:
        """`count` output tokens came since the last report of this turn."""
        state.later_tokens += count
        decoder = self._pools.find(placement_of(state).decoder)
        if decoder is not None and state.last_token_s is not None and now_s > state.last_token_s:
            decoder.tokens(count, now_s - state.last_token_s, now_s)
        state.last_token_s = now_s

    # -- end -----------------------------------------------------------------------------------

    def over(self, state: TurnState) -> None:
        """No leg of the turn runs any more."""
        if state.placement is None:
            return
        for name in (state.placement.prefiller, state.placement.decoder):
            engine = self._pools.find(name)
            if engine is not None:
                engine.stop(state.id)

    def learn(
        self,
        state: TurnState,
        kv_tokens: int | None,
        output_tokens: int | None,
        cached_tokens: int | None,
    ) -> None:
        """What the ended turn tells of later ones: lengths of answers, cache hits, contexts."""
        placement, conversation = state.placement, state.conversation
        if placement is None or not state.has_answered or state.is_stranded:
            return
        self._outputs.add(1 + state.later_tokens if output_tokens is None else output_tokens)
        if kv_tokens is not None and conversation.decoder == placement.decoder:
            conversation.context_tokens[placement.decoder] = kv_tokens
        if placement.prefiller is None and cached_tokens is not None and state.expected_hit_tokens:
            conversation.hit_share = cached_tokens / state.expected_hit_tokens
        if placement.prefiller is None:
            self._learn_shared(state, cached_tokens)

    def _learn_shared(self, state: TurnState, cached_tokens: int | None) -> None:
        """What a first turn had cached where nothing of its conversation had been is another's."""
        if state.index == 0 and cached_tokens is not None and not state.expected_hit_tokens:
            shared_tokens = min(cached_tokens, state.prompt_tokens)
            state.conversation.shared_tokens = shared_tokens
            self._fresh_share.add(1 - shared_tokens / state.prompt_tokens)

    # -- views ---------------------------------------------------------------------------------

    def cluster_view(self, now_s: float) -> ClusterView:
        """What a policy may read of the cluster."""
        return LazyClusterView(
            self._pools.kept_views,
            now_s=now_s,
            mean_output_tokens=self._outputs.value,
            first_turn_tokens_per_s=self._fresh_share.value * self._first_turns.rate_per_s(now_s),
        )

    def cluster_for(self, state: TurnState, now_s: float) -> ClusterView:
        """The cluster without the engines that failed the turn, where others are left to do their work.

        A transfer that failed may be either side's fault. After a second one the turn is prefilled locally.
        """
        view = self.cluster_view(now_s)
        if not state.failed_on:
            return view
        failed = state.failed_on
        spares_decoders = any(d.name not in failed for d in view.decoders)
        spares_prefillers = any(p.name not in failed for p in view.prefillers)
        is_local = state.transfer_failures >= MAX_TRANSFERS
        engines = tuple(
            e._replace(
                takes_conversations=e.takes_conversations and not (spares_decoders and e.name in failed),
                takes_prefills=e.takes_prefills
                and not is_local
                and not (spares_prefillers and e.name in failed),
            )
            for e in view.engines
        )
        return ClusterView(
            engines=engines,
            now_s=now_s,
            mean_output_tokens=view.mean_output_tokens,
            first_turn_tokens_per_s=view.first_turn_tokens_per_s,
        )

    def turn_view(self, state: TurnState) -> TurnView:
        """What a policy may read of the turn."""
        conversation = state.conversation
        return TurnView(
            conversation_id=conversation.id,
            prompt_tokens=state.prompt_tokens,
            index=state.index,
            arrived_s=state.arrived_s,
            bound_decoder=conversation.decoder,
            last_prefiller=conversation.last_prefiller,
            context_tokens=conversation.context_tokens,
            shared_tokens=self.shared_tokens(state),
            evicted_tokens=conversation.evicted_tokens,
            hit_share=conversation.hit_share,
            may_move=not conversation.running,
            total_tokens=state.turn.total_tokens,
        )


def placement_of(state: TurnState) -> Placement:
    """The placement of a turn that was sent somewhere."""
    if state.placement is None:
        raise RuntimeError(f"turn {state.id} was not placed yet")
    return state.placement
