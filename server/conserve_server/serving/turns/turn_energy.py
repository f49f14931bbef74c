"""What one turn tells the books of energy: its legs, their tokens, and the KV that it leaves."""

from __future__ import annotations

from conserve_server.energy.accounts import ConversationAccount, TurnAccount
from conserve_server.energy.ledger import EnergyLedger
from conserve_server.energy.legs import Counted, Leg
from conserve_server.engines.wire import Usage


class TurnEnergy:
    """One turn from its arrival to its end. A few writes for each leg, whatever the load."""

    __slots__ = (
        "_conversation",
        "_decode",
        "_held_before",
        "_ledger",
        "_prefill",
        "_prompt_tokens",
        "account",
    )

    def __init__(self, ledger: EnergyLedger, conversation: ConversationAccount, now_s: float) -> None:
        self._ledger = ledger
        self._conversation = conversation
        self._prefill: Leg | None = None
        self._decode: Leg | None = None
        self._held_before = 0
        self._prompt_tokens: int | None = None
        self.account: TurnAccount = ledger.turn_began(conversation, now_s)

    # -- legs ----------------------------------------------------------------------------------

    def prefill_starts(self, engine: str, prompt_tokens: int, now_s: float) -> None:
        """A prefill leg is sent; one before it that is still open has failed."""
        self.prefill_ends(now_s)
        self._prefill = self._ledger.leg_started(
            self.account, engine, now_s, expected_tokens=prompt_tokens, decodes=False
        )

    def prefill_ends(
        self, now_s: float, prompt_tokens: int | None = None, cached_tokens: int | None = None
    ) -> None:
        """The prefill leg answered, or (without tokens) failed. Its KV stays until the decoder has it."""
        leg = self._prefill
        if leg is None or leg.ended_s is not None:
            return
        if prompt_tokens is None:
            self._ledger.leg_ended(leg, now_s, None)
            self._ledger.release(self._conversation, leg.engine, now_s)
        else:
            self._prompt_tokens = prompt_tokens
            cached = min(cached_tokens or 0, prompt_tokens)
            self._ledger.leg_ended(leg, now_s, Counted(prompt_tokens - cached, cached))

    def decode_starts(
        self, engine: str, prompt_tokens: int, now_s: float, *, moves_kv: bool, is_streamed: bool
    ) -> None:
        """A decode leg is sent; one before it that is still open has failed.

        `prompt_tokens` is an estimate, which what a prefill leg counted replaces.
        """
        prompt_tokens = self._prompt_tokens or prompt_tokens
        if self._decode is not None:
            self._ledger.leg_ended(self._decode, now_s, None)
        self._held_before = self._conversation.holdings.get(engine, 0)
        context = prompt_tokens - 1 if moves_kv else min(self._held_before, prompt_tokens - 1)
        self._decode = self._ledger.leg_started(
            self.account,
            engine,
            now_s,
            expected_tokens=prompt_tokens - max(context, 0),
            expected_context=max(context, 0),
            is_streamed=is_streamed,
        )

    def first_token(self, now_s: float) -> None:
        """The decoder has answered: it holds the conversation, and nobody else needs to."""
        if self._decode is not None:
            self._ledger.first_token(self._decode, now_s)
            self._ledger.release_all(self._conversation, now_s, but=self._decode.engine)

    def ends(
        self,
        now_s: float,
        usage: Usage | None,
        *,
        has_answered: bool,
        is_over: bool,
        moved_kv: bool = False,
        transfer_s: float | None = None,
        first_token_s: float | None = None,
    ) -> None:
        """The turn ended, however it did. `is_over`: its conversation has ended meanwhile."""
        try:
            self._legs_end(
                now_s,
                usage,
                has_answered=has_answered,
                moved_kv=moved_kv,
                transfer_s=transfer_s,
                first_token_s=first_token_s,
            )
            if is_over:
                self._ledger.release_all(self._conversation, now_s)
        finally:
            produced = (usage.completion_tokens or 0) if usage is not None else 0
            prompt_tokens = usage.prompt_tokens if usage is not None else 0
            self._ledger.turn_ended(
                self.account, now_s, output_tokens=produced, context_tokens=prompt_tokens + produced
            )

    # -- steps ---------------------------------------------------------------------------------

    def _legs_end(
        self,
        now_s: float,
        usage: Usage | None,
        *,
        has_answered: bool,
        moved_kv: bool,
        transfer_s: float | None,
        first_token_s: float | None,
    ) -> None:
        self.prefill_ends(now_s)
        leg = self._decode
        if leg is not None:
            self._ledger.leg_ended(
                leg,
                now_s,
                None if usage is None else self._counted(usage, moved_kv=moved_kv),
                transfer_s=transfer_s or 0.0,
                first_s=first_token_s,
            )
            self._leave(leg, usage, now_s, has_answered=has_answered)
        if self._prefill is not None and (leg is None or leg.engine != self._prefill.engine):
            self._ledger.release(self._conversation, self._prefill.engine, now_s)

    def _counted(self, usage: Usage, *, moved_kv: bool) -> Counted:
        """The decode leg's tokens. The first output token comes out of the prefill."""
        prompt_tokens = usage.prompt_tokens
        context = prompt_tokens - 1 if moved_kv else usage.cached_tokens
        if context is None:
            context = self._held_before
        context = max(min(context, prompt_tokens - 1), 0)
        return Counted(
            prefill_tokens=prompt_tokens - context,
            context_tokens=context,
            transfer_tokens=max(context - self._held_before, 0) if moved_kv else 0,
            decode_tokens=max((usage.completion_tokens or 0) - 1, 0),
        )

    def _leave(self, leg: Leg, usage: Usage | None, now_s: float, *, has_answered: bool) -> None:
        """The KV that stays on the decoder after the turn."""
        if not has_answered and not self._held_before:
            self._ledger.release(self._conversation, leg.engine, now_s)
        elif not has_answered:
            self._ledger.hold(self._conversation, leg.engine, self._held_before, now_s)
        elif usage is not None:
            kv_tokens = usage.prompt_tokens + (usage.completion_tokens or 0)
            self._ledger.hold(self._conversation, leg.engine, kv_tokens, now_s)
