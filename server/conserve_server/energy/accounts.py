"""What was charged: to a turn, to its conversation, and in sum to tenants, models and engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from conserve_sdk.protocol import EnergyReport, EnergySource
from conserve_server.energy.attribution import NOTHING, Joules

JOULES_PER_KWH: Final = 3.6e6
NO_ENGINE: Final = "not measured: it ran on no engine"
PENDING: Final = "not known yet: the meter's interval has not ended"
# Shared by all accounts, of which there is one a turn.
NO_SOURCES: Final[frozenset[EnergySource]] = frozenset()
NO_DOMAINS: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Factors:
    """What a kilowatt-hour stands for, where that is known."""

    carbon_g_per_kwh: float | None = None
    price_per_kwh: float | None = None
    currency: str | None = None


@dataclass(slots=True, eq=False)
class ConversationAccount:
    """One conversation's joules. `energy` is that of its turns, `gap_j` for its KV between them.

    `unmetered` and `missed_s` as in its turns; figures of a conversation that missed some time
    are of the rest.
    """

    tenant: str
    model: str
    energy: Joules = NOTHING
    gap_j: float = 0.0
    sources: frozenset[EnergySource] = NO_SOURCES
    unsettled_turns: int = 0
    running: dict[TurnAccount, None] = field(default_factory=dict)
    """Its turns that run, in the order in which they began."""
    unmetered: tuple[str, ...] = ()
    missed_s: float = 0.0
    holdings: dict[str, int] = field(default_factory=dict)
    """KV tokens that it holds, by engine."""
    output_tokens: int = 0
    context_tokens: int = 0

    @classmethod
    def together(cls, accounts: Sequence[ConversationAccount]) -> ConversationAccount:
        """What was charged to these by now, as one account's."""
        return cls(
            accounts[0].tenant,
            accounts[0].model,
            energy=sum((account.energy for account in accounts), NOTHING),
            gap_j=sum(account.gap_j for account in accounts),
            sources=NO_SOURCES.union(*(account.sources for account in accounts)),
            unsettled_turns=sum(account.unsettled_turns for account in accounts),
            unmetered=tuple(dict.fromkeys(why for account in accounts for why in account.unmetered)),
            missed_s=sum(account.missed_s for account in accounts),
            holdings={engine: held for account in accounts for engine, held in account.holdings.items()},
            output_tokens=sum(account.output_tokens for account in accounts),
            context_tokens=sum(account.context_tokens for account in accounts),
        )

    def charge(self, joules: Joules, source: EnergySource) -> None:
        """For holding KV while none of its turns ran."""
        self.gap_j += joules.total_j
        self.sources = self.sources | {source}

    @property
    def total_j(self) -> float:
        return self.energy.total_j + self.gap_j

    @property
    def payer(self) -> TurnAccount | ConversationAccount:
        """Who pays for its KV now: the latest turn that runs, else itself."""
        return next(reversed(self.running), self)

    def report(self, factors: Factors) -> EnergyReport:
        """All that was charged so far."""
        total_j = self.total_j
        is_pending = self.unsettled_turns > 0 or bool(self.holdings)
        if self.unmetered or not self.sources:
            is_known = not is_pending and not self.unmetered and not self.missed_s
            reason = NO_ENGINE if is_known else _why_not(self.unmetered, self.missed_s)
            return EnergyReport(reason=reason, pending=is_pending)
        return _report(
            self.sources,
            self.energy,
            factors,
            total_j=total_j,
            gap_j=self.gap_j,
            output_tokens=self.output_tokens,
            context_tokens=self.context_tokens,
            is_pending=is_pending,
            reason=_missing(self.missed_s) if self.missed_s else None,
        )


@dataclass(slots=True, eq=False)
class TurnAccount:
    """One turn's joules, final once `is_settled`: every device it ran on was read after its end.

    `unmetered`: why some engine that it ran on has no meter, a reason each. `missed_s`: time of
    its devices' intervals that had to be dropped.
    """

    conversation: ConversationAccount
    energy: Joules = NOTHING
    sources: frozenset[EnergySource] = NO_SOURCES
    unmetered: tuple[str, ...] = ()
    missed_s: float = 0.0
    ended_s: float | None = None
    decoder: str | None = None
    """The engine of its latest decode leg."""
    domains: frozenset[str] = NO_DOMAINS
    waits_for: int = 0
    """Domains that it ran on and that were not read to its end yet."""
    output_tokens: int = 0
    context_tokens: int = 0

    @property
    def is_settled(self) -> bool:
        return self.ended_s is not None and self.waits_for == 0

    def charge(self, joules: Joules, source: EnergySource) -> None:
        self.energy += joules
        self.sources = self.sources | {source}
        self.conversation.energy += joules
        self.conversation.sources = self.conversation.sources | {source}

    def report(self, factors: Factors) -> EnergyReport:
        """The turn's joules once they are final; before, only that they are pending."""
        if self.unmetered or not self.is_settled or self.missed_s:
            return EnergyReport(reason=_why_not(self.unmetered, self.missed_s), pending=not self.is_settled)
        if not self.sources:
            return EnergyReport(reason=NO_ENGINE)
        return _report(
            self.sources,
            self.energy,
            factors,
            total_j=self.energy.total_j,
            gap_j=None,
            output_tokens=self.output_tokens,
            context_tokens=self.context_tokens,
            is_pending=False,
        )


def weakest(sources: frozenset[EnergySource]) -> EnergySource:
    """A sum is no better known than its least known part."""
    order = (EnergySource.MODELLED, EnergySource.REPLAYED, EnergySource.MEASURED)
    return next(source for source in order if source in sources)


def _why_not(unmetered: tuple[str, ...], missed_s: float) -> str:
    if unmetered:
        return "not measured: " + "; ".join(unmetered)
    return f"not measured: {_missing(missed_s)}" if missed_s else PENDING


def _missing(missed_s: float) -> str:
    return f"{missed_s:.3g} s of its time are missing: a meter was reset or could not be read"


def _report(
    sources: frozenset[EnergySource],
    energy: Joules,
    factors: Factors,
    *,
    total_j: float,
    gap_j: float | None,
    output_tokens: int,
    context_tokens: int,
    is_pending: bool,
    reason: str | None = None,
) -> EnergyReport:
    kwh = total_j / JOULES_PER_KWH
    carbon, price = factors.carbon_g_per_kwh, factors.price_per_kwh
    return EnergyReport(
        source=weakest(sources),
        reason=reason,
        pending=is_pending,
        total_j=total_j,
        prefill_j=energy.prefill_j,
        transfer_j=energy.transfer_j,
        decode_j=energy.decode_j,
        idle_j=energy.idle_j,
        gap_j=gap_j,
        j_per_output_token=total_j / output_tokens if output_tokens else None,
        output_tokens_per_j=output_tokens / total_j if total_j and output_tokens else None,
        context_tokens_per_j=context_tokens / total_j if total_j and context_tokens else None,
        carbon_g=None if carbon is None else kwh * carbon,
        cost=None if price is None else kwh * price,
        currency=None if price is None else factors.currency,
    )
