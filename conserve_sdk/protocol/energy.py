"""What a turn or a conversation cost in energy, as the gateway reports it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from conserve_sdk.protocol.documents import known_fields


class EnergySource(StrEnum):
    """How joules are known."""

    MEASURED = "measured"
    """Read from a device's own meter."""
    MODELLED = "modelled"
    """Watts by what the device did, from a table: no device was read."""
    REPLAYED = "replayed"
    """Read back from a record."""


def joules_text(joules: float) -> str:
    """Joules as a person reads them: `0.043 J`, `57.2 J`, `12,340 J`."""
    return f"{joules:,.0f} J" if joules >= 999.5 else f"{joules:.3g} J"


@dataclass(frozen=True, slots=True)
class EnergyReport:
    """Joules of a turn or a conversation. What is not known is None, and `reason` says why.

    `idle_j` is the idle devices' energy for holding the KV while a turn ran, `gap_j` the same
    between turns (a conversation's only). `pending`: more may still come, devices are read in
    intervals. `context_tokens_per_j` counts the whole context again on every turn, as
    ConServe's paper does; it is not comparable to `output_tokens_per_j`. `carbon_g` (CO2) and
    `cost` (in `currency`) only where the gateway knows the factors.
    """

    source: EnergySource | None = None
    reason: str | None = None
    pending: bool = False
    total_j: float | None = None
    prefill_j: float | None = None
    transfer_j: float | None = None
    decode_j: float | None = None
    idle_j: float | None = None
    gap_j: float | None = None
    j_per_output_token: float | None = None
    output_tokens_per_j: float | None = None
    context_tokens_per_j: float | None = None
    carbon_g: float | None = None
    cost: float | None = None
    currency: str | None = None

    def __str__(self) -> str:
        """The total and how it is known, or why it is not."""
        if self.total_j is None or self.source is None:
            return self.reason or "not measured"
        more = ", more to come" if self.pending else ""
        return f"{joules_text(self.total_j)} ({self.source}{more})"


UNKNOWN_ENERGY: Final = EnergyReport(reason="not measured: no energy meter is configured")


def read_energy(document: object) -> EnergyReport:
    """A gateway that knows no energy writes a sentence, or nothing."""
    if not isinstance(document, dict):
        return UNKNOWN_ENERGY
    known = known_fields(EnergyReport, document)
    source = known.get("source")
    return EnergyReport(**{**known, "source": EnergySource(source) if source is not None else None})


def joules_note(energy: EnergyReport) -> str:
    return "" if energy.total_j is None else f", {energy}"
