"""How long an engine's work takes: the one interface that every source of step times has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Step:
    """What an engine computes in one forward pass.

    `prefill_tokens` new tokens of `prefill_requests` requests, over `prefill_context_tokens`
    tokens of KV that those requests already hold; one token for each of `decode_requests`
    requests, which read `decode_context_tokens` tokens of KV in all.
    """

    prefill_requests: int = 0
    prefill_tokens: int = 0
    prefill_context_tokens: int = 0
    decode_requests: int = 0
    decode_context_tokens: int = 0


class EngineTiming(Protocol):
    """Step times and sizes of one model on one kind of GPU. Pure: the same step takes the same time."""

    @property
    def kv_bytes_per_token(self) -> int: ...

    @property
    def kv_capacity_tokens(self) -> int:
        """KV tokens that fit beside the model's weights."""
        ...

    def step_s(self, step: Step) -> float:
        """Seconds from one step's start to the next one's, host overhead included."""
        ...
