"""The engines that are up, what is queued on each prefiller and reserved on each decoder."""

from __future__ import annotations

from collections.abc import Sequence

from conserve_server.scheduling.ledger import DecoderLedger
from conserve_server.scheduling.policy import ClusterView, DecoderView, PrefillerView


class EnginePools:
    """Both pools. Engines are known by name from the start and serve nothing until they are up."""

    def __init__(self, prefillers: Sequence[str], decoders: Sequence[str], kv_budget_fraction: float) -> None:
        self._budget_fraction = kv_budget_fraction
        self._prefillers = tuple(prefillers)
        self._decoders = tuple(decoders)
        self._queued: dict[str, dict[int, int]] = {}
        self._running: dict[str, set[int]] = {}
        self.ledgers: dict[str, DecoderLedger] = {}
        """Reservations of each decoder that is up."""

    def up(self, name: str, capacity_tokens: int | None) -> None:
        """The engine serves from now on; one that is up already gets its capacity corrected."""
        if name in self._prefillers:
            self._queued.setdefault(name, {})
        elif name in self.ledgers:
            self.ledgers[name].capacity_tokens = capacity_tokens
        elif name in self._decoders:
            self.ledgers[name] = DecoderLedger(capacity_tokens, self._budget_fraction)
            self._running[name] = set()
        else:
            raise KeyError(f"engine {name!r} is in no pool")

    def down(self, name: str) -> tuple[str, ...]:
        """Forget the engine; the conversations that held KV on it."""
        self._queued.pop(name, None)
        self._running.pop(name, None)
        ledger = self.ledgers.pop(name, None)
        return ledger.conversations if ledger else ()

    def prefill_started(self, prefiller: str, turn_id: int, prompt_tokens: int) -> None:
        if prefiller in self._queued:
            self._queued[prefiller][turn_id] = prompt_tokens

    def prefill_over(self, prefiller: str, turn_id: int) -> None:
        self._queued.get(prefiller, {}).pop(turn_id, None)

    def decode_started(self, decoder: str, turn_id: int) -> None:
        if decoder in self._running:
            self._running[decoder].add(turn_id)

    def decode_over(self, decoder: str, turn_id: int) -> None:
        self._running.get(decoder, set()).discard(turn_id)

    def release(self, conversation_id: str) -> None:
        """Free what the conversation holds, wherever that is."""
        for ledger in self.ledgers.values():
            ledger.release(conversation_id)

    def admissible_tokens(self, prompt_tokens: int) -> int:
        """The prompt's length, at most the largest budget.

        Lengths are estimates until an engine has tokenised: a prompt that seems to fit nowhere
        waits for an empty decoder, and the engine's own limit has the last word.
        """
        budgets = [ledger.budget_tokens for ledger in self.ledgers.values()]
        return min(prompt_tokens, max(budgets, default=prompt_tokens))

    def view(self) -> ClusterView:
        """What a policy may read now."""
        return ClusterView(
            prefillers=tuple(
                PrefillerView(name, sum(self._queued[name].values()))
                for name in self._prefillers
                if name in self._queued
            ),
            decoders=tuple(
                DecoderView(name, ledger.budget_tokens, ledger.reserved_tokens, len(self._running[name]))
                for name in self._decoders
                if (ledger := self.ledgers.get(name)) is not None
            ),
        )
