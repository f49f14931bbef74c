"""The scheduler: which engine serves which turn, decided from what was observed.

One pure state machine: no I/O, no clock, no randomness. A driver (the gateway, or a
simulation) reports what happened and carries out the actions that come back. The same
reports in the same order give the same actions. Every method that returns actions may
start turns other than the one it was called for.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Sequence

from conserve_sdk.protocol import Path
from conserve_server.core.turn import Placement, Turn
from conserve_server.scheduling.actions import Action, StartDecode, StartPrefill
from conserve_server.scheduling.conversation import Conversation, State
from conserve_server.scheduling.engine_pools import EnginePools
from conserve_server.scheduling.policy import Policy, TurnView


class Scheduler:
    """Conversations, their bindings, and the queue of turns that wait for room on a decoder."""

    def __init__(
        self, policy: Policy, *, prefillers: Sequence[str], decoders: Sequence[str], kv_budget_fraction: float
    ) -> None:
        self._policy = policy
        self._conversations: dict[str, Conversation] = {}
        self._turns: dict[int, Conversation] = {}
        self._waiting: OrderedDict[int, Turn] = OrderedDict()
        self._idle: OrderedDict[str, Conversation] = OrderedDict()
        self.pools = EnginePools(prefillers, decoders, kv_budget_fraction)
        self.rebinds = 0
        """Bindings that replaced a lost one, since the start."""

    # -- what a driver may read --------------------------------------------------------------

    @property
    def waiting_turns(self) -> int:
        """Turns that wait for room, first come, first served."""
        return len(self._waiting)

    def is_waiting(self, turn_id: int) -> bool:
        """Whether the turn waits for room itself, and not for another turn's binding."""
        return turn_id in self._waiting

    @property
    def conversations(self) -> Collection[Conversation]:
        """The live conversations."""
        return self._conversations.values()

    def find(self, conversation_id: str) -> Conversation | None:
        """The live conversation of that id."""
        return self._conversations.get(conversation_id)

    def reserved_tokens(self, conversation_id: str) -> int:
        """KV tokens that are reserved for the conversation now."""
        return sum(ledger.held(conversation_id) for ledger in self.pools.ledgers.values())

    def idle_since(self, limit_s: float) -> list[str]:
        """Conversations without a turn since `limit_s` (monotonic seconds) or longer, oldest first."""
        found = []
        for conversation in self._idle.values():
            if conversation.idle_since_s > limit_s:
                break
            found.append(conversation.id)
        return found

    # -- turns -------------------------------------------------------------------------------

    def on_turn(self, turn: Turn) -> list[Action]:
        """A turn arrived: a later turn starts at once, a first turn queues for room.

        A turn that comes while another one is placing its conversation waits for that binding.
        """
        conversation = self._conversations.setdefault(
            turn.conversation_id, Conversation(turn.conversation_id)
        )
        self._idle.pop(conversation.id, None)
        conversation.is_ending = False  # a turn after the release goes on with the conversation
        self._turns[turn.id] = conversation
        if conversation.decoder is not None:
            return [self._start_pinned(conversation, turn.id, turn.prompt_tokens)]
        if conversation.leader is not None:
            conversation.followers.append(turn)
            return []
        self._enqueue(conversation, turn)
        return self._admit()

    def on_prefilled(self, turn_id: int, prompt_tokens: int) -> list[Action]:
        """The prefill leg counted `prompt_tokens` and holds their KV: confirm the decoder."""
        conversation = self._turns[turn_id]
        plan = self._end_prefill(conversation, turn_id)
        ledger = self.pools.ledgers.get(plan.decoder)
        if ledger is None:
            return self._place_again(conversation)
        ledger.settle(conversation.id, prompt_tokens)
        return [self._start_decode(turn_id, plan), *self._admit()]

    def on_prefill_failed(self, turn_id: int) -> list[Action]:
        """The prefill leg broke: try one other prefiller, then prefill on the decoder itself."""
        conversation = self._turns[turn_id]
        plan = self._end_prefill(conversation, turn_id)
        if plan.decoder not in self.pools.ledgers:
            return self._place_again(conversation)
        conversation.prefill_failures += 1
        others = [p for p in self.pools.view().prefillers if p.name != plan.prefiller]
        if not others or conversation.prefill_failures > 1:
            return [self._start_leader(conversation, Placement(Path.LOCAL_PREFILL, plan.decoder))]
        best = min(others, key=lambda p: p.queued_tokens)
        return [self._start_leader(conversation, Placement(Path.REMOTE_PREFILL, plan.decoder, best.name))]

    def on_bound(self, turn_id: int) -> list[Action]:
        """The decoder answered the first turn: the binding is committed, waiting turns follow it."""
        conversation = self._turns[turn_id]
        plan = conversation.plan
        if plan is None or plan.decoder not in self.pools.ledgers:
            return []  # a later turn, or a decoder that was lost while it answered
        conversation.decoder = plan.decoder
        conversation.state = State.ACTIVE
        self.rebinds += conversation.bindings > 0
        conversation.bindings += 1
        conversation.pinned[turn_id] = plan.decoder
        conversation.leader, conversation.plan = None, None
        followers = list(conversation.followers)
        conversation.followers.clear()
        return [self._start_pinned(conversation, turn.id, turn.prompt_tokens) for turn in followers]

    def on_turn_ended(self, turn_id: int, kv_tokens: int | None, now_s: float) -> list[Action]:
        """The turn completed, failed or was cancelled, at any point of its life.

        `kv_tokens`: prompt and output of this turn as the engine counted them, the KV that the
        conversation now holds; None where nothing was learned.
        """
        conversation = self._turns.pop(turn_id)
        if conversation.leader is not None and conversation.leader.id == turn_id:
            self._abandon_placement(conversation)
        elif turn_id in conversation.pinned:
            self.pools.decode_over(conversation.pinned.pop(turn_id), turn_id)
            self._settle(conversation, kv_tokens)
        else:
            conversation.followers = deque(t for t in conversation.followers if t.id != turn_id)
        if not conversation.has_turns:
            self._rest(conversation, now_s)
        return self._admit()

    def on_conversation_ended(self, conversation_id: str) -> list[Action]:
        """Free the conversation's reservation, once its running turns have ended."""
        conversation = self._conversations.get(conversation_id)
        if conversation is None:
            return []
        conversation.is_ending = True
        if not conversation.has_turns:
            self._forget(conversation)
        return self._admit()

    # -- engines -----------------------------------------------------------------------------

    def on_engine_up(self, name: str, kv_capacity_tokens: int | None) -> list[Action]:
        """The engine answers. `kv_capacity_tokens` is None where it reports none."""
        self.pools.up(name, kv_capacity_tokens)
        return self._admit()

    def on_engine_down(self, name: str) -> list[Action]:
        """The engine is gone, and with it the KV that it held: its conversations are placed anew."""
        for conversation_id in self.pools.down(name):
            conversation = self._conversations[conversation_id]
            if conversation.decoder == name:
                conversation.decoder = None
                conversation.state = State.REBINDING
        return self._admit()

    # -- steps -------------------------------------------------------------------------------

    def _enqueue(self, conversation: Conversation, turn: Turn) -> None:
        conversation.leader = turn
        conversation.prefill_failures = 0
        conversation.state = State.REBINDING if conversation.bindings else State.NEW
        self._waiting[turn.id] = turn

    def _admit(self) -> list[Action]:
        actions: list[Action] = []
        while self._waiting:
            turn = next(iter(self._waiting.values()))
            need = self.pools.admissible_tokens(turn.prompt_tokens)
            placement = self._policy.place(TurnView(need, None), self.pools.view())
            if placement is None:
                break
            del self._waiting[turn.id]
            conversation = self._turns[turn.id]
            self.pools.ledgers[placement.decoder].settle(conversation.id, need)
            actions.append(self._start_leader(conversation, placement))
        return actions

    def _start_leader(self, conversation: Conversation, plan: Placement) -> Action:
        turn = conversation.leader
        if turn is None:
            raise RuntimeError(f"conversation {conversation.id!r} has no turn to place")
        conversation.plan = plan
        conversation.state = State.PREFILLING
        if plan.prefiller is None:
            return self._start_decode(turn.id, plan)
        self.pools.prefill_started(plan.prefiller, turn.id, turn.prompt_tokens)
        return StartPrefill(turn.id, plan)

    def _start_decode(self, turn_id: int, placement: Placement) -> Action:
        self.pools.decode_started(placement.decoder, turn_id)
        return StartDecode(turn_id, placement)

    def _start_pinned(self, conversation: Conversation, turn_id: int, prompt_tokens: int) -> Action:
        view = TurnView(prompt_tokens, conversation.decoder)
        placement = self._policy.place(view, self.pools.view())
        if placement is None:
            raise RuntimeError(f"the policy left a bound turn of {conversation.id!r} without a place")
        conversation.state = State.ACTIVE
        conversation.pinned[turn_id] = placement.decoder
        return self._start_decode(turn_id, placement)

    def _end_prefill(self, conversation: Conversation, turn_id: int) -> Placement:
        plan = conversation.plan
        if plan is None or plan.prefiller is None:
            raise RuntimeError(f"turn {turn_id} has no prefill leg")
        self.pools.prefill_over(plan.prefiller, turn_id)
        return plan

    def _place_again(self, conversation: Conversation) -> list[Action]:
        """The planned decoder was lost during the prefill: the turn goes back to the head of the queue."""
        turn = conversation.leader
        if turn is None:
            raise RuntimeError(f"conversation {conversation.id!r} has no turn to place")
        conversation.plan = None
        self._enqueue(conversation, turn)
        self._waiting.move_to_end(turn.id, last=False)
        return self._admit()

    def _abandon_placement(self, conversation: Conversation) -> None:
        """The leader ended before a decoder was bound: free its room, let the next turn lead."""
        turn, plan = conversation.leader, conversation.plan
        conversation.leader, conversation.plan = None, None
        if turn is None:
            return
        self._waiting.pop(turn.id, None)
        if plan is not None:
            self.pools.release(conversation.id)
            if plan.prefiller is not None:
                self.pools.prefill_over(plan.prefiller, turn.id)
            self.pools.decode_over(plan.decoder, turn.id)
        if conversation.followers:
            self._enqueue(conversation, conversation.followers.popleft())

    def _settle(self, conversation: Conversation, kv_tokens: int | None) -> None:
        ledger = self.pools.ledgers.get(conversation.decoder or "")
        if ledger is not None and kv_tokens is not None:
            ledger.grow(conversation.id, kv_tokens)

    def _rest(self, conversation: Conversation, now_s: float) -> None:
        if conversation.is_ending or (conversation.decoder is None and not conversation.bindings):
            self._forget(conversation)
            return
        conversation.state = State.TOOL_GAP if conversation.decoder else State.REBINDING
        conversation.idle_since_s = now_s
        self._idle[conversation.id] = conversation

    def _forget(self, conversation: Conversation) -> None:
        conversation.state = State.ENDED
        self.pools.release(conversation.id)
        self._idle.pop(conversation.id, None)
        del self._conversations[conversation.id]
