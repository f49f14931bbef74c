"""KV tokens reserved per decoder: the scheduler's own count, never an engine's guess.

A conversation's reservation starts as its first turn's prompt and grows with what its turns
append and produce. Admission keeps reservations within the budget; growth of bound
conversations may exceed it, and is counted when it does. What the engine reports beyond the
reservations is kept beside them: it narrows admission and belongs to no conversation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection

UNBOUNDED = sys.maxsize
"""The budget of a decoder that does not report its KV capacity: it is never full."""


class DecoderLedger:
    """One decoder's reservations, in KV tokens, by conversation.

    `changed` is called after every change, `holds` with each conversation that held nothing before,
    `counts` with each conversation that holds more or less than before, and by how many tokens.
    """

    def __init__(
        self,
        capacity_tokens: int | None,
        budget_fraction: float,
        changed: Callable[[], None] = lambda: None,
        holds: Callable[[str], None] = lambda _: None,
        counts: Callable[[str, int], None] = lambda _name, _tokens: None,
    ) -> None:
        self._counts = counts
        self._holds = holds
        self._changed = changed
        self._budget_fraction = budget_fraction
        self._reserved: dict[str, int] = {}
        self._total = 0
        self.capacity_tokens = capacity_tokens
        self.unaccounted_tokens = 0
        """KV in use on the engine that belongs to no running conversation of ours, when it last reported."""

    @property
    def budget_tokens(self) -> int:
        if self.capacity_tokens is None:
            return UNBOUNDED
        return int(self.capacity_tokens * self._budget_fraction)

    @property
    def reserved_tokens(self) -> int:
        return self._total

    @property
    def overcommitted_tokens(self) -> int:
        """Tokens by which growth of bound conversations exceeds the budget."""
        return max(0, self._total - self.budget_tokens)

    @property
    def beyond_budget(self) -> frozenset[str]:
        """The conversations that came last, as far as the budget, or the KV itself, has no room for them."""
        room = self.budget_tokens
        if self.capacity_tokens is not None:
            room = min(room, self.capacity_tokens)
        if self._total <= room:
            return frozenset()
        beyond, total = [], 0
        for name, tokens in self._reserved.items():
            total += tokens
            if total > room:
                beyond.append(name)
        return frozenset(beyond)

    @property
    def conversations(self) -> tuple[str, ...]:
        return tuple(self._reserved)

    def held(self, conversation_id: str) -> int:
        return self._reserved.get(conversation_id, 0)

    def reconcile(self, used_tokens: int, running: Collection[str]) -> None:
        """Compare with the KV that the engine says is in use.

        vLLM counts what running requests hold, and not what is only cached: the comparison is
        with the reservations of the conversations that are `running` there now.
        """
        self.unaccounted_tokens = max(0, used_tokens - sum(self.held(name) for name in running))
        self._changed()

    def settle(self, conversation_id: str, kv_tokens: int) -> None:
        """Set the conversation's reservation to what is known to be needed."""
        held = self._reserved.get(conversation_id)
        if held is None:
            self._holds(conversation_id)
        self._total += kv_tokens - (held or 0)
        self._counts(conversation_id, kv_tokens - (held or 0))
        self._reserved[conversation_id] = kv_tokens
        self._changed()

    def grow(self, conversation_id: str, kv_tokens: int) -> None:
        """Raise the conversation's reservation to `kv_tokens`; never lowers it."""
        self.settle(conversation_id, max(kv_tokens, self.held(conversation_id)))

    def release(self, conversation_id: str) -> int:
        """Free the conversation's reservation; the tokens freed, 0 if it held none."""
        freed = self._reserved.pop(conversation_id, None)
        if freed is None:
            return 0
        self._total -= freed
        self._counts(conversation_id, -freed)
        self._changed()
        return freed
