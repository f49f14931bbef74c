"""What leaves: a turn its conversation, and a conversation that has ended or expired the books."""

from __future__ import annotations

from conserve_server.scheduling.conversation import Conversation, State, TurnState
from conserve_server.scheduling.conversations import Conversations
from conserve_server.scheduling.engine_pools import EnginePools
from conserve_server.scheduling.legs import Legs, placement_of
from conserve_server.scheduling.placing import Placing


class Leaving:
    """Frees what a turn or a conversation held, and keeps what goes on."""

    def __init__(
        self, conversations: Conversations, pools: EnginePools, legs: Legs, placing: Placing
    ) -> None:
        self._conversations = conversations
        self._pools = pools
        self._legs = legs
        self._placing = placing

    def leave(self, state: TurnState, kv_tokens: int | None) -> None:
        """The conversation goes on without the turn, or rests."""
        conversation = state.conversation
        if conversation.leader is state:
            self._placing.abandon(state)
        elif conversation.running.pop(state.id, None) is not None:
            self._settle(state, kv_tokens)
        elif conversation.unplaced.pop(state.id, None) is None:
            conversation.followers.remove(state)
        if not conversation.has_turns:
            self._rest(conversation)

    def _settle(self, state: TurnState, kv_tokens: int | None) -> None:
        """Reserve what the conversation is known to hold; what other turns of it still add stays debited."""
        conversation = state.conversation
        ledger = self._pools.ledgers.get(conversation.decoder or "")
        if ledger is None or placement_of(state).decoder != conversation.decoder:
            return
        if kv_tokens is not None:
            conversation.kv_tokens = max(kv_tokens, conversation.kv_tokens or 0)
        if conversation.kv_tokens is not None:
            own_tokens = self._legs.own_tokens(state, conversation.kv_tokens)
            (ledger.grow if conversation.running else ledger.settle)(conversation.id, own_tokens)

    def _rest(self, conversation: Conversation) -> None:
        if conversation.is_ending or (conversation.decoder is None and not conversation.bindings):
            self.forget(conversation, State.ENDED)
            return
        self._conversations.rest(conversation, self._placing.now_s)

    def forget(self, conversation: Conversation, state: State) -> None:
        self._pools.release(conversation.id)
        self._pools.shares.forget(conversation.id)
        self._conversations.forget(conversation, state)
