"""A GPU under a power cap: slower at prefills, hardly at decodes.

The only measurement at hand is the paper's (arXiv 2606.01839, one A40): at two thirds of its limit
prefills of at least 10k tokens took 20 to 47 % longer, decode gaps a few per cent. That it holds for
other GPUs is an assumption, and that both grow evenly up to there.
"""

from __future__ import annotations

from dataclasses import dataclass

from conserve_server.core.errors import ConfigError

from .timing import EngineTiming, Step
from .timing_paper import CAPPED_POWER_W, CAPPED_PREFILL_X, CAPPED_READ_X, FULL_POWER_W

LEAST_SHARE = CAPPED_POWER_W / FULL_POWER_W
"""Of the limit, below which nothing was measured."""


@dataclass(frozen=True, slots=True)
class CappedTiming:
    """A timing at `share` of its GPU's power limit."""

    timing: EngineTiming
    share: float

    def __post_init__(self) -> None:
        if not LEAST_SHARE - 1e-9 <= self.share <= 1:
            raise ConfigError(
                f"a power cap must be from {LEAST_SHARE:.0%} to 100% of the GPU's limit, "
                f"got {self.share:.0%}: nothing was measured below"
            )

    @property
    def kv_bytes_per_token(self) -> int:
        return self.timing.kv_bytes_per_token

    @property
    def kv_capacity_tokens(self) -> int:
        return self.timing.kv_capacity_tokens

    def step_s(self, step: Step) -> float:
        capped = (1 - self.share) / (1 - LEAST_SHARE)
        whole_s = self.timing.step_s(step)
        if not step.prefill_requests:
            return whole_s * (1 + (CAPPED_READ_X - 1) * capped)
        decodes = Step(0, 0, 0, step.decode_requests, step.decode_context_tokens)
        decode_s = self.timing.step_s(decodes) if step.decode_requests else 0.0
        prefill_s = max(whole_s - decode_s, 0.0) * (1 + (CAPPED_PREFILL_X - 1) * capped)
        return prefill_s + decode_s * (1 + (CAPPED_READ_X - 1) * capped)
