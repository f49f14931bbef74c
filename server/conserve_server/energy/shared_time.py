"""Time split among those present, in proportion to their sizes at each instant. Exact and cheap.

The clock of fair queueing: a virtual time that runs at 1 / (sum of sizes) of the real one. Who
is present with a size of `s` earns `s` times the virtual time that passes, so a change costs the
same however many are present, and the shares add up to the time in which anybody was.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Generic, TypeVar

M = TypeVar("M")
P = TypeVar("P")


class _Member(Generic[P]):
    __slots__ = ("payer", "since", "size")

    def __init__(self, size: int, payer: P, since: float) -> None:
        self.size = size
        self.payer = payer
        self.since = since


class SharedTime(Generic[M, P]):
    """Seconds of a window by payer. Members are present with a size; each names who pays for it now."""

    def __init__(self, now_s: float) -> None:
        self._now_s = now_s
        self._virtual = 0.0
        self._total = 0
        self._members: dict[M, _Member[P]] = {}
        self._shares: dict[P, float] = {}
        self._covered_s = 0.0

    def __contains__(self, member: M) -> bool:
        return member in self._members

    @property
    def members(self) -> Collection[M]:
        """Who is present."""
        return self._members.keys()

    def put(self, member: M, size: int, payer: P, now_s: float) -> None:
        """From now on the member has this size, and this payer. A size of 0 is present and earns nothing."""
        self._advance(now_s)
        known = self._members.get(member)
        if known is None:
            self._members[member] = _Member(size, payer, self._virtual)
            self._total += size
            return
        self._earn(known)
        self._total += size - known.size
        known.size, known.payer = size, payer

    def drop(self, member: M, now_s: float) -> None:
        """The member is gone; what it earned stays its payer's. Nothing if it was not there."""
        self._advance(now_s)
        known = self._members.pop(member, None)
        if known is not None:
            self._earn(known)
            self._total -= known.size

    def close(self, now_s: float) -> tuple[dict[P, float], float]:
        """End the window and begin the next: seconds by payer, and the seconds in which anybody was present.

        The former add up to the latter.
        """
        self._advance(now_s)
        for member in self._members.values():
            self._earn(member)
            member.since = 0.0
        closed = self._shares, self._covered_s
        self._virtual, self._shares, self._covered_s = 0.0, {}, 0.0
        return closed

    def _advance(self, now_s: float) -> None:
        """Time that seems to run backwards stands still."""
        elapsed_s = now_s - self._now_s
        if elapsed_s <= 0:
            return
        self._now_s = now_s
        if self._total > 0:
            self._virtual += elapsed_s / self._total
            self._covered_s += elapsed_s

    def _earn(self, member: _Member[P]) -> None:
        earned_s = member.size * (self._virtual - member.since)
        member.since = self._virtual
        if earned_s:
            self._shares[member.payer] = self._shares.get(member.payer, 0.0) + earned_s
