"""Placing turns: the queue for room, the leader's placement, its binding, and what undoes it.

The steps of the state machine; which report leads to which step is `scheduler.py`'s.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator

from conserve_sdk.protocol import Path, RebindCause
from conserve_server.core.turn import Placement
from conserve_server.scheduling.actions import Action, PlacementFailed
from conserve_server.scheduling.admission_queue import AdmissionQueue
from conserve_server.scheduling.conversation import Conversation, State, TurnState
from conserve_server.scheduling.engine_pools import EnginePools
from conserve_server.scheduling.ledger import UNBOUNDED
from conserve_server.scheduling.legs import Legs, placement_of
from conserve_server.scheduling.policy import ClusterView, Policy


class Placing:
    """Carries out what the policy answers, and holds what waits for an answer."""

    def __init__(self, policy: Policy, pools: EnginePools, legs: Legs) -> None:
        self._policy = policy
        self._legs = legs
        self._pools = pools
        self.waiting = AdmissionQueue(pools.shares)
        self.now_s = 0.0
        """The driver's time at its latest report."""
        self.rebinds: Counter[RebindCause] = Counter()
        """Bindings after a conversation's first, since the start."""

    # -- placing -------------------------------------------------------------------------------

    def dispatch(self, state: TurnState) -> list[Action]:
        """Send a turn where its conversation is bound, behind the turn that places it, or into the queue."""
        conversation = state.conversation
        if conversation.decoder is not None:
            return self._attempt(state, self._start_bound) or []
        if conversation.leader is not None:
            conversation.followers.append(state)
            return []
        self._enqueue(state)
        return self.admit()

    def _enqueue(self, state: TurnState) -> None:
        conversation = state.conversation
        conversation.leader = state
        conversation.state = State.REBINDING if conversation.bindings else State.NEW
        state.prefill_failures = 0
        self.waiting.add(state)

    def admit(self) -> list[Action]:
        """Place waiting turns in order, until none that is next finds room."""
        actions: list[Action] = []
        while (placed := self._admit_one()) is not None:
            actions += placed
        return actions

    def _admit_one(self) -> list[Action] | None:
        placed = (self._attempt(state, self._admit_head) for state in self.next_turns())
        return next((actions for actions in placed if actions is not None), None)

    def next_turns(self) -> Iterator[TurnState]:
        """The turn that is next, and who may go before it while it finds no room.

        One that wants more than its tenant's share of any decoder waits until others leave so
        much; it does not hold up other tenants' meanwhile.
        """
        for state in self.waiting.heads:
            yield state
            if not self._wants_more_than_its_share(state):
                return

    def giving_tenants(self) -> frozenset[str]:
        """Those whose turns are next, and those that hold more than their share."""
        budget = sum(ledger.budget_tokens for ledger in self._pools.ledgers.values())
        above = self._pools.shares.above(budget, self.waiting.tenants)
        return above | {state.turn.tenant for state in self.next_turns()}

    def _wants_more_than_its_share(self, state: TurnState) -> bool:
        largest = max((ledger.budget_tokens for ledger in self._pools.ledgers.values()), default=UNBOUNDED)
        part = self._pools.shares.part(state.turn.tenant, largest, self.waiting.tenants)
        return self._legs.own_tokens(state, state.prompt_tokens) > part

    def _attempt(
        self, state: TurnState, place: Callable[[TurnState], list[Action] | None]
    ) -> list[Action] | None:
        """Place the turn. What a policy raises ends the turn that it was asked about, and nobody else's."""
        try:
            return place(state)
        except Exception as error:  # noqa: BLE001 - told to whoever waits for the turn
            return [self._give_up(state, error)]

    def _give_up(self, state: TurnState, error: Exception) -> Action:
        """The turn leaves the queue and every engine's books; what is left of it is its end."""
        self._legs.over(state)
        state.placement = None
        conversation = state.conversation
        conversation.running.pop(state.id, None)
        if conversation.leader is state:
            self.abandon(state)
        conversation.unplaced[state.id] = state
        return PlacementFailed(state.id, error)

    def _admit_head(self, state: TurnState) -> list[Action] | None:
        """Send it where the policy says; to an engine that failed it only if no other has room."""
        placement = self._home(state) or self._ask(state, self._legs.cluster_for(state, self.now_s))
        if placement is None and state.failed_on:
            placement = self._ask(state, self._legs.cluster_view(self.now_s))
        if placement is None:
            return None
        self.waiting.remove(state.id)
        return self._lead(state, placement)

    def _home(self, state: TurnState) -> Placement | None:
        """Where a conversation that had yielded its room was, if there is room again and most of its prompt's
        KV may still be there."""
        home = state.conversation.yielded_on
        ledger = self._pools.ledgers.get(home) if home is not None else None
        if home is None or ledger is None or home in state.failed_on or not self._pools.takes_new(home):
            return None
        need = self._legs.own_tokens(state, state.prompt_tokens)
        free = ledger.budget_tokens - ledger.reserved_tokens - ledger.unaccounted_tokens
        is_there = 2 * state.conversation.context_tokens.get(home, 0) >= need
        return Placement(Path.LOCAL_PREFILL, home) if is_there and need <= free else None

    def _ask(self, state: TurnState, cluster: ClusterView) -> Placement | None:
        """What the policy says. Raises where it can't be, before anything has changed."""
        placement = self._policy.place(self._legs.turn_view(state), cluster)
        if placement is None:
            return None
        if placement.decoder not in self._pools.ledgers:
            raise ValueError(
                f"turn {state.id} was placed on {placement.decoder!r}, which is no decoder that is up"
            )
        if placement.prefiller is not None and self._pools.find(placement.prefiller) is None:
            raise ValueError(f"turn {state.id} was placed on {placement.prefiller!r}, which is not up")
        if placement.prefiller == placement.decoder:
            raise ValueError(f"turn {state.id} was placed on {placement.decoder!r} twice")
        return placement

    def _lead(self, state: TurnState, placement: Placement) -> list[Action]:
        """Reserve room on the decoder before anything is sent, so that no KV waits locked on a prefiller."""
        ledger = self._pools.ledgers[placement.decoder]
        need = self._legs.own_tokens(state, placement.reserve_tokens or state.prompt_tokens)
        conversation = state.conversation
        ledger.settle(conversation.id, min(need, ledger.budget_tokens))
        conversation.state = State.PREFILLING
        state.rebind = None
        if conversation.bindings:
            state.rebind = conversation.rebind_cause or RebindCause.PLACEMENT_FAILED
        return self.start(state, placement)

    def start(self, state: TurnState, placement: Placement) -> list[Action]:
        """Send the first leg of the placement."""
        state.placement = placement
        state.is_stranded = False
        return [self._legs.start(state, self.now_s)]

    def _start_bound(self, state: TurnState) -> list[Action]:
        conversation = state.conversation
        placement = self._ask(state, self._legs.cluster_view(self.now_s))
        if placement is None:
            raise ValueError(f"the policy left a bound turn of {conversation.id!r} without a place")
        if placement.decoder != conversation.decoder:
            return self._move(state, placement)
        conversation.state = State.ACTIVE
        conversation.running[state.id] = state
        state.rebind = None
        own_tokens = self._legs.own_tokens(state, state.prompt_tokens)
        self._pools.ledgers[placement.decoder].grow(conversation.id, own_tokens)
        return self.start(state, placement)

    def _move(self, state: TurnState, placement: Placement) -> list[Action]:
        """The policy takes the conversation to another decoder: this turn places it anew."""
        conversation = state.conversation
        if conversation.running:
            raise ValueError(f"the policy moved {conversation.id!r} while its turns run")
        self._pools.release(conversation.id)
        conversation.decoder = conversation.kv_tokens = None
        conversation.leader = state
        conversation.rebind_cause = RebindCause.MOVED
        return self._lead(state, placement)

    def bind(self, state: TurnState) -> list[Action]:
        """The leader's decoder has answered: the binding holds, and turns that waited for it follow."""
        conversation, placement = state.conversation, placement_of(state)
        held_tokens = self._pools.ledgers[placement.decoder].held(conversation.id)
        is_estimate = placement.prefiller is None and placement.reserve_tokens is None
        conversation.kv_tokens = None if is_estimate else held_tokens + self._legs.shared_tokens(state)
        conversation.decoder = placement.decoder
        conversation.state = State.ACTIVE
        conversation.leader = conversation.hit_share = None
        conversation.evicted_tokens = 0
        conversation.running[state.id] = state
        if state.rebind is not None:
            self.rebinds[state.rebind] += 1
        conversation.rebind_cause = None
        conversation.yielded_on = None
        conversation.bindings += 1
        followers, conversation.followers = conversation.followers, deque()
        return [action for follower in followers for action in self.dispatch(follower)]

    # -- losing --------------------------------------------------------------------------------

    def has_its_decoder(self, state: TurnState) -> bool:
        """Whether the decoder that the turn was placed on is still there for its conversation."""
        decoder, conversation = placement_of(state).decoder, state.conversation
        if state.is_stranded or decoder not in self._pools.ledgers:
            return False
        return conversation.leader is state or conversation.decoder == decoder

    def place_again(self, state: TurnState) -> list[Action]:
        """The turn's decoder was lost before it answered: it returns to its place in the queue, or its
        conversation has a decoder again."""
        conversation = state.conversation
        self._legs.over(state)
        state.placement = None
        if conversation.leader is state:
            conversation.leader = None
        conversation.running.pop(state.id, None)
        return self.dispatch(state)

    def abandon(self, state: TurnState) -> None:
        """The leader ended before a decoder was bound: free its room, let the next turn lead."""
        conversation = state.conversation
        conversation.leader = None
        self.waiting.remove(state.id)
        self._pools.release(conversation.id)
        if conversation.rebind_cause is RebindCause.MOVED:
            conversation.rebind_cause = RebindCause.PLACEMENT_FAILED
        if conversation.followers:
            self._enqueue(conversation.followers.popleft())

    def lose_decoder(self, conversation: Conversation, engine: str, cause: RebindCause) -> None:
        """The engine that held the conversation's KV, or was about to, is no longer its decoder."""
        conversation.rebind_cause = cause
        for state in (conversation.leader, *conversation.running.values()):
            if state is not None and state.placement is not None and state.placement.decoder == engine:
                state.is_stranded = True
        if conversation.decoder == engine:
            conversation.decoder = conversation.kv_tokens = None
            conversation.state = State.REBINDING

    def yield_room(self, conversation: Conversation, engine: str) -> None:
        """The conversation, which is at rest, gives up its reservation; its KV may stay cached there."""
        self.lose_decoder(conversation, engine, RebindCause.YIELDED)
        conversation.yielded_on = engine
        self._pools.release(conversation.id)

    def leave_decoder(self, conversation: Conversation, engine: str, cause: RebindCause) -> None:
        """The conversation leaves an engine that may still be up: what is reserved there is free again."""
        self.lose_decoder(conversation, engine, cause)
        conversation.context_tokens.pop(engine, None)
        self._pools.release(conversation.id)
