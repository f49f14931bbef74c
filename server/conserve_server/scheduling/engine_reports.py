"""What a driver reports of engines: up, down, their load, what they still hold, and that they are to go."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from conserve_sdk.protocol import RebindCause
from conserve_server.scheduling.actions import Action
from conserve_server.scheduling.conversations import Conversations
from conserve_server.scheduling.engine_pools import EnginePools
from conserve_server.scheduling.engine_state import EngineProfile
from conserve_server.scheduling.placing import Placing


class EngineReports:
    """The scheduler's reports of engines. Times are the driver's monotonic seconds."""

    def __init__(self, conversations: Conversations, pools: EnginePools, placing: Placing) -> None:
        self._conversations = conversations
        self.pools = pools
        self._placing = placing

    def on_engine_up(self, name: str, kv_capacity_tokens: int | None, now_s: float) -> list[Action]:
        """The engine answers. `kv_capacity_tokens` is None where it reports none."""
        self._placing.now_s = now_s
        self.pools.up(name, kv_capacity_tokens)
        return self._placing.admit()

    def on_engine_down(self, name: str, now_s: float) -> list[Action]:
        """The engine is gone, and with it the KV that it held: its conversations are placed anew."""
        self._placing.now_s = now_s
        self._unbind(name, self.pools.down(name))
        return self._placing.admit()

    def on_kv_observed(
        self, name: str, kv_usage: float, running: int, waiting: int, now_s: float
    ) -> list[Action]:
        """The engine's own report: share of its KV in use (0 to 1), requests running and waiting."""
        self._placing.now_s = now_s
        engine = self.pools.find(name)
        if engine is None:
            return []
        capacity = engine.ledger.capacity_tokens if engine.ledger else None
        engine.load_reported(None if capacity is None else round(kv_usage * capacity), running + waiting)
        return self._placing.admit()

    def on_resident(self, name: str, tokens: Mapping[str, int], block_size: int, now_s: float) -> None:
        """What the engine still holds of conversations, in whole blocks of `block_size` tokens.

        Of one at rest that is what its next turn will find; what was evicted must be computed again.
        Its reservation stays: the next turn needs the room all the same.
        """
        self._placing.now_s = now_s
        for conversation_id, held in tokens.items():
            conversation = self._conversations.find(conversation_id)
            if conversation is None or conversation.has_turns:
                continue
            known = conversation.context_tokens.get(name, 0)
            if held + block_size > known:
                continue
            conversation.context_tokens[name] = held
            if conversation.decoder == name:
                conversation.evicted_tokens += known - held

    def on_engine_added(self, profile: EngineProfile, now_s: float) -> list[Action]:
        """One more engine is known; it serves once it is up. Raises ValueError for a name that is taken."""
        self._placing.now_s = now_s
        self.pools.add(profile)
        return []

    def on_engine_draining(self, name: str, now_s: float, *, is_draining: bool = True) -> list[Action]:
        """The engine takes nothing new (or takes again); `pools.is_drained` tells when it may go."""
        self._placing.now_s = now_s
        self.pools.set_draining(name, is_draining)
        return self._placing.admit()

    def on_engine_vacated(self, name: str, now_s: float) -> list[Action]:
        """A draining engine has waited long enough: what is bound to it is placed anew at its next turn."""
        self._placing.now_s = now_s
        ledger = self.pools.ledgers.get(name)
        for conversation_id in ledger.conversations if ledger is not None else ():
            holder = self._conversations.find(conversation_id)
            if holder is not None:
                self._placing.leave_decoder(holder, name, RebindCause.ENGINE_DRAINED)
        return self._placing.admit()

    def on_engine_removed(self, name: str, now_s: float) -> list[Action]:
        """The engine is forgotten; what it still held is placed anew."""
        self._placing.now_s = now_s
        self._unbind(name, self.pools.remove(name))
        return self._placing.admit()

    def _unbind(self, engine: str, holders: Collection[str]) -> None:
        for conversation in self._conversations.live:
            conversation.context_tokens.pop(engine, None)
        for conversation_id in holders:
            holder = self._conversations.find(conversation_id)
            if holder is not None:
                self._placing.lose_decoder(holder, engine, RebindCause.ENGINE_LOST)
