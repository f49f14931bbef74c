"""The scheduler: which engine serves which turn, decided from what was observed.

One pure state machine: no I/O, no clock, no randomness. A driver (the gateway, or a
simulation) reports what happened and carries out the actions that come back. The same
reports in the same order give the same actions. Every method that returns actions may
start turns other than the one it was called for. Times are the driver's monotonic seconds.
A policy that raises fails the turn that it was asked about (`PlacementFailed`), and no report.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from conserve_sdk.protocol import Path, RebindCause
from conserve_server.core.policy_config import EstimatesConfig
from conserve_server.core.turn import Turn
from conserve_server.scheduling.actions import Action
from conserve_server.scheduling.choices import shortest_queue
from conserve_server.scheduling.conversation import Conversation, State, TurnState
from conserve_server.scheduling.conversations import Conversations
from conserve_server.scheduling.engine_pools import EnginePools
from conserve_server.scheduling.engine_reports import EngineReports
from conserve_server.scheduling.engine_state import EngineProfile
from conserve_server.scheduling.leaving import Leaving
from conserve_server.scheduling.legs import Legs, placement_of
from conserve_server.scheduling.placing import Placing
from conserve_server.scheduling.policy import Policy


class Scheduler(EngineReports):
    """Conversations, their bindings, and the queue of turns that wait for room on a decoder.

    Reports of turns and conversations are here, those of engines in `EngineReports`.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        engines: Iterable[EngineProfile],
        kv_budget_fraction: float,
        estimates: EstimatesConfig | None = None,
    ) -> None:
        config = estimates or EstimatesConfig()
        pools = EnginePools(engines, kv_budget_fraction, config)
        self._legs = Legs(pools, config)
        super().__init__(Conversations(), pools, Placing(policy, pools, self._legs))
        self._turns: dict[int, TurnState] = {}
        self._arrivals = 0
        self._leaving = Leaving(self._conversations, pools, self._legs, self._placing)

    # -- what a driver may read --------------------------------------------------------------

    @property
    def waiting_turns(self) -> int:
        """Turns that wait for room."""
        return len(self._placing.waiting)

    def giving_tenants(self) -> frozenset[str]:
        """The tenants whose conversations at rest are to give their room to turns that wait.

        A tenant gives to its own turn that is next, and to others' what is more than its share.
        """
        return self._placing.giving_tenants()

    @property
    def rebinds_by_cause(self) -> Mapping[RebindCause, int]:
        """Bindings after a conversation's first, since the start."""
        return self._placing.rebinds

    @property
    def rebinds(self) -> int:
        """Bindings that replaced a lost one; those that a policy moved are not among them."""
        return sum(n for cause, n in self.rebinds_by_cause.items() if cause is not RebindCause.MOVED)

    def knows(self, turn_id: int) -> bool:
        """Whether the turn has arrived and not ended."""
        return turn_id in self._turns

    def is_waiting(self, turn_id: int) -> bool:
        """Whether the turn waits for room itself, and not for another turn's binding."""
        return turn_id in self._placing.waiting

    @property
    def conversations(self) -> Collection[Conversation]:
        """The live conversations."""
        return self._conversations.live

    def find(self, conversation_id: str) -> Conversation | None:
        """The live conversation of that id."""
        return self._conversations.find(conversation_id)

    def reserved_tokens(self, conversation_id: str) -> int:
        """KV tokens that are reserved for the conversation now."""
        return self.pools.held(conversation_id)

    def idle_since(self, limit_s: float) -> list[str]:
        """Conversations without a turn since `limit_s` (monotonic seconds) or longer, oldest first."""
        return self._conversations.idle_since(limit_s)

    # -- turns -------------------------------------------------------------------------------

    def on_turn(self, turn: Turn, now_s: float) -> list[Action]:
        """A turn arrived: a later turn starts at once, a first turn queues for room.

        A turn that comes while another one is placing its conversation waits for that binding.
        """
        self._placing.now_s = now_s
        conversation = self._conversations.wake(turn.conversation_id)
        self.pools.shares.belongs(conversation.id, turn.tenant)
        state = TurnState(turn, conversation, self._arrivals, conversation.turns, now_s, turn.prompt_tokens)
        self._arrivals += 1
        conversation.turns += 1
        self._turns[turn.id] = state
        if state.index == 0:
            self._legs.first_turn_arrived(state, now_s)
        return self._placing.dispatch(state)

    def on_prefilled(
        self, turn_id: int, prompt_tokens: int, now_s: float, cached_tokens: int | None = None
    ) -> list[Action]:
        """The prefill leg counted `prompt_tokens` and holds their KV: confirm the decoder.

        If its engine went down or was restarted meanwhile, the KV is gone: that is a leg that broke.
        """
        self._placing.now_s = now_s
        state = self._turns[turn_id]
        prompt_tokens = max(1, prompt_tokens)
        cached_tokens = _within(cached_tokens, 0, prompt_tokens)
        if not self._legs.prefilled(state, prompt_tokens, cached_tokens, now_s):
            return self.on_prefill_failed(turn_id, now_s)
        if not self._placing.has_its_decoder(state):
            return self._placing.place_again(state)
        placement = placement_of(state)
        ledger = self.pools.ledgers[placement.decoder]
        is_exact = state.conversation.leader is state and placement.reserve_tokens is None
        own_tokens = self._legs.own_tokens(state, prompt_tokens)
        (ledger.settle if is_exact else ledger.grow)(state.conversation.id, own_tokens)
        return [self._legs.start_decode(state, now_s), *self._placing.admit()]

    def on_prefill_failed(self, turn_id: int, now_s: float, *, is_lost: bool = False) -> list[Action]:
        """The prefill leg broke: a first turn tries one other prefiller, then the decoder itself prefills.

        `is_lost` as in `on_decode_failed`.
        """
        self._placing.now_s = now_s
        state = self._turns[turn_id]
        failed = placement_of(state)
        if is_lost and failed.prefiller is not None:
            self.pools.doubt(failed.prefiller)
        self._legs.over(state)
        if not self._placing.has_its_decoder(state):
            return self._placing.place_again(state)
        state.prefill_failures += 1
        cluster = self._legs.cluster_view(now_s)
        other = shortest_queue(cluster, but=(failed.prefiller or "", failed.decoder))
        is_leader = state.conversation.leader is state
        if other is not None and is_leader and state.prefill_failures == 1:
            return self._placing.start(state, replace(failed, prefiller=other.name))
        path = Path.LOCAL_PREFILL if is_leader else Path.PINNED
        return self._placing.start(state, replace(failed, path=path, prefiller=None))

    def on_first_token(self, turn_id: int, now_s: float, *, was_seen: bool = True) -> list[Action]:
        """The decoder answered: a first turn's binding is committed, waiting turns follow it.

        `was_seen`: the token came now; False where all that is known is that it must have come.
        """
        self._placing.now_s = now_s
        state = self._turns[turn_id]
        if state.has_answered:
            return []
        self._legs.first_token(state, now_s if was_seen else None)
        if state.conversation.leader is not state or not self._placing.has_its_decoder(state):
            return []  # a later turn, or a decoder that was lost while it answered
        return self._placing.bind(state)

    def on_decode_failed(self, turn_id: int, now_s: float, *, is_lost: bool) -> list[Action]:
        """The decode leg broke. Before its first token the turn is placed again, elsewhere if that can be.

        After it the turn is the driver's to end, and the conversation's next one is placed anew.
        `is_lost`: the engine could not be reached, broke off or fell silent. Its KV can't be counted on, and
        it takes nothing new until it is reported up. Other conversations stay bound to it: one broken
        connection is no proof. Else it answered, with an error of its own: it keeps the conversation, and a
        turn that is bound to it is sent there once more first.
        """
        self._placing.now_s = now_s
        state = self._turns[turn_id]
        decoder, conversation = placement_of(state).decoder, state.conversation
        self._legs.over(state)
        is_first_failure = decoder not in state.failed_on
        self._blame(state, is_lost=is_lost)
        is_bound = conversation.decoder is not None
        if not self._placing.has_its_decoder(state):
            if is_lost and conversation.decoder == decoder:  # bound there anew since the turn was sent
                self._placing.leave_decoder(conversation, decoder, RebindCause.ENGINE_LOST)
            return [] if state.has_answered else self._placing.place_again(state)
        if is_bound and not is_lost and state.has_answered:
            return []
        if is_bound and not is_lost and is_first_failure:
            return self._placing.start(state, replace(placement_of(state), path=Path.PINNED, prefiller=None))
        cause = RebindCause.ENGINE_LOST if is_lost else RebindCause.ENGINE_FAILED
        self._placing.leave_decoder(conversation, decoder, cause)
        again = [] if state.has_answered else self._placing.place_again(state)
        return [*again, *self._placing.admit()]

    def on_tokens(self, turn_id: int, count: int, now_s: float) -> list[Action]:
        """`count` more output tokens came after the first one. Report as often as is convenient."""
        self._placing.now_s = now_s
        state = self._turns[turn_id]
        self._legs.tokens(state, max(0, count), now_s)
        ledger = self.pools.ledgers.get(state.conversation.decoder or "")
        if ledger is not None and turn_id in state.conversation.running:
            kv_tokens = state.prompt_tokens + 1 + state.later_tokens
            ledger.grow(state.conversation.id, self._legs.own_tokens(state, kv_tokens))
        return []

    def on_turn_ended(
        self,
        turn_id: int,
        kv_tokens: int | None,
        now_s: float,
        *,
        output_tokens: int | None = None,
        cached_tokens: int | None = None,
    ) -> list[Action]:
        """The turn completed, failed or was cancelled, at any point of its life.

        As the engine counted, each None where nothing was learned: `kv_tokens` are prompt and
        output of this turn, the KV that the conversation now holds; `cached_tokens` those of
        the prompt that the decoder had.
        """
        self._placing.now_s = now_s
        state = self._turns.pop(turn_id)
        kv_tokens = _within(kv_tokens, 1)
        self._legs.over(state)
        try:
            self._legs.learn(state, kv_tokens, _within(output_tokens, 0), _within(cached_tokens, 0))
        finally:
            self._leaving.leave(state, kv_tokens)
        return self._placing.admit()

    def on_conversation_ended(self, conversation_id: str, now_s: float) -> list[Action]:
        """Free the conversation's reservation, once its running turns have ended."""
        self._placing.now_s = now_s
        conversation = self._conversations.find(conversation_id)
        if conversation is None:
            return []
        conversation.is_ending = True
        if not conversation.has_turns:
            self._leaving.forget(conversation, State.ENDED)
        return self._placing.admit()

    def on_conversation_expired(self, conversation_id: str, now_s: float) -> list[Action]:
        """Free the reservation of a conversation that is idle; nothing if a turn has come since."""
        self._placing.now_s = now_s
        conversation = self._conversations.find(conversation_id)
        if conversation is None or not self._conversations.is_idle(conversation_id):
            return []
        self._leaving.forget(conversation, State.EXPIRED)
        return self._placing.admit()

    def on_conversation_yielded(self, conversation_id: str, now_s: float) -> list[Action]:
        """Free the reservation of a conversation at rest, which goes on: its next turn binds it anew."""
        self._placing.now_s = now_s
        conversation = self._conversations.find(conversation_id)
        is_idle = conversation is not None and self._conversations.is_idle(conversation_id)
        if conversation is None or not is_idle or conversation.decoder is None:
            return []
        self._placing.yield_room(conversation, conversation.decoder)
        return self._placing.admit()

    # -- steps ---------------------------------------------------------------------------------

    def _blame(self, state: TurnState, *, is_lost: bool) -> None:
        """Note which engines failed the turn. Where KV was to be pulled an error may be either side's."""
        placement = placement_of(state)
        state.failed_on.add(placement.decoder)
        if is_lost:
            self.pools.doubt(placement.decoder)
        elif placement.prefiller is not None:
            state.failed_on.add(placement.prefiller)
            state.transfer_failures += 1


def _within(counted: int | None, least: int, most: int | None = None) -> int | None:
    """What an engine has counted, as far as it can be."""
    if counted is None:
        return None
    return max(least, counted if most is None else min(counted, most))
