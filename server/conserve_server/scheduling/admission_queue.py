"""Turns that wait for room on a decoder: by tenant, and within one in the order of their arrival."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator

from conserve_server.scheduling.conversation import TurnState
from conserve_server.scheduling.shares import Shares


class AdmissionQueue:
    """First come, first served within a tenant: a turn that has to be placed again returns to its place by
    arrival. Of several tenants the one that holds least, by its share, is first.
    """

    def __init__(self, shares: Shares | None = None) -> None:
        self._shares = shares or Shares()
        self._waiting: dict[str, list[TurnState]] = {}
        self._orders: dict[int, tuple[str, int]] = {}

    def __len__(self) -> int:
        return len(self._orders)

    def __iter__(self) -> Iterator[TurnState]:
        return heapq.merge(*self._waiting.values(), key=_order)

    def __contains__(self, turn_id: int) -> bool:
        return turn_id in self._orders

    @property
    def tenants(self) -> frozenset[str]:
        """Those whose turns wait."""
        return frozenset(self._waiting)

    @property
    def heads(self) -> list[TurnState]:
        """The earliest turn of each tenant, that of the tenant that holds least first."""
        firsts = [turns[0] for turns in self._waiting.values()]
        if len(firsts) > 1:
            firsts.sort(key=lambda state: (self._shares.load(state.turn.tenant), state.order))
        return firsts

    def add(self, state: TurnState) -> None:
        """Let the turn wait."""
        self._orders[state.id] = state.turn.tenant, state.order
        insort(self._waiting.setdefault(state.turn.tenant, []), state, key=_order)

    def remove(self, turn_id: int) -> None:
        """Take the turn out; nothing if it does not wait."""
        known = self._orders.pop(turn_id, None)
        if known is None:
            return
        tenant, order = known
        turns = self._waiting[tenant]
        del turns[bisect_left(turns, order, key=_order)]
        if not turns:
            del self._waiting[tenant]


def _order(state: TurnState) -> int:
    return state.order
