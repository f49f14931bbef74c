"""The books of energy: who holds KV where, which legs ran when, and every joule to its account."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from conserve_sdk.protocol import EnergySource
from conserve_server.energy.accounts import ConversationAccount, TurnAccount, weakest
from conserve_server.energy.attribution import Joules
from conserve_server.energy.domain import Account, Domain, Reading
from conserve_server.energy.legs import Counted, Leg
from conserve_server.energy.totals import Totals
from conserve_server.energy.work import WorkTimes


class EnergyLedger:
    """Charges turns and conversations. Synchronous and without a clock; times are monotonic seconds.

    `domains`: the engines of each. `why_unmetered` says why an engine is in none. `on_settled`
    hears of each turn whose joules are final; `on_activity` of each change in what an engine
    does: its name, its prefilling and its decoding legs, the time.
    """

    def __init__(
        self,
        domains: Mapping[str, Iterable[str]],
        now_s: float,
        *,
        times: WorkTimes | None = None,
        fits_weights: bool = True,
        patience_s: float = 30.0,
        why_unmetered: Callable[[str], str] = lambda engine: f"{engine} has no energy meter",
    ) -> None:
        self.domains = {
            name: Domain(name, tuple(engines), now_s, times=times or WorkTimes(), fits_weights=fits_weights)
            for name, engines in domains.items()
        }
        self.totals = Totals()
        self.on_settled: Callable[[TurnAccount], None] | None = None
        self.on_activity: Callable[[str, int, int, float], None] | None = None
        self._of_engine = {e: domain for domain in self.domains.values() for e in domain.engines}
        self._patience_s = patience_s
        self._why_unmetered = why_unmetered
        self._active: dict[str, tuple[int, int]] = {}

    # -- turns and their legs ------------------------------------------------------------------

    def turn_began(self, conversation: ConversationAccount, now_s: float) -> TurnAccount:
        """From now on the turn pays for the KV that its conversation holds."""
        turn = TurnAccount(conversation)
        conversation.unsettled_turns += 1
        conversation.running[turn] = None
        self._let_pay(conversation, now_s)
        return turn

    def leg_started(
        self,
        turn: TurnAccount,
        engine: str,
        now_s: float,
        *,
        expected_tokens: int,
        expected_context: int = 0,
        decodes: bool = True,
        is_streamed: bool = True,
    ) -> Leg:
        """A leg was sent, and its KV is held on the engine from here on. End it with `leg_ended`."""
        if decodes:
            turn.decoder = engine
        leg = Leg(turn, engine, now_s, expected_tokens, expected_context, decodes, is_streamed)
        domain = self._of_engine.get(engine)
        if domain is None:
            self._not_metered(turn, self._why_unmetered(engine))
            return leg
        domain.leg_started(leg)
        self._hold(domain, turn.conversation, engine, expected_tokens + expected_context, now_s)
        self._activity(engine, 1, 0, now_s)
        if not is_streamed:
            self.first_token(leg, now_s)
        return leg

    def first_token(self, leg: Leg, now_s: float) -> None:
        """The leg decodes from here on."""
        domain = self._of_engine.get(leg.engine)
        if leg.first_s is not None or domain is None:
            return
        leg.first_s = now_s
        domain.batches[leg.engine].put(leg, 1, leg, now_s)
        self._activity(leg.engine, -1, 1, now_s)

    def leg_ended(
        self,
        leg: Leg,
        now_s: float,
        counted: Counted | None,
        *,
        transfer_s: float = 0.0,
        first_s: float | None = None,
    ) -> None:
        """The leg is over, however it ended; `counted` is None where the engine did not say what it did.

        `transfer_s`: how long its KV was on the way, at most until its first token. `first_s`:
        when that came, if the leg was not streamed and the engine told.
        """
        domain = self._of_engine.get(leg.engine)
        if leg.ended_s is not None or domain is None:
            return
        has_answered = leg.first_s is not None
        leg.ended_s, leg.counted, leg.transfer_s = now_s, counted, transfer_s
        if not leg.is_streamed:
            leg.first_s = first_s
        domain.batches[leg.engine].drop(leg, now_s)
        domain.leg_ended(leg)
        self._activity(leg.engine, 0 if has_answered else -1, -1 if has_answered else 0, now_s)

    def turn_ended(
        self, turn: TurnAccount, now_s: float, *, output_tokens: int = 0, context_tokens: int = 0
    ) -> None:
        """The turn is over and its legs have ended; the gap that begins is its conversation's to pay.

        `context_tokens`: prompt and output.
        """
        conversation = turn.conversation
        turn.ended_s = now_s
        turn.output_tokens, turn.context_tokens = output_tokens, context_tokens
        conversation.output_tokens += output_tokens
        conversation.context_tokens += context_tokens
        conversation.running.pop(turn, None)
        self._let_pay(conversation, now_s)
        for name in turn.domains:
            self.domains[name].turn_ended(turn)
        if turn.waits_for == 0:
            self._settled(turn)

    # -- who holds KV --------------------------------------------------------------------------

    def hold(self, conversation: ConversationAccount, engine: str, kv_tokens: int, now_s: float) -> None:
        """The conversation holds so many tokens there from now on."""
        domain = self._of_engine.get(engine)
        if domain is not None:
            self._hold(domain, conversation, engine, kv_tokens, now_s)

    def release(self, conversation: ConversationAccount, engine: str, now_s: float) -> None:
        """It holds nothing there any more."""
        if conversation.holdings.pop(engine, None) is not None:
            self._of_engine[engine].holders.drop((conversation, engine), now_s)

    def release_all(self, conversation: ConversationAccount, now_s: float, *, but: str | None = None) -> None:
        """It holds nothing any more, except on the engine `but`."""
        for engine in [e for e in conversation.holdings if e != but]:
            self.release(conversation, engine, now_s)

    def engine_lost(self, engine: str, now_s: float) -> None:
        """What was held there is gone."""
        domain = self._of_engine.get(engine)
        if domain is not None:
            for conversation in [c for c, on in domain.holders.members if on == engine]:
                self.release(conversation, engine, now_s)

    # -- the meter -----------------------------------------------------------------------------

    def begin(self, name: str, now_s: float) -> None:
        """The domain's first reading was taken: its first interval begins."""
        self.domains[name].begin(now_s)

    def close(self, name: str, reading: Reading, now_s: float) -> None:
        """An interval of the domain has ended."""
        self.domains[name].close(reading, now_s)

    def settle(self, now_s: float) -> None:
        """Attribute what is known by now."""
        for domain in self.domains.values():
            for turn in domain.settle(now_s, self._patience_s, self._charge):
                turn.waits_for -= 1
                if turn.waits_for == 0:
                    self._settled(turn)

    # -- steps ---------------------------------------------------------------------------------

    def _charge(self, account: Account, engine: str, joules: Joules, source: EnergySource) -> None:
        account.charge(joules, source)
        self.totals.charge(account, engine, joules, source)

    def _settled(self, turn: TurnAccount) -> None:
        turn.conversation.unsettled_turns -= 1
        if turn.sources and turn.decoder is not None:
            self.totals.count_tokens(turn, turn.decoder, weakest(turn.sources))
        if self.on_settled is not None:
            self.on_settled(turn)

    def _not_metered(self, turn: TurnAccount, reason: str) -> None:
        for account in (turn, turn.conversation):
            if reason not in account.unmetered:
                account.unmetered = (*account.unmetered, reason)

    def _hold(
        self, domain: Domain, conversation: ConversationAccount, engine: str, kv_tokens: int, now_s: float
    ) -> None:
        payer = conversation.payer
        conversation.holdings[engine] = kv_tokens
        domain.holders.put((conversation, engine), kv_tokens, (payer, engine), now_s)

    def _let_pay(self, conversation: ConversationAccount, now_s: float) -> None:
        """Who pays for what it holds has changed."""
        for engine, kv_tokens in tuple(conversation.holdings.items()):
            self._hold(self._of_engine[engine], conversation, engine, kv_tokens, now_s)

    def _activity(self, engine: str, prefills: int, decodes: int, now_s: float) -> None:
        before = self._active.get(engine, (0, 0))
        now = self._active[engine] = (before[0] + prefills, before[1] + decodes)
        if self.on_activity is not None:
            self.on_activity(engine, *now, now_s)
