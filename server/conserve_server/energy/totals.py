"""Sums: what was metered and where it went, and what tenants, models and engines used."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from conserve_sdk.protocol import EnergySource
from conserve_server.energy.accounts import ConversationAccount, TurnAccount
from conserve_server.energy.attribution import NOTHING, Attribution, Joules, Metered

P = TypeVar("P")


@dataclass(slots=True)
class MeterTotals:
    """What one domain's meter said, and what became of it.

    `worst_residual_j` is the largest difference of an interval between the meter and what was
    charged or left unallocated: float rounding, and nothing else.
    """

    intervals: int = 0
    metered_j: float = 0.0
    charged_j: float = 0.0
    unallocated_idle_j: float = 0.0
    unallocated_dynamic_j: float = 0.0
    dropped_intervals: int = 0
    dropped_s: float = 0.0
    worst_residual_j: float = 0.0

    def add(self, interval: Metered, split: Attribution[P]) -> None:
        charged_j = math.fsum(joules.total_j for _, joules in split.shares)
        residual_j = math.fsum(
            (interval.energy_j, -charged_j, -split.unallocated_idle_j, -split.unallocated_dynamic_j)
        )
        self.intervals += 1
        self.metered_j += interval.energy_j
        self.charged_j += charged_j
        self.unallocated_idle_j += split.unallocated_idle_j
        self.unallocated_dynamic_j += split.unallocated_dynamic_j
        self.worst_residual_j = max(self.worst_residual_j, abs(residual_j))

    def drop(self, duration_s: float) -> None:
        self.dropped_intervals += 1
        self.dropped_s += duration_s


class Use(NamedTuple):
    """Who used energy, of which model, on which engine, and how it is known."""

    tenant: str
    model: str
    engine: str
    source: EnergySource


@dataclass(slots=True)
class Used:
    """Joules charged, and the tokens of the turns that were decoded there."""

    energy: Joules = NOTHING
    gap_j: float = 0.0
    output_tokens: int = 0
    context_tokens: int = 0

    @property
    def total_j(self) -> float:
        return self.energy.total_j + self.gap_j

    def add(self, other: Used) -> None:
        self.energy += other.energy
        self.gap_j += other.gap_j
        self.output_tokens += other.output_tokens
        self.context_tokens += other.context_tokens


class Totals:
    """What was charged since the start, by tenant, model, engine and source."""

    def __init__(self) -> None:
        self.uses: dict[Use, Used] = {}

    def charge(
        self, account: TurnAccount | ConversationAccount, engine: str, joules: Joules, source: EnergySource
    ) -> None:
        if isinstance(account, TurnAccount):
            self._used(account.conversation, engine, source).energy += joules
        else:
            self._used(account, engine, source).gap_j += joules.total_j

    def count_tokens(self, turn: TurnAccount, decoder: str, source: EnergySource) -> None:
        """The tokens of a turn whose joules are final."""
        used = self._used(turn.conversation, decoder, source)
        used.output_tokens += turn.output_tokens
        used.context_tokens += turn.context_tokens

    def _used(self, conversation: ConversationAccount, engine: str, source: EnergySource) -> Used:
        use = Use(conversation.tenant, conversation.model, engine, source)
        found = self.uses.get(use)
        if found is None:
            found = self.uses[use] = Used()
        return found


def summed(uses: Iterable[Used]) -> Used:
    """All of them together."""
    total = Used()
    for each in uses:
        total.add(each)
    return total
