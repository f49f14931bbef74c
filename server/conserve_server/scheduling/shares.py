"""KV tokens that each tenant has reserved, over all decoders: of several that wait, the least goes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


class Shares:
    """Kept by the ledgers as reservations change. A tenant's `weight` is 1 unless it is set."""

    def __init__(self) -> None:
        self._reserved: Counter[str] = Counter()
        self._tenant_of: dict[str, str] = {}
        self.weights: Mapping[str, float] = {}

    def belongs(self, conversation_id: str, tenant: str) -> None:
        """The conversation is the tenant's; told before it reserves anything."""
        self._tenant_of[conversation_id] = tenant

    def forget(self, conversation_id: str) -> None:
        """The conversation has ended, and holds nothing."""
        self._tenant_of.pop(conversation_id, None)

    def changed(self, conversation_id: str, tokens: int) -> None:
        """The conversation holds so many tokens more, or less."""
        self._reserved[self._tenant_of.get(conversation_id, "")] += tokens

    def load(self, tenant: str) -> float:
        """What the tenant holds, by its weight."""
        return self._reserved[tenant] / self.weights.get(tenant, 1.0)

    def reserved(self, tenant: str) -> int:
        return self._reserved[tenant]

    def part(self, tenant: str, budget_tokens: int, waiting: frozenset[str]) -> float:
        """The tenant's share of the budget in tokens, among those that hold or wait."""
        there = self._there(waiting) | {tenant}
        total = sum(self.weights.get(name, 1.0) for name in there)
        return budget_tokens * self.weights.get(tenant, 1.0) / total

    def above(self, budget_tokens: int, waiting: frozenset[str]) -> frozenset[str]:
        """The tenants that hold more than their share of the budget."""
        there = self._there(waiting)
        total = sum(self.weights.get(name, 1.0) for name in there)
        return frozenset(
            name
            for name in there
            if self._reserved[name] > budget_tokens * self.weights.get(name, 1.0) / total
        )

    def _there(self, waiting: frozenset[str]) -> set[str]:
        return {name for name, tokens in self._reserved.items() if tokens > 0} | waiting
