"""How long an engine's work takes: the one interface that every source of step times has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Step(NamedTuple):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearTiming:
    """A step's time as a sum of its parts: the whole of a model whose step times are linear.

    `base_s`: every step. `prefill_token_s` and `prefill_pair_s`: each new token of a prompt, and
    each pair of a new token and a context token that it attends to. `decode_s` and
    `decode_context_s`: each decoding request, and each token of KV that it reads.
    """

    base_s: float
    prefill_token_s: float
    prefill_pair_s: float = 0.0
    decode_s: float = 0.0
    decode_context_s: float = 0.0
    kv_bytes_per_token: int = 114_688
    kv_capacity_tokens: int = 300_000

    def step_s(self, step: Step) -> float:
        """Seconds of the step."""
        seconds = self.base_s + self.decode_s * step.decode_requests
        seconds += self.decode_context_s * step.decode_context_tokens
        if step.prefill_tokens:
            context = step.prefill_context_tokens / step.prefill_requests + step.prefill_tokens / 2
            seconds += step.prefill_tokens * (self.prefill_token_s + self.prefill_pair_s * context)
        return seconds
