"""Conversations at rest that give up their room while turns wait: which, and in what order.

Unnamed ones end (`conversations.py`). Named ones go on: only their reservation is freed, and their next
turn is placed again, where they were if there is room. They yield when they have been at rest for a while:
those of tenants that hold more than their share, and those of the tenants whose turns are next, as the room
is their own then. The one that has rested longest is first, and one whose tool still runs last.
"""

from __future__ import annotations

from conserve_server.core.config import GatewayConfig
from conserve_server.serving.asked.identity import tenant_of
from conserve_server.serving.driving.coordinator import Coordinator
from conserve_server.serving.records.conversation_log import ConversationLog


class Yielding:
    """Told the time, again and again."""

    def __init__(self, coordinator: Coordinator, log: ConversationLog, *, after_s: float) -> None:
        self._coordinator = coordinator
        self._log = log
        self._after_s = after_s

    def become(self, gateway: GatewayConfig) -> None:
        """Take the tenants' weights, as they were read."""
        weights = {name: tenant.kv_share for name, tenant in gateway.tenants.items()}
        self._coordinator.scheduler.pools.shares.weights = weights

    def look(self, now_s: float) -> None:
        """While turns wait, have conversations at rest yield, one after another."""
        scheduler = self._coordinator.scheduler
        if not scheduler.waiting_turns or not scheduler.pools.ledgers:
            return
        resting = scheduler.idle_since(now_s - self._after_s)
        giving = scheduler.giving_tenants()
        for key in sorted(resting, key=self._has_open_tool):
            if not scheduler.waiting_turns:
                return
            if tenant_of(key) in giving:
                self._coordinator.yield_conversation(key)
                giving = scheduler.giving_tenants()

    def _has_open_tool(self, key: str) -> bool:
        record = self._log.live(tenant_of(key), key)
        return record is not None and record.has_open_tool
