"""Seconds that a policy weighs: an engine's wait, a prefill, a transfer. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from conserve_server.core.policy_config import EstimatesConfig
from conserve_server.scheduling.policy import EngineView, TurnView


@dataclass(frozen=True, slots=True)
class Estimates:
    """Estimates with the configured constants. An engine's speeds come from its view."""

    config: EstimatesConfig

    def wait_s(self, engine: EngineView) -> float:
        """Until a prefill that arrives now begins: the queued chunks' steps, and half of the running one.

        A step prefills one chunk and decodes one token of every running turn.
        """
        chunk_s = self.config.chunk_tokens / engine.prefill_tokens_per_s if engine.queued_tokens else 0.0
        step_s = chunk_s + (engine.decode_step_s if engine.batch else 0.0)
        return engine.queued_tokens / self.config.chunk_tokens * step_s + step_s / 2

    def ready_s(self, engine: EngineView, tokens: int) -> float:
        """Until `tokens` that arrive now are prefilled there."""
        return self.wait_s(engine) + tokens / engine.prefill_tokens_per_s

    def transfer_s(self, tokens: int) -> float:
        """To move the KV of so many tokens between engines."""
        return self.config.transfer_latency_s + tokens / self.config.transfer_tokens_per_s

    def local_s(self, turn: TurnView, decoder: EngineView) -> float:
        """Until the turn is prefilled on its decoder."""
        return self.ready_s(decoder, turn.uncached_tokens(decoder.name))

    def remote_s(self, turn: TurnView, prefiller: EngineView, decoder: EngineView) -> float:
        """Until the turn is prefilled on the prefiller and its KV is on the decoder."""
        moved_tokens = turn.uncached_tokens(decoder.name)
        return self.ready_s(prefiller, turn.uncached_tokens(prefiller.name)) + self.transfer_s(moved_tokens)
