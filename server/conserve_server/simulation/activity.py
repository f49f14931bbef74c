"""What an engine did: seconds by phase, steps, tokens, and the gaps between output tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log2

from conserve_server.simulation.gaps import Gaps
from conserve_server.simulation.runs import Run


@dataclass(slots=True)
class Activity:
    """Sums over an engine's life.

    A step that prefills and decodes counts as decoding for as long as decoding alone would have
    taken, and as prefilling for the rest. `decode_log2_batch_s` is the integral of log2 of the
    batch over the decoding time: power while decoding is near linear in it.
    """

    prefill_s: float = 0.0
    decode_s: float = 0.0
    decode_log2_batch_s: float = 0.0
    steps: int = 0
    runs: int = 0
    prefill_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    gaps: Gaps = field(default_factory=Gaps)

    @property
    def busy_s(self) -> float:
        return self.prefill_s + self.decode_s

    @property
    def mean_batch(self) -> float:
        """The batch whose power is the mean of the decoding time."""
        return float(2 ** (self.decode_log2_batch_s / self.decode_s)) if self.decode_s else 1.0

    def add(self, run: Run, batch: int) -> None:
        """A run is over, which `batch` requests decoded in."""
        elapsed_s = run.after_s(run.steps)
        decode_s = run.decode_s if run.chunks else elapsed_s
        self.runs += 1
        self.steps += run.steps
        self.prefill_s += elapsed_s - decode_s
        self.prefill_tokens += run.prefill_tokens
        if batch:
            self.decode_s += decode_s
            self.decode_log2_batch_s += decode_s * log2(batch)
            self.output_tokens += run.steps * batch
            self.gaps.add(elapsed_s / run.steps, run.steps * batch)
