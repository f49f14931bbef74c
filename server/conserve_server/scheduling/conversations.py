"""The live conversations, and which of them are idle."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

from conserve_server.scheduling.conversation import Conversation, State


class Conversations:
    """Live conversations by id; those without a turn also in the order in which they fell idle."""

    def __init__(self) -> None:
        self._live: dict[str, Conversation] = {}
        self._idle: OrderedDict[str, Conversation] = OrderedDict()

    @property
    def live(self) -> Collection[Conversation]:
        return self._live.values()

    def find(self, conversation_id: str) -> Conversation | None:
        return self._live.get(conversation_id)

    def is_idle(self, conversation_id: str) -> bool:
        """Whether it is live and without a turn."""
        return conversation_id in self._idle

    def wake(self, conversation_id: str) -> Conversation:
        """The conversation, new or as it was, for a turn that has come."""
        self._idle.pop(conversation_id, None)
        found = self._live.get(conversation_id)
        if found is None:
            found = self._live[conversation_id] = Conversation(conversation_id)
        found.is_ending = False  # a turn after the release goes on with the conversation
        return found

    def rest(self, conversation: Conversation, now_s: float) -> None:
        """Its last turn has ended, and it lives on."""
        conversation.state = State.TOOL_GAP if conversation.decoder else State.REBINDING
        conversation.idle_since_s = now_s
        self._idle[conversation.id] = conversation

    def forget(self, conversation: Conversation, state: State) -> None:
        """It is over: ended or expired."""
        conversation.state = state
        self._idle.pop(conversation.id, None)
        del self._live[conversation.id]

    def idle_since(self, limit_s: float) -> list[str]:
        """Those idle since `limit_s` or longer, oldest first."""
        found = []
        for conversation in self._idle.values():
            if conversation.idle_since_s > limit_s:
                break
            found.append(conversation.id)
        return found
