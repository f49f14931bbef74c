"""A conversation and its branches added up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from conserve_sdk.protocol.documents import known_fields
from conserve_sdk.protocol.energy import UNKNOWN_ENERGY, EnergyReport, read_energy


@dataclass(frozen=True, slots=True)
class ConversationTotals:
    """Sums over a conversation and those of its `branches` that the gateway remembers.

    `turns` that ended, `tools` that were called; tokens as engines counted them, None where none did.
    `reserved_kv_tokens`: on all decoders, now. `emulated`: an emulated engine answered one of them.
    """

    branches: int
    turns: int
    tools: int
    kv_transfers: int
    rebinds: int
    reserved_kv_tokens: int
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    emulated: bool = False
    energy: EnergyReport = UNKNOWN_ENERGY

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Read the gateway's document; fields that a newer gateway adds are left out."""
        return cls(**{**known_fields(cls, document), "energy": read_energy(document.get("energy"))})
