"""Turns that wait for room on a decoder, in the order of their arrival."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from conserve_server.scheduling.conversation import TurnState


class AdmissionQueue:
    """First come, first served: a turn that has to be placed again returns to its place by arrival."""

    def __init__(self) -> None:
        self._waiting: list[TurnState] = []
        self._orders: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[TurnState]:
        return iter(self._waiting)

    def __contains__(self, turn_id: int) -> bool:
        return turn_id in self._orders

    @property
    def head(self) -> TurnState | None:
        """The turn that came first."""
        return self._waiting[0] if self._waiting else None

    def add(self, state: TurnState) -> None:
        """Let the turn wait."""
        self._orders[state.id] = state.order
        insort(self._waiting, state, key=_order)

    def remove(self, turn_id: int) -> None:
        """Take the turn out; nothing if it does not wait."""
        order = self._orders.pop(turn_id, None)
        if order is not None:
            del self._waiting[bisect_left(self._waiting, order, key=_order)]


def _order(state: TurnState) -> int:
    return state.order
