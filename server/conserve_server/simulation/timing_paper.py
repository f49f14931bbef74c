"""The timing of the paper's testbed: Qwen3-0.6B under vLLM 0.11, eager, on one NVIDIA A40.

From what "Observation, Not Prediction" (arXiv 2606.01839) and its artifact measured there. They give
costs of requests, not of steps; each constant below says which observation it stands for, and
`tests/simulation/test_timing_paper.py` holds the steps against all of them:

| observed | here |
| --- | --- |
| a first turn of 15,000 tokens on an idle prefiller: 0.8 s | 0.80 s, in steps of 8,192 tokens |
| 67 tokens on a cached context of up to 12k tokens: 14.5 ms | 15–19 ms at 3k–12k |
| the same beyond 12k: 5.6 ms + 0.95 µs a token of context | 15k: 21 (19.9), 20k: 23 (24.6) |
| a decode step at batch 1: 12.4–14 ms | 12.4–14 ms at up to 9k tokens of context |
| a decode step under saturation (17 requests of about 15k): 55–60 ms | 56 ms |

The artifact also fits decode at batch 64 with 10.33 ms + 6.88 µs a generated step, 0.11 µs for each
token of KV. That is below the 0.165 µs in which an A40 (696 GB/s) can read those 114,688 bytes, so
the saturated steps are followed instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from conserve_server.core.errors import ConfigError

from .timing import Step

KV_BYTES_PER_TOKEN = 114_688
KV_CAPACITY_TOKENS = 308_448
FULL_POWER_W, CAPPED_POWER_W = 300.0, 200.0

# An eager step of any size is bound by the launches of its kernels: the batch-1 decode step.
LAUNCH_S = 12.4e-3
# A first turn of 15k tokens: 13.2 TFLOP in the layers and 25.8 in attention, at one speed. 0.8 s less
# the launches of two steps are 50 TFLOP/s, a third of the card's peak.
PREFILL_TOKEN_S = 17.5e-6
PREFILL_PAIR_S = 4.55e-9
"""A new token's attention to one token before it."""
# (56 ms - LAUNCH_S) / (17 requests of 15k tokens): the card's bandwidth, all but used up.
READ_TOKEN_S = 0.171e-6
# At 200 W the artifact's prefills of at least 10k tokens took 20 to 47 % longer: the middle. Its
# decode gaps grew by "a few" per cent.
CAPPED_PREFILL_X, CAPPED_READ_X = 1.335, 1.03


@dataclass(frozen=True, slots=True)
class PaperTiming:
    """One A40 with Qwen3-0.6B, its power capped at `power_cap_w` (200 to 300 W, as measured)."""

    power_cap_w: float = FULL_POWER_W
    kv_bytes_per_token: int = KV_BYTES_PER_TOKEN
    kv_capacity_tokens: int = KV_CAPACITY_TOKENS

    def __post_init__(self) -> None:
        if not CAPPED_POWER_W <= self.power_cap_w <= FULL_POWER_W:
            raise ConfigError(
                f"power_cap_w must be {CAPPED_POWER_W:g} to {FULL_POWER_W:g}, got {self.power_cap_w:g}: "
                "the paper measured nothing outside"
            )

    def step_s(self, step: Step) -> float:
        seconds, tokens = LAUNCH_S, step.prefill_tokens
        read_s = READ_TOKEN_S * (step.decode_context_tokens + step.prefill_context_tokens)
        capped = (FULL_POWER_W - self.power_cap_w) / (FULL_POWER_W - CAPPED_POWER_W)
        if tokens:
            # Each request's tokens attend to its context and, on average, to half of its own.
            each = (step.prefill_context_tokens + tokens / 2) / (step.prefill_requests or 1)
            compute_s = tokens * (PREFILL_TOKEN_S + PREFILL_PAIR_S * each)
            seconds += compute_s * (1 + (CAPPED_PREFILL_X - 1) * capped)
        return seconds + read_s * (1 + (CAPPED_READ_X - 1) * capped)


def transfer_s(tokens: int) -> float:
    """One KV transfer between two of the paper's engines (LMCache over NIXL), as its artifact fits it."""
    return 4.849e-3 if tokens <= 1024 else 0.985e-6 * tokens + 5.27e-3


def bookkeeping_s(tokens: int) -> float:
    """What both sides of a transfer spend on KV books: 2 x (2 ms + 5 µs for each block of 16 tokens)."""
    return 2 * (2e-3 + 5e-6 * -(-tokens // 16))
