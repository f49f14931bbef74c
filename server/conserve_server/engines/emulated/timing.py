"""How long the emulated engine's work takes, as a handful of constants."""

from __future__ import annotations

from dataclasses import dataclass, fields

from conserve_server.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class EmulatedTiming:
    """Seconds of each kind of work; the defaults are the order of an H100 with an 8B model.

    Not calibrated: enough for the right shape (long prompts are slow, big batches share a
    step), never for a claim about hardware. A step that prefills and decodes takes the sum.
    """

    prefill_s_per_token: float = 25e-6
    decode_s: float = 6.4e-3
    """A decode step's floor: reading the weights once."""
    decode_s_per_context_token: float = 53e-9
    step_overhead_s: float = 0.3e-3
    sequence_overhead_s: float = 0.03e-3
    transfer_base_s: float = 2e-3
    transfer_s_per_token: float = 6e-6

    def __post_init__(self) -> None:
        for each in fields(self):
            value: float = getattr(self, each.name)
            if value < 0:
                raise ConfigError(f"EmulatedTiming.{each.name} must be at least 0, got {value}")

    def decode_step_s(self, batch: int, context_tokens: int) -> float:
        """A decode step of `batch` sequences that hold `context_tokens` altogether; 0 without any."""
        return self.decode_s + context_tokens * self.decode_s_per_context_token if batch else 0.0

    def step_s(self, *, sequences: int, prefill_tokens: int, batch: int, context_tokens: int) -> float:
        """One engine step: `prefill_tokens` of prompts and one token for each of `batch` decodes."""
        overhead_s = self.step_overhead_s + sequences * self.sequence_overhead_s
        prefill_s = prefill_tokens * self.prefill_s_per_token
        return overhead_s + prefill_s + self.decode_step_s(batch, context_tokens)

    def transfer_s(self, tokens: int) -> float:
        """Moving the KV of `tokens` from another engine."""
        return self.transfer_base_s + tokens * self.transfer_s_per_token

    def faster(self, speed: float) -> EmulatedTiming:
        """The same engine `speed` times as fast."""
        if speed <= 0:
            raise ConfigError(f"speed must be greater than 0, got {speed}")
        return EmulatedTiming(**{each.name: getattr(self, each.name) / speed for each in fields(self)})
